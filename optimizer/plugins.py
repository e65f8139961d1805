"""What other packages bring by entry points: found by name, imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .errors import RankcError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

T = TypeVar("T")


def plugin_names(group: str) -> set[str]:
    """What packages announce in a group."""
    return set(_announced(group).names)


def plugin_places(group: str, name: str) -> set[str]:
    """Where packages say that what is called so is found."""
    return {point.value for point in _announced(group).select(name=name)}


def plugin(
    group: str, name: str, kind: str, base: type[T], error: type[RankcError]
) -> type[T] | None:
    """The class that a package announces under a name; None where none does.

    Args:
        group: The entry point group.
        name: In it.
        kind: What it is, for messages: ``"pass"``.
        base: What it is a subclass of.
        error: What is raised where it can't be used.

    Raises:
        RankcError: As ``error``: two packages announce it, it can't be loaded, or it is something
            else. Named with its package.
    """
    points = sorted(_announced(group).select(name=name), key=lambda point: point.value)
    if not points:
        return None
    if len({point.value for point in points}) > 1:
        packages = ", ".join(f"{_package(point)} ({point.value})" for point in points)
        raise error(f"two packages announce a {kind} called {name!r}: {packages}")
    (point, *_) = points
    whose = f"{kind} {name!r} of the package {_package(point)}"
    try:
        found = point.load()
    except Exception as wrong:  # of whatever the package does when it is imported
        said = f"{type(wrong).__name__}: {wrong}"
        raise error(f"{whose} can't be loaded from {point.value}: {said}") from wrong
    if not (isinstance(found, type) and issubclass(found, base)):
        raise error(f"{whose}: {point.value} is no subclass of rankc.{base.__name__}")
    if getattr(found, "name", None) != name:
        called = getattr(found, "name", None)
        raise error(f"{whose}: {point.value} is called {called!r}")
    return found


def _announced(group: str) -> EntryPoints:
    from importlib.metadata import entry_points  # slow to import, and seldom asked for

    return entry_points(group=group)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(":")[0]
