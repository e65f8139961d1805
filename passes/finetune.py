"""finetune: the program as it is, number formats and all, learns to score as the original does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..optimizer.ir import Program
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.training.distill import Recovery
from ..optimizer.training.trainer import Trainer


@dataclass(frozen=True)
class Finetune(Pass):
    """Finetunes the program against the original's scores and the labels, codes included.

    Method: distillation, with straight-through estimators where values are rounded to codes
    (`optimizer/training/trainable.py`).
    Loses: nothing it is meant to; judged under the budget, and kept only if ΔNE got smaller.
    Requires: CANONICAL, and ``recover=``.
    Misses when: finetuning was not asked for, or didn't help.
    """

    name: ClassVar[str] = "finetune"
    exactness: ClassVar[Exactness] = Exactness.TRAINED
    idempotent: ClassVar[bool] = False

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips runs without rows to finetune on."""
        if ctx.resource(Recovery) is None or ctx.judge is None:
            raise Skip("finetuning was not asked for: give recover=")

    def run(self, program: Program, ctx: PassContext) -> None:
        """One round over the rows; kept if the labelled rows that choose like it better."""
        recovery = ctx.resource(Recovery)
        assert recovery is not None
        assert ctx.judge is not None
        trainer = Trainer(recovery, ctx.judge)
        before = trainer.verdict(program)
        tuned = trainer.finetuned(program, "finetuning", 0)
        after = trainer.verdict(tuned)
        ctx.report.notes += trainer.notes
        lost = [max(d.estimate for d in v.delta_ne.values()) for v in (before, after)]
        said = f"ΔNE {100 * lost[0]:+.4f} % before, {100 * lost[1]:+.4f} % after"
        if not lost[1] < lost[0]:
            ctx.missed(f"finetuning didn't help: {said}")
            return
        program.restore(replace(program, module=tuned.module))
        ctx.applied(f"finetuned: {said}")
