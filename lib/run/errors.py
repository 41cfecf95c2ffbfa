"""What is said when something goes wrong: the reason, in one line."""

import re
from collections.abc import Sequence

LONGEST = 300
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
REASON_MISSING = re.compile(  # what says that something failed, but not why
    r"(an?|some) (unexpected |unknown )?(error|exception|problem)|can('|no)t |could(n't| not) |(is )?unable to |"
    r"failed to |something went wrong|it looks like|weights only load failed",
    re.IGNORECASE,
)
HOLLOW = re.compile(r"an? (unexpected |unknown )?(error|exception) (occurred|happened)", re.IGNORECASE)
# what libraries say, and what is meant
MEANT = {
    r"did not match any variant of untagged enum": "damaged, or of a newer version of tokenizers",
    r"an't allocate memory|annot allocate memory|nable to allocate|out of memory": "out of memory",
    r"CERTIFICATE_VERIFY_FAILED": "set SSL_CERT_FILE to a file of the certificates that are to be trusted",
    r"Could not run 'aten::": "PyTorch has nothing for it on this machine",
    r"^property '\w+' of '\w+' object has no setter": "its config.json sets what is not set there; take it out",
    r"^Unrecognized configuration class": "transformers knows no decoder of this type that takes text alone",
    r"requires the SentencePiece|have sentencepiece or tiktoken": "run: pip install sentencepiece tiktoken",
}


LFS_POINTER = b"version https://git-lfs"  # how a file begins that stands for another one
IS_POINTER = "is a pointer of Git LFS, not the file itself; run: git lfs pull"


class UserError(Exception):
    """A mistake in the input; its message is one line and the exit code is 2."""


class LackingError(UserError):
    """The model has not what is asked of it: no mistake where a study asks every experiment of every model."""


def cause(error: BaseException) -> str:
    """One line, of at most LONGEST characters: what an exception says and, where that gives no reason or was said to
    come of another, what that one says."""
    said: list[str] = []
    for link in _telling(error):
        text = _says(link)
        if said and text in said[-1] and len(said[-1]) <= LONGEST:
            continue
        if said and HOLLOW.match(said[-1]):
            said.pop()
        if said:
            said[-1] = _cut(re.split(r"[.:]? *$|[.:] ", said[-1])[0], LONGEST // 2)  # the wrapper's first sentence
        said.append(text)
    return _cut(": ".join(said), LONGEST)


def chain(error: BaseException | None) -> list[BaseException]:
    """The exception, what it came of, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def _telling(error: BaseException) -> list[BaseException]:
    """The part of the chain that tells why."""
    telling = []
    for link in chain(error):
        telling.append(link)
        text = str(link).strip()
        if link.__cause__ is None and text and not REASON_MISSING.match(text):
            break
    return telling


def _says(error: BaseException) -> str:
    """What one exception says, in one line."""
    name = type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:  # a part of one that is there
        return f"{error.name} is not installed; run: pip install {error.name}"
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, KeyError) and len(error.args) == 1 and isinstance(error.args[0], (str, int)):
        return f"{error.args[0]!r} is missing"
    lines = [" ".join(line.split()) for line in ANSI.sub("", str(error)).splitlines()]
    lines = [line for line in lines if re.search(r"\w", line) and not re.fullmatch(r"\W*https?://\S+", line)]
    text = " ".join(lines)
    for pattern, meant in MEANT.items():
        if re.search(pattern, text):
            return f"{meant} ({_cut(text, LONGEST // 2)})"
    if isinstance(error, MemoryError):
        return f"out of memory ({text})" if text else "out of memory"
    return text if " " in text else f"{name}: {text}" if text else name


def listed(names: Sequence[str]) -> str:
    """The first three of a list of names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "\u2026"
