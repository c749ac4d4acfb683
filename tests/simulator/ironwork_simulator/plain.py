"""Dataclasses from JSON: checked field by field, with errors that name the field, not the value."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")
_MAX_NUMBER = 1_000_000_000


class Invalid(ValueError):
    """What was given cannot be used; the message names the field and never holds its value."""


def read_dataclass(cls: type[T], value: object) -> T:
    """An instance of cls from a JSON object. Lists become tuples. Raises Invalid."""
    if not isinstance(value, Mapping):
        raise Invalid(f"{cls.__name__}: expected an object")
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {}
    for name, given in value.items():
        if name not in hints:
            raise Invalid(f"{name}: unknown field of {cls.__name__}")
        try:
            fields[name] = _convert(hints[name], given)
        except _Mismatch:
            raise Invalid(f"{name}: expected {_describe(hints[name])}") from None
    return cls(**fields)


def plain(value: object) -> dict[str, object]:
    """The fields of a dataclass that differ from their defaults, ready for JSON."""
    return {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)  # type: ignore[arg-type]  # object by design
        if getattr(value, field.name) != field.default
    }


class _Mismatch(Exception):
    """The value is not of the field's type."""


def _convert(hint: Any, value: object) -> object:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        if value is None:
            return _require(None, types.NoneType in arguments)
        return _convert(next(a for a in arguments if a is not types.NoneType), value)
    if origin is tuple:
        return _convert_tuple(arguments, value)
    return _require(value, _fits(hint, origin, arguments, value))


def _fits(hint: Any, origin: Any, arguments: tuple[Any, ...], value: object) -> bool:
    if origin is Literal:
        return value in arguments
    if origin is Mapping:
        return isinstance(value, Mapping)
    if hint in {int, float}:
        # A negative or endless count, size, time or status means nothing in these classes.
        number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return number and 0 <= typing.cast("float", value) <= _MAX_NUMBER
    return isinstance(value, hint)


def _convert_tuple(arguments: tuple[Any, ...], value: object) -> object:
    if not isinstance(value, (list, tuple)):
        raise _Mismatch
    if arguments[-1] is Ellipsis:
        return tuple(_convert(arguments[0], item) for item in value)
    _require(value, len(value) == len(arguments))
    return tuple(_convert(hint, item) for hint, item in zip(arguments, value, strict=True))


def _require(value: object, condition: bool) -> object:
    if not condition:
        raise _Mismatch
    return value


def _describe(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(option) for option in typing.get_args(hint))
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
