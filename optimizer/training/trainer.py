"""Finetuning a program, and taking units away as it learns: dense to sparse, round by round.

Each round removes the units of least worth for a share of the time, and finetunes what is left
against the original's scores and the labels. As long as the gate lets it through on the rows that
choose, the next round follows; how much goes where is found anew each time (adaptive dense to
sparse, 2010.08655, with structured units). The last state that passed is what comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

import torch
from torch import Tensor

from ..data.ragged import take
from ..ir.program import Program
from ..quality.verdict import Verdict
from .auxiliary_head import Head, attach, strip
from .distill import Recovery, Update, loss_of, losses
from .trainable import Trainable

#: Share of the learning rate a round ends with.
_LAST_LR = 0.05
#: A loss this many times the first one's, or none at all, is divergence.
_DIVERGED = 4.0
#: How often a round is tried again with a third of the rate, after it diverged.
_RETRIES = 2
#: Seconds between two updates.
_EVERY = 2.0
#: Steps between two states that can be rolled back to.
_KEEP_EVERY = 50


@dataclass
class Trainer:
    """Finetunes programs on the rows of one recovery.

    Attributes:
        recovery: What with.
        judge: On the rows that choose.
        notes: What went wrong, if anything did.
    """

    recovery: Recovery
    judge: Callable[[Program], Verdict]
    notes: list[str] = field(default_factory=list)
    _delta: dict[str, float] = field(default_factory=dict)

    def finetuned(self, program: Program, stage: str, number: int) -> Program:
        """One round: some passes over the rows, the learning rate falling.

        Where the loss is lost, the last good state comes back and the rest of the round is tried
        with a third of the rate.

        Raises:
            RecoverError: No gradient reaches any weight.
        """
        plan = self.recovery.plan
        started, heads = attach(program) if plan.auxiliary else (program, ())
        trainable = Trainable(started, tables=plan.tables)
        for head in heads:
            trainable.dampened[head.node] = plan.head_gradient
        lr, done = plan.lr, 0
        for attempt in range(_RETRIES + 1):
            done = self._steps(trainable, heads, stage, number, lr, done)
            if done >= self._total():
                break
            lr /= 3.0
            tried = "tried again with a third of the rate" if attempt < _RETRIES else "given up"
            self.notes.append(
                f"{stage}: the loss diverged after step {done} and was rolled back; {tried}"
            )
        made = trainable.trained()
        if heads:
            strip(made, heads)
        return replace(program, module=made.module)

    def verdict(self, program: Program) -> Verdict:
        """The choice rows' verdict; later updates tell it."""
        found = self.judge(program)
        self._delta = {task: delta.estimate for task, delta in found.delta_ne.items()}
        return found

    def _total(self) -> int:
        plan = self.recovery.plan
        return max(1, round(plan.epochs * len(self.recovery.rows) / plan.batch_size))

    def _steps(
        self,
        trainable: Trainable,
        heads: tuple[Head, ...],
        stage: str,
        number: int,
        lr: float,
        done: int,
    ) -> int:
        """Steps until the round is over or the loss is lost; how many are good."""
        total = self._total()
        leaves = list(trainable.leaves.values())
        optimizer = torch.optim.Adam(leaves, lr=lr)
        order = _Order(self.recovery, number)
        good, first, watch = (done, trainable.state()), None, _Watch(self, stage, total)
        for step in range(done, total):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1.0 - (1.0 - _LAST_LR) * step / total)
            batch = order.batch(step)
            if step == 0:
                trainable.check_learns(batch.features)
            loss = self._loss(trainable, heads, batch)
            optimizer.zero_grad()
            value = float(loss.detach())
            first = value if first is None else first
            if not isfinite(value) or value > _DIVERGED * max(first, 1e-3):
                trainable.restore(good[1])
                return good[0]
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            watch.saw(step + 1, value)
            if (step + 1) % _KEEP_EVERY == 0 and _is_finite(leaves):
                good = step + 1, trainable.state()
        if not _is_finite(leaves):
            trainable.restore(good[1])
            return good[0]
        return total

    def _loss(self, trainable: Trainable, heads: tuple[Head, ...], batch: _Batch) -> Tensor:
        plan, signature = self.recovery.plan, trainable.program.signature
        outputs = trainable(batch.features)
        if not heads:
            every = signature.served
            return losses(every, outputs, batch.labels, batch.teacher, plan.labels, batch.weights)
        headed = {head.task for head in heads}
        total = torch.zeros(())
        for task in signature.served:
            share = 1.0 if task.name in headed else plan.labels
            total = total + losses(
                (task,), outputs, batch.labels, batch.teacher, share, batch.weights
            )
        for head in heads:
            scores = outputs[head.own.output].squeeze(-1)
            total = total + plan.head_weight * loss_of(
                head.own,
                scores,
                batch.teacher[head.task],
                soft=True,
                scale=plan.label_scale,
                weights=batch.weights,
            )
        return total


def _is_finite(leaves: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves)


@dataclass(frozen=True)
class _Batch:
    features: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    weights: Tensor | None


class _Order:
    """The rows in an order of their own for every round and pass; the same each time."""

    def __init__(self, recovery: Recovery, number: int) -> None:
        self._recovery = recovery
        self._number = number
        self._per_pass = max(1, len(recovery.rows) // recovery.plan.batch_size)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        labels = recovery.rows.labels or {}
        self._labels = {k: torch.from_numpy(v).float() for k, v in labels.items()}

    def batch(self, step: int) -> _Batch:
        """The rows of one step."""
        recovery = self._recovery
        number, place = divmod(step, self._per_pass)
        if self._order[0] != number:
            seed = (recovery.seed * 1009 + self._number) * 1009 + number
            generator = torch.Generator().manual_seed(seed)
            self._order = number, torch.randperm(len(recovery.rows), generator=generator)
        size = recovery.plan.batch_size
        picked = self._order[1][place * size : (place + 1) * size]
        rows = recovery.rows
        return _Batch(
            take(rows.features, rows.ragged, picked),
            {name: values[picked] for name, values in self._labels.items()},
            {name: values[picked] for name, values in recovery.teacher.items()},
            None if rows.weights is None else torch.from_numpy(rows.weights)[picked].float(),
        )


class _Watch:
    """Tells the user how a round goes."""

    def __init__(self, trainer: Trainer, stage: str, total: int) -> None:
        self._trainer = trainer
        self._stage, self._total = stage, total
        self._started = self._told = time.monotonic()
        self._first: int | None = None
        self._sum, self._count = 0.0, 0

    def saw(self, step: int, loss: float) -> None:
        """A step was done."""
        self._first = step - 1 if self._first is None else self._first
        self._sum, self._count = self._sum + loss, self._count + 1
        now = time.monotonic()
        if now - self._told < _EVERY and step < self._total:
            return
        pace = (now - self._started) / max(step - self._first, 1)
        update = Update(
            self._stage,
            step,
            self._total,
            self._sum / self._count,
            dict(self._trainer._delta),
            pace * (self._total - step),
        )
        self._told, self._sum, self._count = now, 0.0, 0
        self._trainer.recovery.say(str(update))
        if self._trainer.recovery.plan.progress is not None:
            self._trainer.recovery.plan.progress(update)
