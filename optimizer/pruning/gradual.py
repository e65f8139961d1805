"""Taking units away as a program learns: dense to sparse, round by round."""

from __future__ import annotations

from typing import Any

from ..errors import PruneError
from ..ir.program import Program
from ..pipeline.passbase import PassContext
from ..quality.verdict import Status, Verdict
from ..training.checkpoint import Checkpoint
from ..training.distill import State
from ..training.trainer import Trainer
from .allocation import Goal, allocate, too_little
from .channels import channels
from .importance import by_effect
from .moments import input_moments
from .surgery import without

#: The least share of the time a round is worth, and what counts as having reached a share.
_LEAST_STEP, _CLOSE = 0.06, 1e-6


#: Rows that tell what units are worth.
_WORTH_ROWS = 4096


def prune_gradually(
    program: Program, ctx: PassContext, trainer: Trainer, checkpoint: Checkpoint
) -> list[State]:
    """Removes and finetunes, round by round; every state that was reached, the last ones best.

    Raises:
        PruneError: The share of the FLOPs that was asked for can't go.
        RecoverError: The program can't be trained.
    """
    plan = trainer.recovery.plan
    states: list[State] = []
    current, seconds, flops, step = program, 1.0, 1.0, plan.step
    for number in range(plan.rounds):
        resumed = checkpoint.load(number)
        if resumed is None:
            smaller, kept = _smaller(current, ctx, trainer, flops, step)
            if smaller is None or kept is None:
                break
            left = seconds * (1.0 - kept[0]), flops * (1.0 - kept[1])
            tries = 1 if plan.flops > 1.0 - left[1] + _CLOSE else 1 + plan.patience
            made = _finetuned(smaller, trainer, number, 1.0 - left[0], tries)
            checkpoint.save(number, made, {"seconds": left[0], "flops": left[1]})
        else:
            made, left = resumed[0], (resumed[1]["seconds"], resumed[1]["flops"])
        states.append(State(made, trainer.verdict(made), 1.0 - left[0], 1.0 - left[1]))
        if plan.flops and 1.0 - left[1] >= plan.flops - _CLOSE:
            break
        if plan.flops or states[-1].verdict.status is Status.PASS:
            current, (seconds, flops) = made, left
        elif step / 2.0 >= _LEAST_STEP:
            step /= 2.0  # once more from the last that passed, less far
        else:
            break
    return states


def _smaller(
    current: Program, ctx: PassContext, trainer: Trainer, flops: float, step: float
) -> tuple[Program | None, tuple[float, float] | None]:
    """The next program, and the shares of time and FLOPs that go this time."""
    wanted = trainer.recovery.plan.flops
    found = channels(current)
    rows = [trainer.recovery.rows.spread(_WORTH_ROWS).features]
    moments = input_moments(current, rows)
    worth = by_effect(current, found, rows, moments)
    goes = 1.0 - (1.0 - wanted) / flops if wanted else float("inf")
    plan = allocate(found, worth, Goal(seconds=step, flops=goes, evidence=False), ctx)
    if wanted and plan.saved[0] < step:
        reason = too_little(found, plan, goes, max(ctx.batch_sizes))
        if reason:
            raise PruneError(reason)
    if not plan.steps or (not wanted and plan.saved[0] < step / 4):
        return None, None
    return without(current, found, plan.removal(found), moments), plan.saved


def _finetuned(smaller: Program, trainer: Trainer, number: int, gone: float, tries: int) -> Program:
    """Finetuned until it passes, as often as may be tried; the best on the rows that choose.

    What passes as it is stays so: finetuning can only move its scores further from the original's.
    """
    best, verdict = smaller, trainer.verdict(smaller)
    current = smaller
    for again in range(tries):
        if verdict.status is Status.PASS:
            break
        stage = f"round {number + 1}, {gone:.0%} of the time gone" + (", again" if again else "")
        current = trainer.finetuned(current, stage, number * (tries + 1) + again)
        found = trainer.verdict(current)
        if _worst(found) < _worst(verdict):
            best, verdict = current, found
    return best


def _worst(verdict: Verdict) -> float:
    """The largest upper bound of ΔNE."""
    return float("inf") if verdict.worst_delta_ne is None else verdict.worst_delta_ne


def describe(state: State) -> dict[str, Any]:
    """A state as plain values, for the report."""
    deltas = {task: delta.to_json() for task, delta in state.verdict.delta_ne.items()}
    return {
        "seconds": state.seconds,
        "flops": state.flops,
        "status": state.verdict.status.value,
        "delta_ne": deltas,
    }
