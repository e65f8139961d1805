"""Programs as text, and the difference of two."""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, fx

from .facts import facts_of
from .program import Program


def text(program: Program) -> str:
    """The program, a node a line: ``%linear: float32[batch, 64] = linear(%x, …)  # over.0``."""
    lines = [f"program {program.form.value}"]
    lines += [f"  feature {feature.describe()}" for feature in program.signature]
    lines += [f"  {line(node)}" for node in program.graph.nodes if node.op != "placeholder"]
    return "\n".join(lines) + "\n"


def line(node: fx.Node) -> str:
    """One node as text."""
    args = ", ".join(
        [_argument(a) for a in node.args]
        + [f"{key}={_argument(value)}" for key, value in node.kwargs.items()]
    )
    if node.op == "output":
        return f"return {args}"
    if node.op == "get_attr":
        return f"%{node.name}: {value_type(node.meta.get('val'))} = parameter {node.target}"
    facts = facts_of(node)
    notes = [facts.site] if facts.site else []
    if facts.precision is not None:
        notes.append(facts.precision.format)
    if facts.made_by:
        notes.append(f"by {facts.made_by}")
    comment = f"  # {', '.join(notes)}" if notes else ""
    return f"%{node.name}: {value_type(node.meta.get('val'))} = {operator(node)}({args}){comment}"


def operator(node: fx.Node) -> str:
    """The operator's short name: ``linear``, ``rankc.quantize``."""
    name = str(node.target)
    if name.startswith("<built-in"):
        return name.split()[-1].rstrip(">")
    return name.removeprefix("aten.").removesuffix(".default")


def value_type(value: Any) -> str:
    """The dtype and shape of a value: ``float32[s0, 64]``."""
    if isinstance(value, Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(value_type(item) for item in value)})"
    return str(value)


def excerpt(node: fx.Node, around: int = 5) -> str:
    """The graph around ``node``, which is marked."""
    nodes = list(node.graph.nodes)
    index = nodes.index(node)
    lines = []
    for position in range(max(0, index - around), min(len(nodes), index + around + 1)):
        marker = ">>" if position == index else "  "
        lines.append(f"{marker} {line(nodes[position])}")
    return "\n".join(lines)


def diff(before: Program, after: Program) -> str:
    """What changed, as a unified diff of the two texts; empty when nothing did."""
    return "".join(
        difflib.unified_diff(
            text(before).splitlines(keepends=True),
            text(after).splitlines(keepends=True),
            "before",
            "after",
            n=1,
        )
    )


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(item) for item in value)}]"
    return repr(value)
