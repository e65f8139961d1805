"""Names of frontends and backends; everything behind a name is imported when asked for."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from .backend import Backend
from .errors import CaptureError, PluginError, TargetError
from .plugins import plugin, plugin_names
from .runtime import Runtime
from .target import Target

#: The entry point group other packages announce backends under: ``my-backend = pkg.mod:MyBackend``.
GROUP = "rankc.backends"


def backend_names() -> list[str]:
    """Every backend that a target can name, ours first."""
    ours = _builtin()
    return [*ours, *sorted(plugin_names(GROUP) - set(ours))]


def backend(name: str) -> Backend:
    """The backend called ``name``, ready to use.

    Raises:
        TargetError: There is none, or a library it needs isn't installed.
        PluginError: It comes from another package, and can't be used; which, and why.
    """
    ours = _builtin()
    if name not in ours:
        return _plugged(name)
    made: Backend = _made(name, ours[name])
    return made


def runtime(name: str) -> Runtime:
    """What opens what the backend called ``name`` built, without what it builds with.

    Raises:
        TargetError: There is none, or a library it needs isn't installed.
        PluginError: It comes from another package, and can't be used; which, and why.
    """
    apart: dict[str, str] = importlib.import_module("rankc.backends").RUNTIMES
    if name not in apart:
        return backend(name)
    made: Runtime = _made(name, apart[name])
    return made


def _made(name: str, place: str) -> Any:
    """An instance of a class of ours, by its place."""
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(f"rankc.backends.{module}"), attribute)()
    except ImportError as error:
        needed = error.name or "torch"
        raise TargetError(
            f"backend {name!r} needs {needed}, which isn't installed: pip install {needed}"
        ) from error


def _builtin() -> dict[str, str]:
    table: dict[str, str] = importlib.import_module("rankc.backends").BACKENDS
    return table


def _plugged(name: str) -> Backend:
    found = plugin(GROUP, name, "backend", Backend, PluginError)  # type: ignore[type-abstract]
    if found is None:
        raise TargetError(f"no backend is called {name!r}; there are {', '.join(backend_names())}")
    try:
        return found()
    except Exception as error:  # of whatever the package does when it is made
        raise PluginError(f"backend {name!r} can't be made: {error}") from error


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
