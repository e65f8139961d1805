"""fold-constants: compute once what depends on parameters alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.ir import Program, Rewriter
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replaces a subgraph of parameters and constants by a parameter holding its value.

    Exact because: the same operators run once, here, instead of at every request. What repeats
    elements by a stride of zero stays as it is, over a folded source: stored it would have other
    strides, by which torch chooses its kernels.
    Requires: CANONICAL.
    Misses when: the value would be larger than what it is made of and than ``max_bytes``.
    """

    name: ClassVar[str] = "fold-constants"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    max_bytes: int = 16 * 2**20

    def run(self, program: Program, ctx: PassContext) -> None:
        """Finds the last constant nodes and computes them."""
        rw = ctx.rewriter(program)
        constant = _constant_nodes(program)
        kept = _repeats(program, constant)
        folded = []
        for node in list(program.graph.nodes):
            frontier = (
                node in constant
                and node not in kept
                and node.op == "call_function"
                and any(user not in constant or user in kept for user in node.users)
            )
            value = node.meta.get("val")
            if not frontier or not isinstance(value, Tensor):
                continue
            size = value.numel() * value.element_size()
            if size > max(self.max_bytes, _bytes_read(node)):
                ctx.missed(f"its value of {size:,} bytes is larger than max_bytes", node)
                continue
            if not rw.site(node):
                continue
            folded.append(_fold(rw, node))
        if folded:
            ctx.applied(f"computed {len(folded)} constant expressions", *folded)


def _constant_nodes(program: Program) -> set[fx.Node]:
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "get_attr" or (_is_pure(node) and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
    return constant


def _repeats(program: Program, constant: set[fx.Node]) -> set[fx.Node]:
    """Constant nodes that repeat elements by a stride of zero, and that something else reads."""
    kept: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        value = node.meta.get("val")
        if node not in constant or not isinstance(value, Tensor):
            continue
        pairs = zip(value.shape, value.stride(), strict=True)
        repeated = any(size != 1 and stride == 0 for size, stride in pairs)
        if repeated and any(user not in constant or user in kept for user in node.users):
            kept.add(node)
    return kept


def _is_pure(node: fx.Node) -> bool:
    """Deterministic, and not a dequantize: codes must stay codes."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in target.tags and target.namespace != "rankc"
    return node.op == "call_function"


def _bytes_read(node: fx.Node) -> int:
    pending, seen, total = [node], {node}, 0
    while pending:
        for parent in pending.pop().all_input_nodes:
            if parent in seen:
                continue
            seen.add(parent)
            pending.append(parent)
            if parent.op == "get_attr":
                value = parent.meta["val"]
                total += value.numel() * value.element_size()
    return total


def _fold(rw: Rewriter, node: fx.Node) -> str:
    value = _evaluate(rw.program, node, {})
    # Strides are kept: torch chooses its kernels by them, and the outputs must be bit-equal.
    parameter = rw.parameter(f"folded_{node.name}", value.clone())
    rw.replace(node, parameter)
    return str(parameter.target)


def _evaluate(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        if node.op == "get_attr":
            known[node] = program.tensor(str(node.target))
        else:
            args, kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda n: _evaluate(program, n, known)
            )
            assert callable(node.target)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    return known[node]
