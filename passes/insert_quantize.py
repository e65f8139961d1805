"""insert-quantize: realises the formats that were placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optimizer.analysis.sites import inputs_of, linear_sites
from ..optimizer.ir import Program, facts_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext
from ..optimizer.precision.assumed import Assumptions
from ..optimizer.precision.carry import carry_nan
from ..optimizer.precision.linear_formats import realise


@dataclass(frozen=True)
class InsertQuantize(Pass):
    """Replaces placed linears by linears in the placed format.

    A static range becomes Q/DQ of the input with a DQ of the weight's codes; a range per row, and
    the 16-bit formats, an operator of the dialect. Codes of a static range have no NaN: a row that
    isn't finite there scores NaN all the same.

    Loses: the rounding of input and weight to the placed format; judged under the budget.
    Requires: CANONICAL.
    Misses when: no format was placed.
    """

    name: ClassVar[str] = "insert-quantize"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    realises: ClassVar[str] = "linear"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Realises the format of every placed site."""
        rw = ctx.rewriter(program)
        done = []
        sites = [node for node in linear_sites(program) if facts_of(node).precision is not None]
        # Made-up rows say nothing of a bias's mean error.
        samples = inputs_of(
            program, sites, ctx.calibration if ctx.resource(Assumptions) is None else ()
        )
        for node in sites:
            precision = facts_of(node).precision
            if precision is None or not rw.site(node):
                continue
            realise(rw, node, precision, samples.get(node))
            done.append(node)
        if done:
            carry_nan(rw)
            ctx.applied(f"put {len(done)} linears into their formats", *done)
