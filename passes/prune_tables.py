"""prune-tables: rows that are never or hardly looked up, stored as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import mixed_tables, table_sites
from ..optimizer.errors import PruneError
from ..optimizer.ir import Program, Rewriter
from ..optimizer.ir.facts import site_of
from ..optimizer.ir.program import Features
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.pruning.options import Option, choose
from ..optimizer.report.records import SiteRecord
from ..optimizer.report.report import readable_bytes
from ..optimizer.training.distill import Recovery

_aten = torch.ops.aten
_LOOK_UP = _aten.embedding.default
#: Lookups of a row that are tried as hardly any; none at all comes first.
_HARDLY = (0, 1, 3, 7, 15, 31, 63, 127)
#: Bytes of a row's place in the list of where rows went.
_PLACE = 4


@dataclass(frozen=True)
class PruneTables(Pass):
    """Replaces a table by its rows that are looked up, one row for the rest, and a list of places.

    Method: rows are counted in the data; those seen at most so often share their mean. What a table
    loses by that is measured on rows that weren't counted, and tables go where they give most bytes
    for it. Rows that go in the end were in none of the rows, counted or measured, any oftener.
    Loses: what the shared rows told apart, for traffic unlike the data; judged under the budget, of
    which it may use ``share``.
    Requires: CANONICAL.
    Misses when: there is no data, a table is read in another way too, or its rows are nearly all
    looked up. It is in no pipeline unless it is asked for: a lookup reads its row's place first.
    """

    name: ClassVar[str] = "prune-tables"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    idempotent: ClassVar[bool] = False
    share: float = 0.5
    least: float = 0.1

    def check(self, program: Program, ctx: PassContext) -> None:
        """Refuses shares it doesn't know, and skips runs without data."""
        if not 0.0 < self.share <= 1.0 or not 0.0 <= self.least < 1.0:
            raise PruneError(
                f"prune-tables: share and least are shares, found {self.share} and {self.least}"
            )
        if ctx.judge is None or not ctx.calibration:
            raise Skip("there is no data to count lookups in")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Counts, measures each table, and takes the cheapest until the share is used up."""
        judge = ctx.judge
        assert judge is not None
        tables = table_sites(program)
        for name in mixed_tables(program):
            ctx.missed(f"{name} is read in another way than by lookups too")
        half = len(judge.rows) // 2
        early, late = judge.rows.part(0, half), judge.rows.part(half, len(judge.rows))
        counted = [*ctx.calibration, *early.batches()]
        recovery = ctx.resource(Recovery)
        if recovery is not None:
            counted += list(recovery.rows.batches())
        seen = lookups(program, tables, counted)
        every = lookups(program, tables, late.batches())
        every = {name: count + seen[name] for name, count in every.items()}
        measure = judge.against(program, replace(late, labels=None))
        room = {task: self.share * room for task, room in judge.allowances().items()}
        options = []
        for name, nodes in tables.items():
            for hardly in _HARDLY:
                gone = _gone(seen[name], hardly)
                final = _gone(every[name], hardly)
                saved = _saved(program.tensor(name), final)
                if saved < self.least * program.tensor(name).nbytes:
                    continue
                lost = measure.damages(_without(program, tables, {name: gone}, seen))
                options.append(_Rows(name, saved, lost, hardly, final))
                if any(lost[task] > room[task] for task in lost):
                    break
            if not any(option.place == name for option in options):
                ctx.missed("nearly all of its rows are looked up, or they are short", nodes[0])

        def passes(chosen: Sequence[_Rows]) -> bool:
            gone = {option.place: option.gone for option in chosen}
            return judge.promises(_without(program, tables, gone, every))

        rw = ctx.rewriter(program)
        chosen = [o for o in choose(options, room, passes) if rw.site(tables[o.place][0])]
        _record(ctx, program, tables, options, chosen, every)
        for option in chosen:
            _apply(rw, tables[option.place], option.gone, every[option.place])
        if chosen:
            rows = sum(int(option.gone.sum()) for option in chosen)
            total = sum(len(program.tensor(name)) for name in tables)
            less = readable_bytes(sum(option.saved for option in chosen))
            ctx.applied(
                f"{rows:,} of {total:,} rows ({rows / max(rows, total):.0%}) share one row a table,"
                f" {less} less",
                *(tables[option.place][0] for option in chosen),
            )


@dataclass(frozen=True)
class _Rows(Option):
    """Rows of a table that may share one; ``saved`` is bytes.

    Attributes:
        hardly: Rows of at most so many lookups go.
        gone: ``[rows]``: which.
    """

    hardly: int
    gone: Tensor


def lookups(
    program: Program, tables: Mapping[str, Sequence[fx.Node]], batches: Iterable[Features]
) -> dict[str, Tensor]:
    """How often each row of each table is looked up, ``{table: [rows]}``."""
    counter = _Counter(program, tables)
    with torch.no_grad():
        for batch in batches:
            counter.run(*program.ordered(batch))
    return counter.counts


class _Counter(fx.Interpreter):
    def __init__(self, program: Program, tables: Mapping[str, Sequence[fx.Node]]) -> None:
        super().__init__(program.module)
        self._owner = {node: name for name, nodes in tables.items() for node in nodes}
        self.counts = {
            name: torch.zeros(len(program.tensor(name)), dtype=torch.int64) for name in tables
        }

    def run_node(self, n: fx.Node) -> object:
        """Counts the ids of lookups on the way."""
        name = self._owner.get(n)
        if name is not None:
            ids = self.env[n.args[1]].flatten()  # type: ignore[index]
            self.counts[name] += torch.bincount(ids, minlength=len(self.counts[name]))
        return super().run_node(n)


def _gone(counts: Tensor, hardly: int) -> Tensor:
    """Which rows go; one that would share with none stays."""
    gone = counts <= hardly
    return gone if int(gone.sum()) > 1 else torch.zeros_like(gone)


def _saved(table: Tensor, gone: Tensor) -> int:
    row = table[0].numel() * table.element_size()
    return int(gone.sum() > 0) * ((int(gone.sum()) - 1) * row - _PLACE * len(table))


def _without(
    program: Program,
    tables: Mapping[str, Sequence[fx.Node]],
    gone: Mapping[str, Tensor],
    counts: Mapping[str, Tensor],
) -> Program:
    """A copy whose rows that go have the shared row's values: it scores as the smaller one does."""
    trial = program.clone()
    rw = Rewriter(trial, "trial")
    for name, rows in gone.items():
        table = trial.tensor(name).clone()
        if bool(rows.any()):
            table[rows] = _shared(table, rows, counts[name])
        rw.set_value(name, table)
    return trial


def _shared(table: Tensor, gone: Tensor, counts: Tensor) -> Tensor:
    """The mean of the rows that go, by how often they are looked up, each once more than it is."""
    weights = (counts[gone] + 1).double()
    mean = (table[gone].double() * weights[:, None]).sum(0) / weights.sum()
    return mean.to(table.dtype)


def _apply(rw: Rewriter, nodes: Sequence[fx.Node], gone: Tensor, counts: Tensor) -> None:
    name = str(nodes[0].args[0].target)  # type: ignore[union-attr]
    table = rw.program.tensor(name)
    kept = ~gone
    places = torch.where(kept, torch.cumsum(kept.int(), 0) - 1, int(kept.sum()))
    smaller = torch.cat([table[kept], _shared(table, gone, counts)[None]])
    weight = rw.parameter(name, smaller)
    index = rw.parameter(f"{name}_places", places.to(torch.int32))
    for node in nodes:
        with rw.before(node):
            place = rw.emit(_aten.index.Tensor, index, [node.args[1]], like=node)
            wide = rw.emit(_aten._to_copy.default, place, dtype=torch.int64, like=node)
            new = rw.emit(_LOOK_UP, weight, wide, like=node)
        rw.replace(node, new)


def _record(
    ctx: PassContext,
    program: Program,
    tables: Mapping[str, list[fx.Node]],
    options: Sequence[_Rows],
    chosen: Sequence[_Rows],
    counts: Mapping[str, Tensor],
) -> None:
    for name, nodes in tables.items():
        own = [option for option in options if option.place == name]
        if not own:
            continue
        table = program.tensor(name)
        taken = next((option for option in chosen if option.place == name), None)
        left = len(table) - int(taken.gone.sum()) + 1 if taken else len(table)
        ctx.report.sites.append(
            SiteRecord(
                site_of(nodes[0]),
                "rows",
                (len(table), left),
                f"{left:,} of {len(table):,} rows" if taken else "all rows",
                tuple(
                    {
                        "at most": option.hardly,
                        "rows": int(option.gone.sum()),
                        "bytes": table.nbytes - int(option.saved),
                        "lookups": float(counts[name][option.gone].sum() / counts[name].sum()),
                        "damage": dict(option.lost),
                    }
                    for option in own
                ),
                f"rows looked up at most {taken.hardly} times share one: "
                f"ΔNE {100 * max(taken.lost.values()):+.4f} % on rows that weren't counted"
                if taken
                else "over budget on rows that weren't counted",
            )
        )
