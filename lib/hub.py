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
            if get_session().head(constants.ENDPOINT, timeout=timeout).status_code < 500:
                return True
        except Exception:  # whatever keeps it from answering, the hub is not there
            pass
        go_offline()
    return False


def refusal(error, name, revision=None):
    """Why the hub does not give `name`, in one line, if it is what an exception comes from; otherwise None."""
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.GatedRepoError):
            return f"'{name}' is gated: ask for access on its page of the hub, then log in with: hf auth login"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"'{name}' has no revision '{revision}' on the hub"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.HfHubHTTPError) and (status == 429 or (status or 0) >= 500):
            return f"the hub answers {status} for '{name}': try again later, with --offline if it is in the local cache"
        error = error.__cause__ or error.__context__
    return None


def go_offline():
    """Use only what is in the hub's local cache from now on."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # which datasets takes over when it is imported, and that takes a while
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
