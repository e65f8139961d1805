"""place-precision: which linears take the target's low format, and how, within the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.cost import Cost, cost_of, elements_of
from ..optimizer.analysis.sites import inputs_of, linear_sites
from ..optimizer.context import PassContext, PlanJudge
from ..optimizer.formats import candidates, insert_qdq
from ..optimizer.ir import Precision, Program, Rewriter, set_precision, site_of, sweep
from ..optimizer.ir.pattern import dtype_of
from ..optimizer.passbase import Exactness, Pass, Skip
from ..optimizer.placement import Choice, place
from ..optimizer.report import SiteRecord
from ..optimizer.target import Target
from ..optimizer.verdict import Status

#: Rows of a site's input that are looked at.
_SAMPLE_ROWS = 4096
#: Plans tried before all linears stay as they are, and what each next one may damage of the last.
_PLANS, _NEXT_SHARE = 10, 0.6


@dataclass(frozen=True)
class PlacePrecision(Pass):
    """Decides, per linear, whether and how it takes the target's low format; writes facts only.

    Every candidate of every site is tried alone: the error of the linear's own output on
    calibration rows, and the damage to the scores on choice rows. The fastest set of candidates
    whose damages fit the budget together is found exactly (`optimizer/placement.py`), realised and
    judged; as long as the judgement disagrees with the prediction, a smaller damage is asked for.

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
        if not _coded(ctx.target):
            raise Skip(f"{ctx.target.name} has no format below fp32 for linears")
        if ctx.judge is None or not ctx.calibration:
            raise Skip("there is no data to choose formats on")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Tries every candidate, then places those that are fastest together."""
        assert ctx.judge is not None
        rw = ctx.rewriter(program)
        sites = [site for site in linear_sites(program) if self._worth_trying(site, ctx)]
        samples = inputs_of(program, sites, ctx.calibration, _SAMPLE_ROWS)
        options = [self._options(program, site, samples.get(site), ctx) for site in sites]
        open_to = [o for o in options if any(not t.refused for t in o.trials) and rw.site(o.site)]
        placed = _fit_together(program, ctx.judge, open_to)
        for option in options:
            chosen = placed.get(option.site)
            set_precision(option.site, chosen.precision if chosen else None)
            ctx.report.sites.append(option.record(chosen))
            if chosen is None and option in open_to:
                ctx.missed(_TOGETHER, option.site)
        if placed:
            formats = " or ".join(_coded(ctx.target))
            ctx.applied(f"placed {formats} on {len(placed)} of {len(options)} linears", *placed)

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

    def _options(
        self, program: Program, site: fx.Node, samples: Tensor | None, ctx: PassContext
    ) -> _Options:
        high = _seconds(site, None, "fp32", ctx)
        if samples is None or not bool((samples != 0).any()):
            return _Options(site, high, (), "calibration never feeds it")
        assert isinstance(site.args[1], fx.Node)
        weight = program.tensor(str(site.args[1].target))
        target, trials = ctx.target, []
        found = [
            candidate
            for number_format in _coded(target)
            for candidate in candidates(
                samples, weight, number_format, target.int8_activations, target.row_wise
            )
        ]
        for precision, error in found:
            seconds = _seconds(site, precision, precision.format, ctx)
            trials.append(
                self._try(program, _Trial(site, precision, error, seconds, samples), high, ctx)
            )
        return _Options(site, high, tuple(trials))

    def _try(self, program: Program, trial: _Trial, high: float, ctx: PassContext) -> _Trial:
        if trial.seconds >= high:
            reason = "estimated no faster than fp32 once quantizing its input is counted"
            return trial.refuse(reason)
        if trial.error > self.max_relative_error:
            return trial.refuse(f"its output would be off by {trial.error:.0%}")
        assert ctx.judge is not None
        alone = _realised(program, [trial])
        trial = trial.with_damage(ctx.judge.damages(alone))
        limits = ctx.judge.allowances()
        over = [task for task, d in trial.damage.items() if d > limits.get(task, float("inf"))]
        if over:
            task = over[0]
            return trial.refuse(
                f"alone it costs {task!r} {100 * trial.damage[task]:.4f} % NE, and "
                f"{100 * limits[task]:.4f} % is what the rows at hand can prove within the budget"
            )
        return trial


_TOGETHER = "over budget together with the others, and the dearest of them"


@dataclass(frozen=True)
class _Trial:
    """One candidate of one site.

    Attributes:
        site: The linear.
        precision: The candidate.
        error: Relative L2 error of the linear's own output.
        seconds: Estimated at the largest batch served, quantizing its input counted.
        samples: Real inputs of the linear.
        damage: ``{task: rise of NE}`` on soft labels, alone.
        refused: Why it can't be taken, or empty.
    """

    site: fx.Node
    precision: Precision
    error: float
    seconds: float
    samples: Tensor = field(compare=False, repr=False)
    damage: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""

    def refuse(self, reason: str) -> _Trial:
        """The same, refused."""
        return _Trial(
            self.site, self.precision, self.error, self.seconds, self.samples, self.damage, reason
        )

    def with_damage(self, damage: Mapping[str, float]) -> _Trial:
        """The same, measured."""
        return _Trial(
            self.site, self.precision, self.error, self.seconds, self.samples, dict(damage)
        )


@dataclass(frozen=True)
class _Options:
    """The candidates of one site, beside staying as it is.

    Attributes:
        site: The linear.
        high: Estimated seconds as it is.
        trials: The candidates.
        reason: Why there are none.
    """

    site: fx.Node
    high: float
    trials: tuple[_Trial, ...]
    reason: str = ""

    def choices(self) -> list[tuple[Choice, _Trial | None]]:
        """What may be taken here."""
        low = [(Choice(t.seconds, t.damage), t) for t in self.trials if not t.refused]
        return [(Choice(self.high, {}), None), *low]

    def record(self, chosen: _Trial | None) -> SiteRecord:
        """For the report: every candidate, and why this one."""
        shape = _weight_shape(self.site)
        described = tuple(
            {
                "format": t.precision.recipe,
                "relative_error": t.error,
                "estimated_seconds": t.seconds,
                "estimated_seconds_fp32": self.high,
                "damage": dict(t.damage),
                "refused": t.refused,
            }
            for t in self.trials
        )
        if chosen is not None:
            worst = max(chosen.damage.values(), default=0.0)
            reason = (
                f"alone ΔNE {100 * worst:+.4f} % on soft labels, "
                f"{self.high / max(chosen.seconds, 1e-12):.1f} times as fast by estimate"
            )
            return SiteRecord(
                site_of(self.site), "linear", shape, chosen.precision.recipe, described, reason
            )
        refused = [t.refused for t in self.trials]
        reason = self.reason or (refused[-1] if refused and all(refused) else _TOGETHER)
        return SiteRecord(site_of(self.site), "linear", shape, "fp32", described, reason)


def _fit_together(
    program: Program, judge: PlanJudge, options: Sequence[_Options]
) -> dict[fx.Node, _Trial]:
    """The fastest candidates that pass together, by site."""
    choices = [option.choices() for option in options]
    limits, before = dict(judge.allowances()), None
    for _ in range(_PLANS):
        plan = place([[choice for choice, _ in site] for site in choices], limits)
        if plan is None or plan == before:
            break
        before = plan
        picked = [site[index] for site, index in zip(choices, plan, strict=True)]
        trials = [trial for _, trial in picked if trial is not None]
        if not trials:
            break
        together = _realised(program, trials)
        if judge(together).status is Status.PASS:
            return {trial.site: trial for trial in trials}
        limits = _tighter(limits, trials, judge.damages(together))
    return {}


def _tighter(
    limits: Mapping[str, float], trials: Sequence[_Trial], measured: Mapping[str, float]
) -> dict[str, float]:
    """Limits below what the last plan was predicted to damage, and by how much it did more."""
    tighter = dict(limits)
    for task in measured:
        predicted = sum(max(trial.damage.get(task, 0.0), 0.0) for trial in trials)
        more = max(measured[task] / predicted, 1.0) if predicted > 0.0 else 1.0
        allowed = min(limits.get(task, float("inf")), predicted)
        tighter[task] = allowed * _NEXT_SHARE / more
    return tighter


def _realised(program: Program, trials: Sequence[_Trial]) -> Program:
    """A copy of the program with these candidates in it."""
    copy = program.clone()
    nodes = {node.name: node for node in copy.graph.nodes}
    rw = Rewriter(copy, "trial")
    for trial in trials:
        insert_qdq(rw, nodes[trial.site.name], trial.precision, trial.samples)
    sweep(copy)
    return copy


def _coded(target: Target) -> tuple[str, ...]:
    """The target's formats that are codes with a scale."""
    return tuple(f for f in target.formats if f in ("int8", "fp8"))


def _weight_shape(site: fx.Node) -> tuple[int, int]:
    assert isinstance(site.args[1], fx.Node)
    outputs, inputs = site.args[1].meta["val"].shape
    return int(outputs), int(inputs)


def _seconds(
    site: fx.Node, precision: Precision | None, number_format: str, ctx: PassContext
) -> float:
    """Roofline seconds at the largest batch, with what the candidate does around the linear."""
    batch = max(ctx.batch_sizes)
    cost = cost_of(site, batch)
    if precision is None:
        return cost.seconds(ctx.target, "fp32")
    source = site.args[0]
    assert isinstance(source, fx.Node)
    elements = elements_of(source, batch)
    # Each input is read as four bytes and written as one; for a row's own scale it is read twice.
    around = 5 * elements + (8 * elements if precision.column_scale else 0.0)
    around += 4 * elements if precision.rows else 0.0
    seconds = Cost(0.0, around).seconds(ctx.target, "fp32")
    if precision.kept:
        outputs, inputs = _weight_shape(site)
        share = len(precision.kept) / inputs
        picked = 8 * share * elements + 12 * elements / inputs * outputs
        seconds += Cost(cost.flops * share, picked).seconds(ctx.target, "fp32")
    return seconds + Cost(cost.flops, cost.nbytes / 4).seconds(ctx.target, number_format)
