"""`Stream`: pruning that follows the data, window after window in the order of time.

A model that is trained on with every window changes what its units are worth, and so does the
traffic. Each window is scored before anything learns from it. Then, if the units that would go now
differ enough from those that are gone, or the loss beside the dense model's grew, they are chosen
anew (adaptive dense to sparse, 2010.08655). Then all learn from the window. The dense model tells
which units go, and what comes back has its weights and its optimizer's averages: on a planted shift
units that came back as they had gone stayed 12 % of NE behind, these 1.5 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.ragged import take
from ..data.rows import Rows, collect
from ..errors import DataError, PruneError, RecoverError
from ..ir.program import Features, Program
from ..pipeline.passbase import PassContext
from ..pipeline.pipeline import Pipeline
from ..quality.scores import task_logits
from ..target import Target
from ..training.distill import loss_of
from ..training.trainable import Trainable
from .allocation import Goal, allocate, too_little
from .channels import Channels, channels
from .importance import Worth, by_effect
from .moments import input_moments
from .removal import Removal
from .surgery import without

#: Rows of a window that tell what units are worth.
_WORTH_ROWS = 2048


@dataclass(frozen=True)
class Window:
    """What a window told, before anything learned from it.

    Attributes:
        number: From 1.
        rows: How many.
        loss: ``{"dense" | "fixed" | "adaptive": {task: mean log loss}}``.
        moved: Share of the units gone that would be others now.
        replanned: Whether the adaptive model's units were chosen anew after this window.
        within: Whether the adaptive model's NE was within the budget of the dense one's.
    """

    number: int
    rows: int
    loss: Mapping[str, Mapping[str, float]]
    moved: float
    replanned: bool
    within: bool

    def delta_ne(self, arm: str) -> float:
        """The largest rise of a task's NE over the dense model's."""
        dense, own = self.loss["dense"], self.loss[arm]
        return max(own[task] / dense[task] - 1.0 for task in dense)


@dataclass(frozen=True)
class Stream:
    """How a pruned model follows time-ordered windows.

    Attributes:
        flops: Share of the FLOPs that is gone.
        budget: Largest rise of NE over the dense model in a window that counts as within.
        target: What units' time is estimated on.
        moved: Share of the units gone that must be others before they are chosen anew.
        worse: Or: rise of ΔNE since they were chosen.
        wait: Windows that pass at least between two choices.
        lr: Adam's learning rate, of every window.
        batch_size: Rows a step.
        epochs: Passes over each window.
        seed: For the order of the rows.
    """

    flops: float = 0.5
    budget: float = 1e-3
    target: str = "cpu-fp32"
    moved: float = 0.2
    worse: float = 1e-3
    wait: int = 1
    lr: float = 5e-4
    batch_size: int = 1024
    epochs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.flops < 1.0:
            raise PruneError(f"Stream: flops is a share between 0 and 1, found {self.flops}")

    def follow(self, program: Program, windows: Iterable[tuple[Any, Sequence[Batch]]]) -> Followed:
        """Goes through the windows with a dense, a fixed and an adaptive model.

        Args:
            program: Captured; what all three begin with. The first window tells which units go.
            windows: Of each window, in order, the times of its rows, numbers, and its labelled
                batches.

        Raises:
            DataError: A window is earlier than the one before it, or has no labels.
            PruneError: The share of the FLOPs can't go.
        """
        base = program.clone()
        context = PassContext(target=Target.of(self.target))
        Pipeline.parse("canonicalize").run(base, context)
        base = Trainable(base).program
        arms: dict[str, _Arm] = {}
        seen: list[Window] = []
        last = float("-inf")
        since, best = 0, 0.0
        for number, (times, batches) in enumerate(windows, start=1):
            last = _checked_time(times, last, number)
            rows = _rows(batches, program, number)
            if not arms:
                gone = self._chosen(base, rows, context)
                arms = {name: _Arm(base, self, name) for name in ("dense", "fixed", "adaptive")}
                for name in ("fixed", "adaptive"):
                    arms[name].cut(gone, arms["dense"])
            loss = {name: arm.loss(rows) for name, arm in arms.items()}
            window = Window(number, len(rows), loss, 0.0, replanned=False, within=True)
            delta = window.delta_ne("adaptive")
            fresh = self._chosen(arms["dense"].now(), rows, context)
            moved = fresh.differs(arms["adaptive"].gone)
            best = delta if since == 0 else min(best, delta)
            again = since >= self.wait and (moved > self.moved or delta > best + self.worse)
            if again:
                arms["adaptive"].cut(fresh, arms["dense"])
            since = 0 if again else since + 1
            seen.append(replace(window, moved=moved, replanned=again, within=delta <= self.budget))
            for arm in arms.values():
                arm.learn(rows, number)
        if not arms:
            raise DataError("Stream was given no windows")
        return Followed(tuple(seen), {name: arm.smaller() for name, arm in arms.items()})

    def _chosen(self, program: Program, rows: Rows, context: PassContext) -> _Gone:
        found = channels(program)
        few: list[Features] = [rows.spread(_WORTH_ROWS).features]
        moments = input_moments(program, few)
        worth: Worth = by_effect(program, found, few, moments)
        plan = allocate(found, worth, Goal(flops=self.flops, evidence=False), context)
        reason = too_little(found, plan, self.flops, max(context.batch_sizes))
        if reason:
            raise PruneError(reason)
        named = {(found.groups[i].name, unit) for i, units in plan.units.items() for unit in units}
        return _Gone(found, plan.removal(found), frozenset(named))


@dataclass(frozen=True)
class _Gone:
    found: Channels
    removal: Removal
    units: frozenset[tuple[str, int]]

    def differs(self, other: _Gone) -> float:
        """The share of units that aren't gone in the other."""
        return 1.0 - len(self.units & other.units) / max(len(self.units), 1)


@dataclass(frozen=True)
class Followed:
    """What a stream came to.

    Attributes:
        windows: In order.
        programs: By arm, after the last window; the pruned ones without their units.
    """

    windows: tuple[Window, ...]
    programs: Mapping[str, Program]

    def table(self) -> str:
        """ΔNE over the dense model by window, as Markdown."""
        lines = ["| window | rows | NE loss, dense | fixed, Δ % | adaptive, Δ % | chosen anew |"]
        lines.append("|---:|---:|---:|---:|---:|---|")
        for one in self.windows:
            dense = max(one.loss["dense"].values())
            fixed, adaptive = (100 * one.delta_ne(arm) for arm in ("fixed", "adaptive"))
            again = f"yes, {one.moved:.0%} others" if one.replanned else ""
            lines.append(
                f"| {one.number} | {one.rows:,} | {dense:.4f} | {fixed:+.3f} | {adaptive:+.3f} | "
                f"{again} |"
            )
        return "\n".join(lines)

    def plot(self) -> str:
        """The same as an SVG."""
        arms = {arm: [100 * w.delta_ne(arm) for w in self.windows] for arm in ("fixed", "adaptive")}
        every = [0.0, *arms["fixed"], *arms["adaptive"]]
        low, high = min(every), max(every)
        span, count = max(high - low, 1e-9), max(len(self.windows) - 1, 1)

        def points(values: Sequence[float]) -> str:
            return " ".join(
                f"{40 + 540 * i / count:.1f},{20 + 240 * (high - v) / span:.1f}"
                for i, v in enumerate(values)
            )

        dense = points([0.0] * len(self.windows))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="300" font-size="12">\n'
            f'<polyline points="{dense}" fill="none" stroke="gray"/>\n'
            f'<polyline points="{points(arms["fixed"])}" fill="none" stroke="firebrick"/>\n'
            f'<polyline points="{points(arms["adaptive"])}" fill="none" stroke="seagreen"/>\n'
            f'<text x="40" y="290">ΔNE over dense (gray), {low:+.2f} to {high:+.2f} %: '
            "fixed red, adaptive green</text>\n</svg>\n"
        )


def _rows(batches: Sequence[Batch], program: Program, number: int) -> Rows:
    rows = collect(batches, program)
    missing = [t.name for t in program.signature.served if t.name not in _labels(rows)]
    if missing:
        raise DataError(f"window {number} has no labels of {', '.join(missing)}")
    return rows


def _checked_time(given: Any, last: float, number: int) -> float:
    times = np.asarray(given, dtype=np.float64)
    if times.size == 0 or not bool(np.isfinite(times).all()):
        raise DataError(f"window {number} has no times, or times that are no numbers")
    if times.min() < last:
        raise DataError(
            f"window {number} has a row of time {times.min():.0f}, and the one before it ends at "
            f"{last:.0f}: a model that learned from the future is judged on the past. Sort the "
            "stream by time."
        )
    return float(times.max())


class _Arm:
    """A model that learns window by window, some of its weights held at zero."""

    def __init__(self, program: Program, stream: Stream, name: str) -> None:
        self._stream, self._name = stream, name
        self._trainable = Trainable(program)
        self._optimizer = torch.optim.Adam(self._trainable.leaves.values(), lr=stream.lr)
        self._masks: dict[str, Tensor] = {}
        self.gone = _Gone(channels(program), Removal({}, {}, {}, {}), frozenset())

    def cut(self, gone: _Gone, dense: _Arm) -> None:
        """Lets units go, and takes those back that aren't gone any more as they are in dense."""
        masks = self._masks_of(gone.removal)
        with torch.no_grad():
            for name in self._trainable.leaves:
                state, whole = self._state_of(name), dense._state_of(name)
                nothing = torch.zeros_like(state["value"], dtype=torch.bool)
                before, now = (m.get(name, nothing) for m in (self._masks, masks))
                for part, value in state.items():
                    back = before & ~now
                    value[back] = whole[part][back]
                    value[now] = 0.0
        self._masks, self.gone = masks, gone

    def _state_of(self, name: str) -> dict[str, Tensor]:
        leaf = self._trainable.leaves[name]
        averages: Mapping[str, Any] = self._optimizer.state.get(leaf, {})
        kept = {part: averages[part] for part in ("exp_avg", "exp_avg_sq") if part in averages}
        return {"value": leaf, **kept}

    def _masks_of(self, removal: Removal) -> dict[str, Tensor]:
        masks: dict[str, Tensor] = {}

        def add(name: str, mask: Tensor) -> None:
            if name in self._trainable.leaves:
                masks[name] = masks[name] | mask if name in masks else mask

        for (name, dim), lines in removal.sides.items():
            if name in self._trainable.leaves:
                shape = self._trainable.leaves[name].shape
                mask = torch.zeros(shape, dtype=torch.bool)
                mask.movedim(dim, 0)[lines] = True
                add(name, mask)
        for (name, _), lines in removal.vectors.items():
            add(name, lines)
        for name, mask in removal.small.items():
            add(name, mask)
        return masks

    def loss(self, rows: Rows) -> dict[str, float]:
        """``{task: mean loss}`` before anything is learned."""
        trainable, tasks = self._trainable, self._trainable.program.signature.served
        total = {task.name: 0.0 for task in tasks}
        count = dict(total)
        start = 0
        for features in rows.batches(4096):
            outputs = trainable(features)
            for task in tasks:
                scores = task_logits(task, outputs).detach()
                part = slice(start, start + len(scores))
                target = torch.from_numpy(_labels(rows)[task.name][part])
                weights = _weights(rows, part)
                lost = loss_of(task, scores, target.float(), soft=False, weights=weights)
                known = ~target.isnan()
                counted = float(known.sum() if weights is None else weights[known].sum())
                total[task.name] += float(lost) * counted
                count[task.name] += counted
            start += len(next(iter(outputs.values())))
        return {name: value / max(count[name], 1e-30) for name, value in total.items()}

    def learn(self, rows: Rows, number: int) -> None:
        """Passes over a window.

        Raises:
            RecoverError: The loss is no number.
        """
        stream, tasks = self._stream, self._trainable.program.signature.served
        labels = {name: torch.from_numpy(v).float() for name, v in _labels(rows).items()}
        generator = torch.Generator().manual_seed(stream.seed * 1009 + number)
        for _ in range(stream.epochs):
            order = torch.randperm(len(rows), generator=generator)
            for picked in torch.split(order, stream.batch_size):
                outputs = self._trainable(take(rows.features, rows.ragged, picked))
                losses = [
                    loss_of(
                        task,
                        task_logits(task, outputs),
                        labels[task.name][picked],
                        soft=False,
                        weights=_weights(rows, picked),
                    )
                    for task in tasks
                ]
                loss = torch.stack(losses).sum()
                if not bool(torch.isfinite(loss)):
                    raise RecoverError(
                        f"window {number}: the loss of the {self._name} model is no number. Lower "
                        "lr=, or look for bad rows in this window."
                    )
                self._optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                with torch.no_grad():
                    for name, mask in self._masks.items():
                        self._trainable.leaves[name][mask] = 0.0

    def now(self) -> Program:
        """The program as it has been learned so far, units that are gone at zero."""
        return self._trainable.trained()

    def smaller(self) -> Program:
        """The program without the units that are gone."""
        return without(self.now(), self.gone.found, self.gone.removal, {})


def _weights(rows: Rows, picked: Tensor | slice) -> Tensor | None:
    """How much some rows count; None where all count the same."""
    return None if rows.weights is None else torch.from_numpy(rows.weights)[picked].float()


def _labels(rows: Rows) -> Mapping[str, Any]:
    return rows.labels or {}
