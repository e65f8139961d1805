"""Names of frontends and backends; everything behind a name is imported when asked for."""

from __future__ import annotations

import dataclasses
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .backend import Backend
from .errors import CaptureError, PluginError, TargetError
from .target import Target

#: The entry point group other packages announce backends under: ``my-backend = pkg.mod:MyBackend``.
GROUP = "rankc.backends"


def backend_names() -> list[str]:
    """Every backend that a target can name, ours first."""
    ours = _builtin()
    return [*ours, *sorted(set(entry_points(group=GROUP).names) - set(ours))]


def backend(name: str) -> Backend:
    """The backend called ``name``, ready to use.

    Raises:
        TargetError: There is none, or a library it needs isn't installed.
        PluginError: It comes from another package, and can't be used; which, and why.
    """
    ours = _builtin()
    if name not in ours:
        return _plugged(name)
    module, _, attribute = ours[name].partition(":")
    try:
        made: Backend = getattr(importlib.import_module(f"rankc.backends.{module}"), attribute)()
    except ImportError as error:
        raise TargetError(
            f"backend {name!r} needs {error.name}, which isn't installed: pip install {error.name}"
        ) from error
    return made


def package_of(point: EntryPoint) -> str:
    """The package that announces a plug-in."""
    return point.dist.name if point.dist is not None else point.value.partition(":")[0]


def _builtin() -> dict[str, str]:
    table: dict[str, str] = importlib.import_module("rankc.backends").BACKENDS
    return table


def _plugged(name: str) -> Backend:
    points = sorted(entry_points(group=GROUP, name=name), key=lambda point: point.value)
    if not points:
        raise TargetError(f"no backend is called {name!r}; there are {', '.join(backend_names())}")
    if len({point.value for point in points}) > 1:
        packages = ", ".join(f"{package_of(point)} ({point.value})" for point in points)
        raise PluginError(f"two packages announce a backend called {name!r}: {packages}")
    (point, *_) = points
    whose = f"backend {name!r} of the package {package_of(point)}"
    try:
        found = point.load()
        made = found() if isinstance(found, type) and issubclass(found, Backend) else None
    except Exception as error:  # of whatever the package does when it is imported
        said = f"{type(error).__name__}: {error}"
        raise PluginError(f"{whose} can't be loaded from {point.value}: {said}") from error
    if made is None:
        raise PluginError(f"{whose}: {point.value} is no subclass of rankc.Backend")
    if made.name != name:
        raise PluginError(f"{whose}: {point.value} is called {made.name!r}")
    return made


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
