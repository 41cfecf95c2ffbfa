"""The Hugging Face hub: whether it is there, and why something did not come from it."""

import functools
import logging
import os
import sys
from collections.abc import Sequence

from lib.run import packages
from lib.run.errors import UserError, cause, chain

RUN_OFFLINE = "to run without it: --model smollm2-135m --dataset python-docs, or local files"
NAMES = "NAME or OWNER/NAME, of letters, digits, '-', '_' and '.'"
HOLDS = {"model": ("config.json",), "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json")}
KINDS = {
    "model": "a folder with config.json and its weights{}, a .gguf file, nanoGPT's ckpt.pt",
    "tokenizer": "a folder with its files{}",
}
# by the names of classes, so that nothing is imported; a subclass before its base
MEANT = {
    "GatedRepoError": "cannot load {}: it is gated; accept its terms on the hub, then log in: hf auth login",
    "DisabledRepoError": "cannot load {}: the hub has disabled it",
    "RepositoryNotFoundError": "unknown {}: it is neither here nor on the hub, unless it is private: hf auth login",
    "DatasetNotFoundError": "unknown {}: it is neither here nor on the hub, unless it is private: hf auth login",
    "RevisionNotFoundError": "cannot load {}: it has no revision '{revision}'",
}
STATUS = {
    401: "the hub does not accept the access token: hf auth login",
    403: "the hub denies access to it: hf auth login",
    429: "the hub refuses so many requests; try again later",
}
OUT_OF_REACH = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ProxyError")

# it tells of every retry; only "Rate limited. Waiting 170s before retry" is worth a line
logging.getLogger("huggingface_hub.utils._http").addFilter(lambda told: told.getMessage().startswith("Rate limited"))


class _Offline:
    """why: what keeps us from asking the hub, if anything does."""

    why: str | None = None


@functools.cache
def reachable(timeout: float = 10) -> bool:
    """Whether the hub answers within `timeout` seconds; if not, the libraries are put in offline mode.

    Without this, a missing network costs every file several slow retries.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        status = get_session().head(constants.ENDPOINT, timeout=timeout).status_code
    except Exception as error:  # whatever keeps it from answering, the hub is not there
        go_offline(_connection(error))
        return False
    if status >= 500:
        go_offline(f"it answers {status}")
    return status < 500


def go_offline(why: str = "--offline") -> None:
    """Use only what is in the hub's local cache from now on."""
    from huggingface_hub import constants

    _Offline.why = why
    constants.HF_HUB_OFFLINE = True  # which datasets takes over when it is imported, and that takes a while
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def require_id(name: str, what: str = "model") -> None:
    """Raise UserError if the `name` of a model, tokenizer or dataset, which is not here, cannot be a hub id either."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if "://" in name:
        raise UserError(f"{name} is an address; a {what} of the hub is named by its id, {NAMES}")
    missing = "no such file" if what == "dataset" else f"no such {what} folder"
    if os.path.isfile(os.path.expanduser(name)):
        folder = os.path.dirname(name) or "."
        known = any(os.path.isfile(os.path.join(os.path.expanduser(folder), file)) for file in HOLDS[what])
        instead = f" (--{what} {folder})" if known else ""
        raise UserError(f"'{name}' is a file; a {what} is {KINDS[what].format(instead)}, or a hub id")
    if os.path.isabs(name) or name.startswith((".", "~")) or name.endswith(os.sep) or name.count("/") > 1:
        raise UserError(f"{missing}: {name}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{missing}: {name:.200}; and no hub id, which is {NAMES}") from error


def why_not(name: str, error: BaseException, what: str = "model", revision: str | None = None) -> str:
    """Why the model or dataset `name` did not come from the hub or its local cache, in one line.

    error: what was raised on the way. revision: which was asked for; None: `main`.
    """
    errors = chain(error)
    kinds = {kind.__name__ for link in errors for kind in type(link).__mro__}
    named = f"{what} '{name}'"
    packaged = f"; packaged models: {packages.NAMES}" if what == "model" else ""
    if (path := _unwritable(errors)) is not None:
        return f"cannot keep {named} in the hub's cache: {path}; set HF_HOME to a folder that can be written"
    if (why := _why_offline()) and kinds & {*OUT_OF_REACH, "ConnectionError"}:
        missing = f"no such {what} folder: {name}" if os.path.isdir(os.path.dirname(name)) else f"unknown {named}"
        return (
            f"{missing}: it is not here, nor in the hub's local cache, and we cannot reach the Hugging Face hub "
            f"({why}); {RUN_OFFLINE}{packaged}"
        )
    for kind, meant in MEANT.items():
        if kind in kinds:
            told = meant.format(named, revision=revision or "main")
            return told + packaged if kind == "RepositoryNotFoundError" else told
    status = next((s for link in errors if (s := getattr(getattr(link, "response", None), "status_code", None))), None)
    if status is not None and (status in STATUS or status >= 500):
        return f"cannot load {named}: {STATUS.get(status, f'the hub has a fault ({status}); try again later')}"
    if kinds & {*OUT_OF_REACH}:
        return f"cannot load {named}: cannot reach the Hugging Face hub ({_connection(error)}); {RUN_OFFLINE}"
    return f"cannot load {named}: {cause(error)}"


def _why_offline() -> str | None:
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return _Offline.why
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    variable = next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), "HF_HUB_OFFLINE")
    return _Offline.why or f"{variable} is set"


def _connection(error: BaseException) -> str:
    """Why there is no connection, in the words of the system rather than of a client library."""
    return cause(chain(error)[-1])


def _unwritable(errors: Sequence[BaseException]) -> str | None:
    """What could not be written, if that is what happened in one of the hub's folders."""
    from huggingface_hub import constants

    folders = [constants.HF_HOME, constants.HF_HUB_CACHE, os.environ.get("HF_DATASETS_CACHE")]
    for error in errors:
        path = getattr(error, "filename", None)
        plain = type(error).__module__ == "builtins" and not isinstance(error, FileNotFoundError)
        if plain and isinstance(path, str) and any(_one_in_the_other(path, folder) for folder in folders if folder):
            return cause(error)
    return None


def _one_in_the_other(path: str, folder: str) -> bool:
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    return os.path.commonpath([path, folder]) in (path, folder)
