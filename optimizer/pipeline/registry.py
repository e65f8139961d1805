"""Names of passes and pipelines; a pass behind a name is imported when asked for."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect

from ..errors import PipelineError
from ..plugins import plugin, plugin_names, plugin_places
from .passbase import Pass
from .spec import is_name

#: The entry point group third-party packages announce passes under: ``my-pass = pkg.mod:MyPass``.
GROUP = "rankc.passes"

_REGISTERED: dict[str, type[Pass]] = {}


def register(pass_class: type[Pass]) -> type[Pass]:
    """Makes a pass known by its name; usable as a class decorator.

    Raises:
        PipelineError: The name is taken by another pass, or it is no pass.
    """
    if not (isinstance(pass_class, type) and issubclass(pass_class, Pass)):
        raise PipelineError(f"{pass_class!r} is no subclass of rankc.Pass")
    name = _check(pass_class)
    place = f"{pass_class.__module__}:{pass_class.__qualname__}"
    taken = _REGISTERED.get(name, pass_class)
    plugged = plugin_places(GROUP, name)
    if name in _builtin() or taken is not pass_class or plugged - {place}:
        raise PipelineError(f"a pass called {name!r} exists already")
    _REGISTERED[name] = pass_class
    return pass_class


def _check(pass_class: type[Pass]) -> str:
    """The name of a pass that can be named in a pipeline, and made from it."""
    name = getattr(pass_class, "name", None)
    if not isinstance(name, str):
        raise PipelineError(f"{pass_class.__name__} has no name")
    if not is_name(name) or name == "fixpoint" or name in named_pipelines():
        raise PipelineError(
            f"{pass_class.__name__} can't be called {name!r}: a name is lower-case words joined "
            "by dashes, and no pipeline's"
        )
    if inspect.isabstract(pass_class):
        raise PipelineError(f"{pass_class.__name__} has no run method")
    for option in dataclasses.fields(pass_class):
        if option.default is dataclasses.MISSING:
            raise PipelineError(f"option {option.name!r} of {name} has no default")
    return name


def pass_names() -> list[str]:
    """Every pass that can be named in a pipeline."""
    return sorted({*_builtin(), *_REGISTERED, *plugin_names(GROUP)})


def pass_class(name: str) -> type[Pass]:
    """The pass called ``name``.

    Raises:
        PipelineError: There is none; the nearest names are given. Or a plug-in that doesn't load.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _builtin():
        module, _, attribute = _builtin()[name].partition(":")
        ours: type[Pass] = getattr(importlib.import_module(module), attribute)
        return ours
    found = plugin(GROUP, name, "pass", Pass, PipelineError)  # type: ignore[type-abstract]
    if found is None:
        known = [*pass_names(), *named_pipelines()]
        near = difflib.get_close_matches(name, known, n=3) or known
        raise PipelineError(f"no pass is called {name!r}; did you mean {' or '.join(near)}?")
    _check(found)
    return found


def named_pipelines() -> dict[str, str]:
    """Named pipelines as text."""
    pipelines: dict[str, str] = importlib.import_module("rankc.passes.pipelines").PIPELINES
    return pipelines


def _builtin() -> dict[str, str]:
    table: dict[str, str] = importlib.import_module("rankc.passes").PASSES
    return {name: f"rankc.passes.{place}" for name, place in table.items()}
