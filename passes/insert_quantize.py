"""insert-quantize: realises the formats that were placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optimizer.analysis.sites import inputs_of, linear_sites
from ..optimizer.context import PassContext
from ..optimizer.formats import insert_qdq
from ..optimizer.ir import Program, facts_of
from ..optimizer.passbase import Exactness, Pass


@dataclass(frozen=True)
class InsertQuantize(Pass):
    """Replaces a placed linear's input by Q/DQ of it, and its weight by codes and a DQ.

    Loses: the rounding of input and weight to the placed format; judged under the budget.
    Requires: CANONICAL.
    Misses when: no format was placed.
    """

    name: ClassVar[str] = "insert-quantize"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    def run(self, program: Program, ctx: PassContext) -> None:
        """Inserts Q/DQ at every placed site."""
        rw = ctx.rewriter(program)
        done = []
        sites = [node for node in linear_sites(program) if facts_of(node).precision is not None]
        samples = inputs_of(program, sites, ctx.calibration)
        for node in sites:
            precision = facts_of(node).precision
            if precision is None or not rw.site(node):
                continue
            insert_qdq(rw, node, precision, samples.get(node))
            done.append(node)
        if done:
            ctx.applied(f"inserted Q/DQ around {len(done)} linears", *done)
