"""Whether what was read from a file fits the types that the dataclasses declare, and where not."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import RankcError

_LARGEST = 2**63 - 1
#: What code that expects something else raises.
_MALFORMED = (AttributeError, IndexError, OSError, OverflowError, TypeError, ValueError)


class MisfitError(ValueError):
    """A value of a file that doesn't fit; the message begins with its place."""


def require_fit(value: Any, place: str) -> None:
    """Raises unless each field of a dataclass, however deep, is of the type it declares.

    Integers must have at most 64 bits. NaN and infinity are floats.

    Args:
        value: A dataclass's instance.
        place: What messages call it; empty for the whole of a file.

    Raises:
        MisfitError: The place of the first field that isn't, what it holds, and what is expected.
    """
    kind: Any = type(value)
    if _fits(kind)(value):
        return
    for name, hint in _hints(kind).items():
        _check(getattr(value, name), hint, f"{place}.{name}" if place else name)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    known = get_type_hints(kind)
    return {field.name: known[field.name] for field in dataclasses.fields(kind)}


@cache
def _fits(hint: Any) -> Callable[[Any], bool]:
    """Tells whether a value is of a type; where in it and why not, `_check` tells."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        fields = [(name, _fits(kind)) for name, kind in _hints(hint).items()]
        return lambda value: (
            isinstance(value, hint) and all(fits(getattr(value, name)) for name, fits in fields)
        )
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        each = _fits(inner[0])
        return lambda value: isinstance(value, (tuple, list)) and all(map(each, value))
    if hint is str:
        return lambda value: isinstance(value, str)
    if hint is float:
        return lambda value: isinstance(value, float)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value: isinstance(value, hint)

    def slowly(value: Any) -> bool:
        try:
            _check(value, hint, "")
        except MisfitError:
            return False
        return True

    return slowly


def _check(value: Any, hint: Any, place: str) -> None:
    if hint is Any:
        return
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        _check_union(value, get_args(hint), place)
    elif origin is tuple:
        _check_tuple(value, get_args(hint), place)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping), value, "names and values", place)
        for name, item in value.items():
            _check(name, get_args(hint)[0], f"a name in {place}")
            _check(item, get_args(hint)[1], f"{place}.{name}")
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        _check_tuple(value, (get_args(hint)[0], ...), place)
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _require(isinstance(value, hint), value, f"a {hint.__name__}", place)
        require_fit(value, place)
    else:
        _check_plain(value, hint, place)


def _check_union(value: Any, options: tuple[Any, ...], place: str) -> None:
    for option in options:
        of_kind = isinstance(option, type) and isinstance(value, option)
        if of_kind and dataclasses.is_dataclass(option):
            require_fit(value, place)
            return
    errors = []
    for option in options:
        try:
            _check(value, option, place)
        except MisfitError as error:
            # Its traceback would keep the callers' frames, and with them the artifact, alive.
            errors.append(error.with_traceback(None))
        else:
            return
    raise errors[0]


def _check_tuple(value: Any, items: tuple[Any, ...], place: str) -> None:
    _require(isinstance(value, (tuple, list)), value, "a list", place)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    _require(len(value) == len(items), value, f"a list of {len(items)}", place)
    for index, (item, hint) in enumerate(zip(value, items, strict=True)):
        _check(item, hint, f"{place}[{index}]")


def _check_plain(value: Any, hint: Any, place: str) -> None:
    if hint is None or hint is type(None):
        _require(value is None, value, "null", place)
    elif hint is bool:
        _require(isinstance(value, bool), value, "true or false", place)
    elif hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and abs(value) <= _LARGEST, value, "an integer of 64 bits", place)
    elif hint is float:
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
        _require(whole or isinstance(value, float), value, "a number", place)
    elif hint is str:
        _require(isinstance(value, str), value, "text", place)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        known = ", ".join(str(one.value) for one in hint)
        _require(isinstance(value, hint), value, f"one of {known}", place)
    elif isinstance(hint, type):
        _require(isinstance(value, hint), value, f"a {hint.__name__}", place)


def _require(fits: bool, value: Any, expected: str, place: str) -> None:
    if not fits:
        raise MisfitError(f"{place} is {reprlib.repr(value)}, expected {expected}")


@contextmanager
def reading(path: Path, error_class: type[RankcError]) -> Iterator[None]:
    """What goes wrong inside is the fault of what is read from a file.

    Args:
        path: The file.
        error_class: What is raised then.
    """
    try:
        yield
    except RankcError:
        raise
    except KeyError as error:
        raise error_class(f"{path} is damaged or foreign: it lacks {error}.") from error
    except RecursionError as error:
        raise error_class(f"{path} is damaged or foreign: it is nested too deeply.") from error
    except _MALFORMED as error:
        said = reprlib.repr(str(error))
        raise error_class(f"{path} is damaged or foreign: {said}.") from error


def require(fits: bool, place: str, said: str) -> None:
    """Raises where a value can't be.

    Raises:
        MisfitError: The place and what was said.
    """
    if not fits:
        raise MisfitError(f"{place} {said}")


def is_finite(value: float) -> bool:
    """Whether it is a number within the range of floats."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
