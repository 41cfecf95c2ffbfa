"""The Hugging Face hub: asked at most once whether it is there."""

import functools
import sys

RUN_OFFLINE = "to run without it: --model smollm2-135m --dataset python-docs, or local files"


@functools.cache
def reachable(timeout=10):
    """Whether the hub answers within `timeout` seconds; if not, the libraries are put in offline mode.

    Without this, a missing network costs every file several slow retries.
    """
    from huggingface_hub import constants, get_session

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=timeout)
            return True
        except Exception:  # whatever keeps it from answering, the hub is not there
            go_offline()
    return False


def go_offline():
    """Use only what is in the hub's local cache from now on."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # which datasets takes over when it is imported, and that takes a while
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
