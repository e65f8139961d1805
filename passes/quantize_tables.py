"""quantize-tables: stores the tables in the formats that were placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optimizer.analysis.sites import table_sites
from ..optimizer.ir import Program, facts_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext
from ..optimizer.precision.table_formats import realise_table


@dataclass(frozen=True)
class QuantizeTables(Pass):
    """Replaces placed fp32 tables by rows of 8 or 4 bits with a scale and a bias each, or fp16.

    Method: row-wise quantization of 2105.12676 and FBGEMM: x = s·q + b with a floating-point bias,
    so that a constant row, such as padding, is exact.
    Loses: half a step of each row's range; judged under the budget.
    Requires: CANONICAL.
    Misses when: no format was placed.
    """

    name: ClassVar[str] = "quantize-tables"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    realises: ClassVar[str] = "table"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Codes every placed table once."""
        rw = ctx.rewriter(program)
        done: dict[str, list[str]] = {}
        for name, lookups in table_sites(program).items():
            precision = facts_of(lookups[0]).precision
            if precision is None or not rw.site(lookups[0]):
                continue
            realise_table(rw, lookups, precision.format)
            done.setdefault(precision.format, []).append(name.removesuffix(".weight"))
        for number_format, names in done.items():
            ctx.applied(f"stored {len(names)} tables in {number_format}", *names)
