"""eliminate: nothing computed twice, nothing stored twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.ir import Program, Rewriter, site_of
from ..optimizer.ir.program import content_hash
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext


@dataclass(frozen=True)
class Eliminate(Pass):
    """Replaces duplicate expressions and bit-identical parameters by one.

    Exact because: equal operators on equal inputs give equal outputs, and what nobody reads does
    nothing. Dead code is swept by the pipeline after every pass.
    Requires: CANONICAL.
    Misses when: an operator draws random numbers.
    """

    name: ClassVar[str] = "eliminate"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, program: Program, ctx: PassContext) -> None:
        """Visits the graph once, remembering every expression."""
        rw = ctx.rewriter(program)
        shared = _share_parameters(rw)
        if shared:
            ctx.applied(f"stored {len(shared)} bit-identical parameters once", *shared)
        merged = _merge_expressions(rw)
        if merged:
            ctx.applied(f"merged {len(merged)} duplicate expressions", *merged)


def _share_parameters(rw: Rewriter) -> list[str]:
    first: dict[bytes, fx.Node] = {}
    shared = []
    for node in rw.program.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        key = content_hash(rw.program.tensor(name))
        kept = first.setdefault(key, node)
        if kept is node:
            continue
        if kept.target != name:
            if not rw.site(node):
                continue
            shared.append(name)
        rw.replace(node, kept)
    return shared


def _merge_expressions(rw: Rewriter) -> list[str]:
    seen: dict[Any, fx.Node] = {}
    merged = []
    for node in list(rw.program.graph.nodes):
        if node.op != "call_function" or _is_random(node):
            continue
        key = (node.target, _key(node.args), _key(tuple(sorted(node.kwargs.items()))))
        kept = seen.setdefault(key, node)
        if kept is not node and rw.site(node):
            site = site_of(node)
            node.replace_all_uses_with(kept)
            rw.erase(node)
            merged.append(site)
    return merged


def _key(value: Any) -> Any:
    """A hashable stand-in that tells 1 from 1.0 and from True."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, fx.Node):
        return value
    return (type(value).__name__, repr(value))


def _is_random(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags
    )
