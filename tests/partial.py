"""Results of which only some fields are given: what reads another one fails."""

import dataclasses
import types
import typing

from msgspec import UNSET


def partial(kind, value):
    """`value`, of JSON types, as a `kind`, as msgspec.convert makes it; but a dataclass may lack fields."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return value if value is None or value is UNSET else partial(arguments[0], value)
    if dataclasses.is_dataclass(value) or value is None or kind is typing.Any:
        return value
    if dataclasses.is_dataclass(origin or kind):
        return _dataclass(origin or kind, arguments, value)
    if hasattr(kind, "_fields"):
        return kind(*value)
    if origin in (list, tuple):
        kinds = arguments if origin is tuple and arguments[-1] is not ... else [arguments[0]] * len(value)
        return origin(partial(of, item) for of, item in zip(kinds, value, strict=True))
    if origin is dict:
        return {arguments[0](key) if arguments[0] in (int, float) else key: partial(arguments[1], item)
                for key, item in value.items()}  # fmt: skip
    return value


def _dataclass(kind, arguments, value):
    made = object.__new__(kind)
    known = {name: hint for base in reversed(kind.__mro__) for name, hint in _hints(base, kind, arguments).items()}
    for name in known.keys() & value.keys():
        object.__setattr__(made, name, partial(known[name], value[name]))
    return made


def _hints(base, kind, arguments):
    """Types of the fields that a class adds, with those that `arguments` or a base name in place of type variables."""
    if not dataclasses.is_dataclass(base):
        return {}
    bound = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
    for parent in getattr(kind, "__orig_bases__", ()):
        if typing.get_origin(parent) is base:
            given = (_bound(argument, bound) for argument in typing.get_args(parent))
            bound = dict(zip(base.__parameters__, given, strict=True))
    hints = typing.get_type_hints(base)
    return {name: _bound(hints[name], bound) for name in base.__annotations__}


def _bound(hint, bound):
    if isinstance(hint, typing.TypeVar):
        return bound.get(hint, typing.Any)
    parameters = getattr(hint, "__parameters__", ())
    return hint[tuple(bound.get(parameter, typing.Any) for parameter in parameters)] if parameters else hint
