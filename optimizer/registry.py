"""Names of frontends and backends; everything behind a name is imported when asked for."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from .errors import CaptureError, TargetError
from .target import Target


def backend(name: str) -> Any:
    """The backend called ``name``, ready to use.

    Raises:
        TargetError: There is none, or a library it needs isn't installed.
    """
    table: dict[str, str] = importlib.import_module("rankc.backends").BACKENDS
    if name not in table:
        raise TargetError(f"no backend is called {name!r}; there are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(importlib.import_module(f"rankc.backends.{module}"), attribute)()
    except ImportError as error:
        raise TargetError(
            f"backend {name!r} needs {error.name}, which isn't installed: pip install {error.name}"
        ) from error


def served(target: Target, name: str) -> Target:
    """The target as one of its backends serves it, with the formats that the backend has.

    Raises:
        TargetError: There is no such backend, or a library it needs isn't installed. A backend
            that needs it only to run, on another machine, is no error.
    """
    found = backend(name)
    needed = found.missing() if target.measured else ""
    if needed:
        raise TargetError(f"{name} isn't installed: {needed}")
    return dataclasses.replace(target, backends=(name,), formats=found.formats(target))


def frontend(suffix: str = "") -> Any:
    """The module that captures models in memory, or that reads files called ``*suffix``.

    Raises:
        CaptureError: Nothing reads such files.
    """
    table: dict[str, str] = importlib.import_module("rankc.frontends").FRONTENDS
    if suffix not in table:
        known = ", ".join(name for name in table if name)
        raise CaptureError(f"a {suffix} file can't be captured; these can: {known}.")
    return importlib.import_module(f"rankc.frontends.{table[suffix]}")
