"""What a model does to ids before it looks them up."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from .operators import lookup_of, traits_of
from .pattern import parameter_name
from .traits import Values

_ARITHMETIC = {
    Values.REMAINDER: "modulo",
    Values.FMOD: "modulo",
    Values.CLAMPED: "clamp to",
    Values.ADD: "plus",
    Values.SUBTRACT: "minus",
    Values.MULTIPLY: "times",
    Values.XOR: "xor",
    Values.AND: "and",
    Values.SHIFT_RIGHT: "shifted right by",
    Values.SHIFT_LEFT: "shifted left by",
    Values.FLOOR_DIVIDE: "over",
}


def hashing_of(placeholder: fx.Node) -> tuple[str, ...]:
    """Each way from a feature to a table in words, such as ``modulo 1000``, sorted.

    Ids that are looked up as they are have the way ``nothing``; a feature that isn't looked up has
    none.
    """
    return tuple(sorted(set(_ways(placeholder, (), set()))))


def _ways(node: fx.Node, way: tuple[str, ...], seen: set[fx.Node]) -> list[str]:
    found: list[str] = []
    for user in node.users:
        if user.op != "call_function" or user in seen:
            continue
        places = lookup_of(user)
        if places is not None and user.args[places[1]] is node:
            found.append(", ".join(way) or "nothing")
        value = user.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else (value,)
        if any(isinstance(v, Tensor) and not v.is_floating_point() for v in values):
            seen.add(user)
            word = _ARITHMETIC.get(traits_of(user.target).values)
            step = () if word is None else (f"{word} {_constants(user, node)}",)
            found += _ways(user, (*way, *step), seen)
    return found


def _constants(node: fx.Node, source: fx.Node) -> str:
    """The operator's other arguments in words."""
    others = [arg for arg in (*node.args, *node.kwargs.values()) if arg is not source]
    module: Any = node.graph.owning_module
    return " ".join(_word(module, arg) for arg in others)


def _word(module: Any, value: Any) -> str:
    name = parameter_name(value)
    if name is None:
        return str(value)
    for part in name.split("."):
        module = getattr(module, part)
    return str(module.tolist()) if module.numel() <= 8 else f"a constant {list(module.shape)}"
