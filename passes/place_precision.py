"""place-precision: which linears take the target's low format, within the budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.cost import Cost, cost_of, elements_of
from ..optimizer.analysis.sites import inputs_of, linear_sites
from ..optimizer.context import PassContext
from ..optimizer.formats import choose_input, insert_qdq
from ..optimizer.ir import Precision, Program, Rewriter, set_precision, site_of, sweep
from ..optimizer.ir.pattern import dtype_of
from ..optimizer.passbase import Exactness, Pass, Skip
from ..optimizer.report import SiteRecord
from ..optimizer.verdict import Status, Verdict

#: Rows of a site's input that are looked at.
_SAMPLE_ROWS = 4096


@dataclass(frozen=True)
class PlacePrecision(Pass):
    """Decides, per linear, whether it takes the target's low format; writes facts only.

    Every site is tried alone, with the range that hurts its output least on calibration rows, and
    judged end to end on the choice rows. Sites are then taken in the order of damage per second
    saved, all that stay within the budget together; while they don't, the worst goes back.

    Exact because: it writes decisions, and `insert-quantize` realises them.
    Requires: CANONICAL.
    Misses when: there is no data, the target has no low format, a linear isn't fp32 or is too small
    to gain, the estimate says its format doesn't pay, or it alone is over the budget.
    """

    name: ClassVar[str] = "place-precision"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    max_relative_error: float = 0.2

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips targets without a format, and runs without data."""
        if not ctx.target.formats:
            raise Skip(f"{ctx.target.name} has no format below fp32 for linears")
        if ctx.judge is None or not ctx.calibration:
            raise Skip("there is no data to choose formats on")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Tries every site, then places the ones that fit together."""
        rw = ctx.rewriter(program)
        sites = [site for site in linear_sites(program) if self._worth_trying(site, ctx)]
        samples = inputs_of(program, sites, ctx.calibration, _SAMPLE_ROWS)
        trials = [self._try(program, site, samples.get(site), ctx) for site in sites]
        usable = sorted((t for t in trials if not t.refused), key=lambda t: t.price)
        placed = _fit_together(program, ctx, [t for t in usable if rw.site(t.site)])
        for trial in trials:
            chosen = trial in placed
            set_precision(trial.site, trial.precision if chosen else None)
            ctx.report.sites.append(_record(trial, chosen))
        if placed:
            ctx.applied(
                f"placed {ctx.target.formats[0]} on {len(placed)} of {len(trials)} linears",
                *(trial.site for trial in placed),
            )

    def _worth_trying(self, site: fx.Node, ctx: PassContext) -> bool:
        outputs, inputs = _weight_shape(site)
        dtype = dtype_of(site.args[1])
        if dtype is not torch.float32:
            reason = f"its weight is {str(dtype).removeprefix('torch.')}, not float32"
        elif min(outputs, inputs) < ctx.target.min_linear:
            reason = f"fewer than {ctx.target.min_linear} inputs or outputs: nothing to gain"
        else:
            return True
        ctx.missed(reason, site)
        ctx.report.sites.append(
            SiteRecord(site_of(site), "linear", (outputs, inputs), "fp32", (), reason)
        )
        return False

    def _try(
        self, program: Program, site: fx.Node, samples: Tensor | None, ctx: PassContext
    ) -> _Trial:
        number_format = ctx.target.formats[0]
        saved = _seconds_saved(site, number_format, ctx)
        if samples is None or not bool((samples != 0).any()):
            return _Trial(site, number_format, None, 0.0, None, saved, "calibration never feeds it")
        assert isinstance(site.args[1], fx.Node)
        weight = program.tensor(str(site.args[1].target))
        precision, error = choose_input(samples, weight, number_format, ctx.target.int8_activations)
        if saved <= 0:
            reason = "estimated no faster than fp32 once quantizing its input is counted"
            return _Trial(site, number_format, precision, error, None, saved, reason)
        if error > self.max_relative_error:
            reason = f"its output would be off by {error:.0%}"
            return _Trial(site, number_format, precision, error, None, saved, reason)
        verdict = _judge_with(program, ctx, [(site, precision, samples)])
        # Too few rows to tell is no refusal: what counts is the verdict on all sites together.
        failed = verdict.status is Status.FAIL
        refused = f"alone: {'; '.join(verdict.reasons)}" if failed else ""
        return _Trial(site, number_format, precision, error, verdict, saved, refused, samples)


@dataclass(frozen=True)
class _Trial:
    """One site in the low format, alone.

    Attributes:
        site: The linear.
        format: The format tried.
        precision: With the chosen range; None when there were no rows.
        error: Relative L2 error of the linear's own output.
        verdict: End to end, on the choice rows.
        saved: Estimated seconds saved at the largest batch served.
        refused: Why it can't be taken, or empty.
        samples: Real inputs of the linear.
    """

    site: fx.Node
    format: str
    precision: Precision | None
    error: float
    verdict: Verdict | None
    saved: float
    refused: str
    samples: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def damage(self) -> float:
        """The largest upper bound of ΔNE; a lucky loss counts as its distance from zero."""
        if self.verdict is None:
            return float("inf")
        return max(max(d.high, -d.low, 0.0) for d in self.verdict.delta_ne.values())

    @property
    def price(self) -> float:
        """Damage per second saved."""
        return self.damage / max(self.saved, 1e-12)


def _fit_together(program: Program, ctx: PassContext, usable: list[_Trial]) -> list[_Trial]:
    """As many of the cheapest trials as pass together."""
    placed = list(usable)
    while placed:
        formats = [(t.site, t.precision, t.samples) for t in placed if t.precision]
        verdict = _judge_with(program, ctx, formats)
        if verdict.status is Status.PASS:
            return placed
        worst = max(placed, key=lambda t: t.price)
        placed.remove(worst)
        ctx.missed("over budget together with the others, and the dearest of them", worst.site)
    return placed


def _judge_with(
    program: Program,
    ctx: PassContext,
    formats: list[tuple[fx.Node, Precision, Tensor | None]],
) -> Verdict:
    """The verdict on a copy of the program with these formats realised."""
    assert ctx.judge is not None
    trial = program.clone()
    nodes = {node.name: node for node in trial.graph.nodes}
    rw = Rewriter(trial, "trial")
    for site, precision, samples in formats:
        insert_qdq(rw, nodes[site.name], precision, samples)
    sweep(trial)
    return ctx.judge(trial)


def _weight_shape(site: fx.Node) -> tuple[int, int]:
    assert isinstance(site.args[1], fx.Node)
    outputs, inputs = site.args[1].meta["val"].shape
    return int(outputs), int(inputs)


def _seconds_saved(site: fx.Node, number_format: str, ctx: PassContext) -> float:
    """Roofline seconds saved at the largest batch, quantizing the input counted as traffic."""
    batch = max(ctx.batch_sizes)
    cost = cost_of(site, batch)
    source = site.args[0]
    assert isinstance(source, fx.Node)
    # Each input is read as four bytes and written as one.
    quantize = Cost(0.0, 5 * elements_of(source, batch)).seconds(ctx.target, "fp32")
    fast = Cost(cost.flops, cost.nbytes / 4).seconds(ctx.target, number_format)
    return cost.seconds(ctx.target, "fp32") - fast - quantize


def _record(trial: _Trial, chosen: bool) -> SiteRecord:
    candidate = {
        "format": trial.format,
        "relative_error": trial.error,
        "estimated_seconds_saved": trial.saved,
        "delta_ne": {
            task: {"estimate": d.estimate, "low": d.low, "high": d.high}
            for task, d in (trial.verdict.delta_ne.items() if trial.verdict else ())
        },
    }
    if chosen:
        assert trial.verdict is not None
        worst = max(trial.verdict.delta_ne.values(), key=lambda d: d.high)
        reason = f"alone ΔNE {100 * worst.low:+.4f} to {100 * worst.high:+.4f} %"
    else:
        reason = trial.refused or "over budget together with the others, and the dearest of them"
    return SiteRecord(
        site_of(trial.site),
        "linear",
        _weight_shape(trial.site),
        trial.format if chosen else "fp32",
        (candidate,),
        reason,
    )
