"""What a study would otherwise measure again in each of its experiments."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lib.model.models import LanguageModel

T = TypeVar("T")

_lm: LanguageModel | None = None
_known: dict[Hashable, Any] = {}


@contextmanager
def of(lm: LanguageModel) -> Iterator[None]:
    """Inside, `once` remembers what is measured of this model, which stays as it is but for what each experiment takes
    back."""
    global _lm
    _lm = lm
    try:
        yield
    finally:
        _lm = None
        _known.clear()


def once(lm: LanguageModel, key: Hashable, measure: Callable[[], T]) -> T:
    """`measure()`; where this model's are remembered, what it gave for the key the first time."""
    if lm is not _lm:
        return measure()
    if key not in _known:
        _known[key] = measure()
    return _known[key]
