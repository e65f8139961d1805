"""prune-channels: hidden units, ranks, heads, experts and fields that scores hardly need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..optimizer.errors import PruneError
from ..optimizer.ir import Program
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.pruning.allocation import Goal, Plan, allocate, allocate_uniformly, too_little
from ..optimizer.pruning.channels import Channels, channels
from ..optimizer.pruning.importance import Worth, by_effect, by_magnitude
from ..optimizer.pruning.moments import Moments, input_moments
from ..optimizer.pruning.surgery import remove, without
from ..optimizer.report.records import Kind, SiteRecord

#: Plans that are tried, and how much more damage than is left they are predicted to do at most:
#: fitting the linears anew on what stays makes up for most of it.
_PLANS, _REACH = 8, 16.0


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Removes hidden units, cross ranks, heads, experts, fields and table columns from a program.

    Method: what can go together is found on the graph (`optimizer/pruning/channels.py`), what it
    is worth by first-order effects on each row's score (Molchanov, 1906.10771), or by taking it out
    where it is large. Units go in the steps the kernels like, those of least damage for the time
    they save first, so that every layer gets a sparsity of its own. What goes is taken to have
    stayed at its mean: its share moves into the bias of whoever read it.
    Loses: what the units told apart; judged under the budget, of which it may use ``share``.
    Requires: CANONICAL.
    Misses when: there is no data, nothing saves time within the budget, or an operator in between
    needs all of a value.

    Without finetuning this is what a trained model has to spare. ``flops`` asks for a share of the
    FLOPs to go whatever it costs, which only finetuning makes good (`prune-and-distill`);
    ``importance`` and ``allocation`` are there for comparison with the baselines.
    """

    name: ClassVar[str] = "prune-channels"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    idempotent: ClassVar[bool] = False
    share: float = 0.5
    flops: float = 0.0
    importance: str = "effect"
    allocation: str = "automatic"
    pattern: str = "units"
    least: float = 0.02

    def check(self, program: Program, ctx: PassContext) -> None:
        """Refuses options it doesn't know, and runs without data."""
        if self.importance not in ("effect", "magnitude"):
            raise PruneError(f"importance is effect or magnitude, found {self.importance!r}")
        if self.allocation not in ("automatic", "uniform"):
            raise PruneError(f"allocation is automatic or uniform, found {self.allocation!r}")
        if self.pattern == "2:4":
            raise PruneError(
                f"two of four weights at zero save nothing on {ctx.target.name}: none of its "
                "kernels was measured to be faster on such weights than on all of them. Leave "
                "pattern= out: whole units make every kernel faster."
            )
        if self.pattern != "units":
            raise PruneError(f"pattern is units or 2:4, found {self.pattern!r}")
        by_target = self.importance == "magnitude" or self.allocation == "uniform"
        if by_target and not self.flops:
            raise PruneError("magnitudes and uniform shares know no budget: give flops=")
        if ctx.judge is None or not ctx.calibration:
            raise Skip("there is no data to tell what units are worth")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Plans, tries, and removes what passed."""
        found = channels(program)
        for refusal in found.refused:
            ctx.remark(Kind.ANALYSIS, f"its {refusal.what} can't go: {refusal.why}", refusal.site)
        rows = _rows(ctx)
        moments = input_moments(program, rows)
        worth = (
            by_effect(program, found, rows, moments)
            if self.importance == "effect"
            else by_magnitude(program, found)
        )
        if self.flops:
            plan = self._asked_for(found, worth, ctx)
        else:
            plan = self._affordable(program, found, worth, moments, ctx)
        if plan.saved[0] < self.least:
            ctx.missed("no unit saves time within the budget")
            return
        rw = ctx.rewriter(program)
        steps = tuple(step for step in plan.steps if rw.site(found.groups[step.group].site))
        plan = replace(plan, steps=steps)
        if steps:
            remove(rw, found, plan.removal(found), moments)
            _record(ctx, found, worth, plan)

    def _asked_for(self, found: Channels, worth: Worth, ctx: PassContext) -> Plan:
        if self.allocation == "uniform":
            plan = allocate_uniformly(found, worth, self.flops, ctx)
        else:
            plan = allocate(found, worth, Goal(flops=self.flops), ctx)
        reason = too_little(found, plan, self.flops, max(ctx.batch_sizes))
        if reason:
            raise PruneError(reason)
        return plan

    def _affordable(
        self,
        program: Program,
        found: Channels,
        worth: Worth,
        moments: Mapping[str, Moments],
        ctx: PassContext,
    ) -> Plan:
        """As many steps as pass, found by halving between one that does and one that doesn't."""
        assert ctx.judge is not None
        room = {task: self.share * room for task, room in ctx.judge.allowances().items()}
        reach = {task: _REACH * limit for task, limit in room.items()}
        plan = allocate(found, worth, Goal(reach), ctx)
        passing, failing = 0, len(plan.steps) + 1
        trial = plan.within(room)
        for _ in range(_PLANS):
            if passing < trial < failing:
                within = self._passes(program, found, plan.first(trial), moments, room, ctx)
                passing, failing = (trial, failing) if within else (passing, trial)
            trial = (passing + failing) // 2
        return plan.first(passing)

    def _passes(
        self,
        program: Program,
        found: Channels,
        plan: Plan,
        moments: Mapping[str, Moments],
        room: Mapping[str, float],
        ctx: PassContext,
    ) -> bool:
        assert ctx.judge is not None
        trial = without(program, found, plan.removal(found), moments)
        damages = ctx.judge.damages(trial)
        if any(damages[task] > room[task] for task in room.keys() & damages):
            return False
        return ctx.judge.promises(trial)


def _rows(ctx: PassContext) -> list[Mapping[str, Tensor]]:
    """Rows that tell what units are worth: the first for calibration, and some of all choice."""
    assert ctx.judge is not None
    return [next(iter(ctx.calibration)), ctx.judge.sample()]


def _record(ctx: PassContext, found: Channels, worth: Worth, plan: Plan) -> None:
    for index, units in plan.units.items():
        group = found.groups[index]
        alone = {
            task: float(moves[:, worth.units(index)][:, list(units)].sum(1).square().mean())
            for task, moves in worth.moves.items()
        }
        left = group.units - len(units)
        ctx.report.sites.append(
            SiteRecord(
                group.site,
                "units",
                (group.units, left),
                f"{left} of {group.units} {group.what}",
                ({"removed": list(units), "damage": alone},),
                f"alone ΔNE {100 * max(alone.values()):+.4f} % as estimated",
            )
        )
    seconds, flops = plan.saved
    ctx.applied(
        f"removed {sum(map(len, plan.units.values()))} units in {len(plan.units)} places: "
        f"{flops:.0%} of the FLOPs, {seconds:.0%} of the estimated time",
        *(found.groups[i].site for i in plan.units),
    )
