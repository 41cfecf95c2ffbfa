"""What can be measured beside the model as it is: anything with a name and the hooks that apply it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from lib.model.arch import Architecture


class Everywhere(Protocol):
    """A change that is the same in all windows."""

    @property
    def name(self) -> str: ...

    def hooks(self, arch: Architecture, /) -> AbstractContextManager[object]: ...


class Change(Protocol):
    """A change for lib.core.sweep. Before `first_layer` nothing differs from the baseline; passes start there."""

    @property
    def name(self) -> str: ...

    @property
    def first_layer(self) -> int: ...

    def hooks(self, arch: Architecture, rows: slice, /) -> AbstractContextManager[object]:
        """What applies it to the windows `rows`."""


class ChangeEverywhere(Change, Protocol):
    """A Change that is the same in all windows."""

    def hooks(self, arch: Architecture, rows: slice | None = None, /) -> AbstractContextManager[object]: ...


@runtime_checkable
class SharesAPass(Protocol):
    """A Change, too, that can run in one pass with others of its kind."""

    def hooks_beside(self, arch: Architecture, others: Sequence[Any], rows: slice, /) -> AbstractContextManager[object]:
        """For a batch of as many times the windows `rows`: this change in the first, each of `others` in its own."""
