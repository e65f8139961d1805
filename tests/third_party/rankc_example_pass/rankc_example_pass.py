"""A pass for rankc that lives in a package of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import rankc
import torch


@dataclass(frozen=True)
class Example(rankc.Pass):
    """Replaces ``relu(x)`` by ``clamp_min(x, 0)``.

    Exact because: both are max(x, 0).
    Requires: CANONICAL.
    Misses when: ``max_sites`` are done.
    """

    name: ClassVar[str] = "example"
    exactness: ClassVar[rankc.Exactness] = rankc.Exactness.EXACT
    max_sites: int = 100

    def run(self, program: rankc.Program, ctx: Any) -> None:
        """Visits every relu."""
        aten = torch.ops.aten
        rw = ctx.rewriter(program)
        done = []
        for node in program.graph.find_nodes(op="call_function", target=aten.relu.default):
            if len(done) == self.max_sites:
                ctx.missed("max_sites are done", node)
                continue
            if not rw.site(node):
                continue
            with rw.before(node):
                made = rw.emit(aten.clamp_min.default, node.args[0], 0.0, like=node)
            rw.replace(node, made)
            done.append(made)
        if done:
            ctx.applied(f"clamped {len(done)} relus", *done)
