"""prune-and-distill: units go round by round, and what is left is finetuned to make up for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..optimizer.ir import Program
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.pruning.gradual import describe, prune_gradually
from ..optimizer.quality.verdict import Status
from ..optimizer.report.records import SiteRecord
from ..optimizer.training.checkpoint import Checkpoint
from ..optimizer.training.distill import Recovery, State
from ..optimizer.training.trainer import Trainer


@dataclass(frozen=True)
class PruneAndDistill(Pass):
    """Removes units in rounds and finetunes what is left against the original and the labels.

    Method: gradual structured pruning with layers' sparsities found anew in every round
    (2010.08655), finetuned by distillation (2502.17494 with ``Distill(auxiliary=True)``). It ends
    where the gate would not let it through on the rows that choose, and the last program that
    passed is kept; where the rows that prove refused that one, the next attempt goes half as far.
    Loses: what finetuning can't make good; judged under the budget.
    Requires: CANONICAL, and ``recover=``.
    Misses when: finetuning was not asked for, or no round passed.
    """

    name: ClassVar[str] = "prune-and-distill"
    exactness: ClassVar[Exactness] = Exactness.TRAINED
    idempotent: ClassVar[bool] = False

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips runs without rows to finetune on."""
        if ctx.resource(Recovery) is None or ctx.judge is None:
            raise Skip("finetuning was not asked for: give recover=")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Goes through the rounds, and takes the last program that passed."""
        recovery = ctx.resource(Recovery)
        assert recovery is not None
        assert ctx.judge is not None
        judge = ctx.judge.scaled(recovery.plan.share)
        trainer = Trainer(recovery, judge)
        begun = program.fingerprint()
        if begun not in recovery.reached:
            stage = f"{self.spec()} {judge.budget.spec()} {begun}"
            checkpoint = Checkpoint(
                recovery.plan.checkpoint,
                recovery.signature,
                stage,
                trust_code=recovery.trust_code,
            )
            recovery.reached[begun] = prune_gradually(program, ctx, trainer, checkpoint)
        states = [replace(s, verdict=judge(s.program)) for s in recovery.reached[begun]]
        offered = recovery.offered.setdefault(begun, {})
        refused = [went for attempt, went in offered.items() if attempt != judge.budget.spec()]
        reach = min((went // 2 for went in refused), default=len(states))
        passed = [state for state in states[:reach] if state.verdict.status is Status.PASS]
        ctx.report.notes += trainer.notes
        if recovery.soft:
            names = ", ".join(map(repr, recovery.soft))
            ctx.report.notes.append(
                f"recover= has no labels of {names}: finetuned on the teacher's scores alone"
            )
        if not passed:
            tried = f"; {states[0].verdict.reasons[0]}" if states else ""
            ctx.missed(f"no round of pruning and finetuning passed{tried}")
            return
        kept = passed[-1]
        offered[judge.budget.spec()] = states.index(kept) + 1
        _adopt(program, kept)
        ctx.report.sites.append(
            SiteRecord(
                "the whole model",
                "rounds",
                (len(states), len(passed)),
                f"round {states.index(kept) + 1} of {len(states)}",
                tuple(describe(state) for state in states),
                "the last that passed on the rows that choose",
            )
        )
        ctx.applied(
            f"removed {kept.flops:.0%} of the FLOPs and {kept.seconds:.0%} of the estimated time, "
            "and finetuned the rest"
        )


def _adopt(program: Program, state: State) -> None:
    """Takes the finetuned graph over; the contract stays the program's own."""
    program.restore(replace(program, module=state.program.clone().module))
