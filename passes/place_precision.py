"""place-precision: which tables and linears take which low format, within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.cost import elements_of
from ..optimizer.analysis.ranges import Range, first_linears, value_ranges
from ..optimizer.analysis.sites import (
    inputs_of,
    linear_sites,
    mixed_tables,
    rows_read,
    table_sites,
)
from ..optimizer.errors import DataError
from ..optimizer.formats import UNPLACED, weight_width
from ..optimizer.ir import Precision, Program, Rewriter, set_precision, site_of, sweep
from ..optimizer.ir.pattern import dtype_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.precision.assumed import OPEN, Assumptions
from ..optimizer.precision.candidates import candidates
from ..optimizer.precision.kernel_times import Kernel, KernelTimes, Trial
from ..optimizer.precision.linear_formats import realise
from ..optimizer.precision.probe import TOGETHER, Candidate, Probe, SiteProbe, refuse, tighter
from ..optimizer.precision.probe_cache import Knowledge
from ..optimizer.precision.table_formats import (
    imitate_table,
    table_bytes,
    table_error,
    table_format,
)
from ..optimizer.report.records import SiteRecord
from ..optimizer.report.report import AssumedRange

#: Rows of a site's input that are looked at.
_SAMPLE_ROWS = 4096
#: Plans tried before everything stays as it is, and what each next one may damage of the last.
_PLANS, _NEXT_SHARE = 10, 0.6


@dataclass(frozen=True)
class PlacePrecision(Pass):
    """Decides, per table and linear, whether and how it takes a low format; writes facts only.

    Method: LoKA's Probe and Dispatch (2605.10886). Every candidate of every site is tried alone:
    the error of its own output on calibration rows, its time on the target, and the damage to the
    scores on choice rows. The set of candidates that costs least and whose damages fit the budget
    together is found exactly (`optimizer/precision/knapsack.py`), realised and judged; as long as
    the judgement disagrees with the prediction, a smaller damage is asked for.

    Exact because: it writes decisions; `quantize-tables` and `insert-quantize` realise them.
    Requires: CANONICAL.
    Misses when: there is no data, the target has no low format, a site isn't fp32 or is too small
    to gain, calibration says nothing about it, its format doesn't pay or gives NaN, or it alone is
    over the budget.
    """

    name: ClassVar[str] = "place-precision"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    places: ClassVar[bool] = True
    max_relative_error: float = 0.2

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips targets without a format, and runs without data."""
        if not ctx.target.formats and not ctx.target.table_formats:
            raise Skip(f"{ctx.target.name} has no format below fp32")
        if not ctx.calibration:
            raise Skip("there is no data to choose formats on")
        if ctx.judge is None:
            raise Skip("no part of the budget is left for lower formats")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Tries every candidate, then places those that are best together."""
        probe = self._probe(program, ctx)
        plan = _fit_together(program, ctx, probe)
        nodes = {node.name: node for node in program.graph.nodes}
        placed: dict[str, list[str]] = {}
        for site, chosen in zip(probe.sites, plan, strict=True):
            for name in site.nodes:
                set_precision(nodes[name], chosen.precision)
            record = site.record(chosen, probe.measured)
            if chosen.assumed is not None:
                ctx.report.assumed.append(chosen.assumed)
                record = replace(record, reason=f"{record.reason}; {chosen.assumed}")
            ctx.report.sites.append(record)
            if chosen.precision is not None:
                placed.setdefault(site.kind, []).append(site.name)
            elif record.reason == TOGETHER:
                ctx.missed(TOGETHER, site.name)
        ctx.report.probe = probe
        for kind, sites in placed.items():
            pairs = [p for p in zip(probe.sites, plan, strict=True) if p[0].kind == kind]
            formats = [c.precision.format for _, c in pairs if c.precision is not None]
            named = ", ".join(dict.fromkeys(formats))
            ctx.applied(f"placed {named} on {len(sites)} of {len(pairs)} {kind}s", *sites)

    def _probe(self, program: Program, ctx: PassContext) -> Probe:
        rw = ctx.rewriter(program)
        linears = [
            site
            for site in linear_sites(program)
            if self._worth_trying(site, ctx) and rw.site(site)
        ]
        probed = [*self._linears(program, linears, ctx), *self._tables(program, rw, ctx)]
        probe = Probe(tuple(probed), KernelTimes.of(ctx).measured, ctx.target.memory_weight)
        sites = []
        for number, site in enumerate(probe.sites, 1):
            ctx.say(f"probing site {number} of {len(probe.sites)}, {site.name}")
            tried = [self._tried(program, probe, site, c, ctx) for c in site.candidates[1:]]
            sites.append(replace(site, candidates=(site.candidates[0], *tried)))
        return replace(probe, sites=tuple(sites))

    def _worth_trying(self, site: fx.Node, ctx: PassContext) -> bool:
        outputs, inputs = _weight_shape(site)
        dtype = dtype_of(site.args[1])
        if not ctx.target.formats:
            return False
        if dtype is not torch.float32:
            reason = f"its weight is {str(dtype).removeprefix('torch.')}, not float32"
        elif min(outputs, inputs) < ctx.target.min_linear:
            reason = f"fewer than {ctx.target.min_linear} inputs or outputs: nothing to gain"
        else:
            return True
        ctx.missed(reason, site)
        ctx.report.sites.append(
            SiteRecord(site_of(site), "linear", (outputs, inputs), UNPLACED, (), reason)
        )
        return False

    def _linears(
        self, program: Program, linears: Sequence[fx.Node], ctx: PassContext
    ) -> list[SiteProbe]:
        """The linears with their candidates, timed; damage comes later."""
        samples = inputs_of(program, linears, ctx.calibration, _SAMPLE_ROWS)
        ranges = _Ranges.of(program, samples, ctx)
        options: dict[fx.Node, list[tuple[Precision | None, dict[str, float]]]] = {}
        trials: dict[tuple[fx.Node, Precision | None, int], Trial] = {}
        for site in linears:
            options[site] = [(None, {})]
            rows = samples.get(site)
            weight = program.tensor(str(site.args[1].target))  # type: ignore[union-attr]
            if rows is None or not bool((rows != 0).any()) or site in ranges.open:
                continue
            options[site] += candidates(
                rows,
                weight,
                ctx.target.formats,
                ctx.target.int8_activations,
                ranges.ends_at(site),
            )
            for precision, _ in options[site]:
                for batch in ctx.batch_sizes:
                    kernel = Kernel.of(site, precision, _rows_at(site, batch))
                    trials[site, precision, batch] = Trial(kernel, precision, rows, weight)
        KernelTimes.of(ctx).learn(tuple(trials.values()))
        found = []
        for site in linears:
            made = []
            for precision, errors in options[site]:
                seconds = {
                    batch: KernelTimes.of(ctx).seconds(
                        Kernel.of(site, precision, _rows_at(site, batch))
                    )
                    for batch in ctx.batch_sizes
                }
                nbytes = _weight_bytes(site, precision)
                assumed = ranges.at(site, precision)
                made.append(Candidate(precision, seconds, nbytes, errors, assumed=assumed))
            reason = ranges.open.get(site, f"{_rows(ctx)} never feeds it")
            found.append(
                SiteProbe(
                    site_of(site),
                    "linear",
                    _weight_shape(site),
                    (site.name,),
                    tuple(made),
                    reason if len(made) == 1 else "",
                    # Made-up rows say nothing of a bias's mean error.
                    samples.get(site) if ctx.resource(Assumptions) is None else None,
                )
            )
        return found

    def _tables(self, program: Program, rw: Rewriter, ctx: PassContext) -> list[SiteProbe]:
        """The tables with their candidates."""
        if not ctx.target.table_formats:
            return []
        for name in mixed_tables(program):
            ctx.missed("is read by something else than lookups", _table(name))
        found = []
        tables = table_sites(program)
        read = rows_read(program, [n for nodes in tables.values() for n in nodes], ctx.calibration)
        for name, lookups in tables.items():
            weight = program.tensor(name)
            if weight.dtype is not torch.float32 or weight.dim() != 2 or not rw.site(lookups[0]):
                continue
            made = []
            reason = _hardly_read([read[n] for n in lookups if n in read], len(weight), _rows(ctx))
            if reason:
                ctx.missed(reason, _table(name))
            for number_format in (None, *(ctx.target.table_formats if not reason else ())):
                if number_format and not table_format(number_format).fits(weight.shape[1]):
                    continue
                seconds = {
                    batch: sum(
                        KernelTimes.of(ctx).lookup_seconds(
                            elements_of(n, batch), number_format or UNPLACED
                        )
                        for n in lookups
                    )
                    for batch in ctx.batch_sizes
                }
                precision = Precision(number_format) if number_format else None
                errors = table_error(weight, number_format) if number_format else {}
                nbytes = table_bytes(len(weight), weight.shape[1], number_format or UNPLACED)
                made.append(Candidate(precision, seconds, nbytes, errors))
            nodes = tuple(node.name for node in lookups)
            shape = (int(weight.shape[0]), int(weight.shape[1]))
            found.append(SiteProbe(_table(name), "table", shape, nodes, tuple(made), reason))
        return found

    def _damage(
        self, program: Program, site: SiteProbe, candidate: Candidate, ctx: PassContext
    ) -> dict[str, float]:
        """What the candidate alone costs; measured once."""
        assert ctx.judge is not None
        knowledge = ctx.resource(Knowledge)
        known = knowledge.find(site.name, candidate.recipe) if knowledge else None
        if known is not None and set(ctx.judge.allowances()) <= set(known):
            return dict(known)
        found = dict(ctx.judge.damages(realised(program, [(site, candidate)])))
        if knowledge is not None:
            knowledge.learn(site.name, candidate.recipe, found)
        return found

    def _tried(
        self,
        program: Program,
        probe: Probe,
        site: SiteProbe,
        candidate: Candidate,
        ctx: PassContext,
    ) -> Candidate:
        """The candidate with its damage, or refused."""
        assert ctx.judge is not None
        if not all(math.isfinite(error) for error in candidate.errors.values()):
            return refuse(replace(candidate, errors={}), "its output would be NaN or Inf")
        if probe.cost(candidate) >= probe.cost(site.candidates[0]):
            how = "measured" if probe.measured else "estimated"
            return refuse(candidate, f"{how} to cost more than fp32, time and bytes together")
        if candidate.errors["relative"] > self.max_relative_error:
            reason = f"its output would be off by {candidate.errors['relative']:.0%}"
            return refuse(candidate, reason)
        try:
            candidate = replace(candidate, damage=self._damage(program, site, candidate, ctx))
        except DataError as error:
            return refuse(candidate, f"alone it spoils the scores: {error}")
        limits = ctx.judge.allowances()
        over = [task for task, d in candidate.damage.items() if d > limits.get(task, float("inf"))]
        if over:
            task = over[0]
            return refuse(
                candidate,
                f"alone it costs {task!r} {100 * candidate.damage[task]:.4f} % NE, and "
                f"{100 * limits[task]:.4f} % is what the rows at hand can prove within the budget",
            )
        return candidate


def _fit_together(program: Program, ctx: PassContext, probe: Probe) -> tuple[Candidate, ...]:
    """The candidates that cost least and pass together, one a site."""
    assert ctx.judge is not None
    as_it_is = tuple(site.candidates[0] for site in probe.sites)
    limits, before = dict(ctx.judge.allowances()), None
    for _ in range(_PLANS):
        plan = probe.solve(limits)
        if plan is None or plan in (before, as_it_is):
            break
        before = plan
        together = realised(program, list(zip(probe.sites, plan, strict=True)))
        if ctx.judge.promises(together):
            return plan
        limits = tighter(limits, plan, ctx.judge.damages(together), _NEXT_SHARE)
    return as_it_is


def realised(program: Program, plan: Sequence[tuple[SiteProbe, Candidate]]) -> Program:
    """A copy of the program that scores as with these candidates; tables are imitated."""
    copy = program.clone()
    nodes = {node.name: node for node in copy.graph.nodes}
    rw = Rewriter(copy, "trial")
    for site, candidate in plan:
        if candidate.precision is None:
            continue
        if site.kind == "table":
            imitate_table(rw, [nodes[n] for n in site.nodes], candidate.precision.format)
        else:
            realise(rw, nodes[site.nodes[0]], candidate.precision, site.samples)
    sweep(copy)
    return copy


@dataclass(frozen=True)
class _Ranges:
    """The static ranges of linears' inputs where they must be assumed.

    Attributes:
        samples: ``[rows, K]`` made-up inputs of the linears.
        known: Beyond which no input of theirs can be.
        open: Linears that read a feature of unknown scale, and how to have it known.
        assumed: What is assumed; None where there are real rows.
    """

    samples: Mapping[fx.Node, Tensor]
    known: Mapping[fx.Node, Range]
    open: Mapping[fx.Node, str]
    assumed: Assumptions | None

    @classmethod
    def of(cls, program: Program, samples: Mapping[fx.Node, Tensor], ctx: PassContext) -> _Ranges:
        """The ranges for a program; nothing where there are real rows."""
        assumed = ctx.resource(Assumptions)
        if assumed is None:
            return cls(samples, {}, {}, None)
        found = {
            node: f"reads {', '.join(map(repr, names))}, a {OPEN}; give inputs=, an example whose "
            "values are typical"
            for node, names in first_linears(program, assumed.unknown).items()
        }
        known = value_ranges(program, assumed.one_row, assumed.bounds)
        return cls(samples, known, found, assumed)

    def at(self, site: fx.Node, precision: Precision | None) -> AssumedRange | None:
        """The range that a precision has at a site; None where it needs, or assumes, none."""
        if self.assumed is None or precision is None or precision.input_scale == 0.0:
            return None
        return self._range(site, precision.format)

    def ends_at(self, site: fx.Node) -> Callable[[str], tuple[float, float]] | None:
        """Gives the range in a format; None where it isn't assumed."""
        if self.assumed is None:
            return None

        def ends(number_format: str) -> tuple[float, float]:
            found = self._range(site, number_format)
            return found.low, found.high

        return ends

    def _range(self, site: fx.Node, number_format: str) -> AssumedRange:
        assert self.assumed is not None
        known = self.known.get(site.args[0])  # type: ignore[arg-type]
        ends = known.ends if known is not None else (-math.inf, math.inf)
        return self.assumed.range_of(site_of(site), number_format, self.samples[site], ends)


def _rows(ctx: PassContext) -> str:
    """What a site is looked at on, in a word."""
    return "calibration" if ctx.resource(Assumptions) is None else "what was made up"


def _hardly_read(ids: Sequence[Tensor], rows: int, looked_at: str) -> str:
    """Why what is read of a table says nothing about it, or empty."""
    seen = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *ids]))
    if len(seen) == 0:
        return f"{looked_at} never looks it up"
    if len(seen) == 1 < rows:
        return f"{looked_at} only ever looks up its row {int(seen[0])}"
    return ""


def _rows_at(site: fx.Node, batch: int) -> float:
    """How many rows the linear sees at a batch size."""
    outputs, _ = _weight_shape(site)
    return elements_of(site, batch) / outputs


def _weight_shape(site: fx.Node) -> tuple[int, int]:
    assert isinstance(site.args[1], fx.Node)
    outputs, inputs = site.args[1].meta["val"].shape
    return int(outputs), int(inputs)


def _weight_bytes(site: fx.Node, precision: Precision | None) -> float:
    outputs, inputs = _weight_shape(site)
    width = weight_width(precision.format if precision else UNPLACED)
    kept = len(precision.kept) if precision else 0
    return outputs * (inputs * width + 4.0 * kept)


def _table(name: str) -> str:
    return name.removesuffix(".weight")
