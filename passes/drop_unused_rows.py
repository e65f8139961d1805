"""drop-unused-rows: rows of tables that no id can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.analysis.sites import mixed_tables, table_sites
from ..optimizer.ir import Program, Rewriter
from ..optimizer.ir.operators import moves
from ..optimizer.ir.ops import BOUNDED
from ..optimizer.ir.pattern import argument, is_op
from ..optimizer.ir.traits import Move
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
#: What hands ids on as they are.
_VIEWS = Move.VIEW | Move.PART


@dataclass(frozen=True)
class DropUnusedRows(Pass):
    """Cuts a table off behind the last row that the graph can look up.

    Ids that are hashed into fewer buckets than the table has rows, or clamped, can't reach the
    rest. Rows that ids could reach and never do are another matter: `prune-tables` counts them.

    Exact because: every row that is looked up is still there, under the same id.
    Requires: CANONICAL.
    Misses when: something else than lookups reads the table.
    """

    name: ClassVar[str] = "drop-unused-rows"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, program: Program, ctx: PassContext) -> None:
        """Bounds the ids of every table."""
        rw = ctx.rewriter(program)
        dropped, rows = [], 0
        mixed = set(mixed_tables(program))
        for name in mixed:
            ctx.missed("something else than lookups reads it", name.removesuffix(".weight"))
        for name, lookups in table_sites(program).items():
            weight = program.tensor(name)
            bounds = [_bound(lookup.args[1]) for lookup in lookups]
            if weight.dim() != 2 or any(bound is None for bound in bounds):
                continue
            reached = max(bound for bound in bounds if bound is not None)
            if not 0 < reached < len(weight) or not rw.site(lookups[0]):
                continue
            rw.set_parameter(name, weight[:reached].clone())
            for lookup in lookups:
                _bound_to(reached, lookup, lookups, rw)
            dropped.append(name.removesuffix(".weight"))
            rows += len(weight) - reached
        if dropped:
            ctx.applied(f"dropped {rows:,} rows that no id reaches", *dropped, rows=rows)


def _bound(ids: object) -> int | None:
    """How many rows ids can reach: one more than the largest; None where nothing bounds them."""
    while isinstance(ids, fx.Node) and (moves(ids, _VIEWS) or is_op(ids, BOUNDED.op)):
        ids = ids.args[0]
    if not isinstance(ids, fx.Node):
        return None
    if is_op(ids, _aten.remainder.Scalar):
        limit = ids.args[1]
        return limit if isinstance(limit, int) and limit > 0 else None
    if is_op(ids, _aten.bitwise_and.Scalar):
        limit = ids.args[1]
        return limit + 1 if isinstance(limit, int) and limit >= 0 else None
    if is_op(ids, _aten.clamp.default, _aten.clamp_max.default):
        last = argument(ids, 1 if is_op(ids, _aten.clamp_max.default) else 2, "max")
        return last + 1 if isinstance(last, int) and last >= 0 else None
    return None


def _bound_to(rows: int, lookup: fx.Node, lookups: Sequence[fx.Node], rw: Rewriter) -> None:
    """Ids that are refused beyond the table are refused beyond what is left of it."""
    ids: Any = lookup.args[1]
    if not is_op(ids, BOUNDED.op) or any(user not in lookups for user in ids.users):
        return
    with rw.before(ids):
        values, limits, *more = ids.args
        made = rw.emit(BOUNDED.op, values, [rows] * len(limits), *more, like=ids)
    rw.replace(ids, made)
