"""The rows of each task that a gate judges on, checked, with their losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from . import quality
from .errors import DataError
from .intervals import Interval, ratio_interval
from .quality import FloatArray, IntArray


@dataclass(frozen=True)
class TaskRows:
    """Rows of one task: scores, labels and losses, ``[N]`` float64 each.

    ``base`` is what a change of loss is relative to: the original's loss, or the variance of its
    scores where a regression has no labels and the original's loss against itself is 0.
    """

    name: str
    regression: bool
    soft: bool
    reference: FloatArray
    optimized: FloatArray
    labels: FloatArray
    reference_loss: FloatArray
    loss: FloatArray
    base: FloatArray

    def of(self, rows: IntArray) -> TaskRows:
        """The same for some rows only."""
        taken = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return replace(self, **taken)

    @property
    def rarer_class(self) -> float:
        """Rows of the rarer class, which carry most of a log loss; infinite where there is none."""
        if self.regression or self.soft:
            return math.inf
        return min(float(self.labels.sum()), float((1.0 - self.labels).sum()))

    @property
    def certain_bound(self) -> float:
        """An upper bound of ΔNE on these rows whatever the labels: a loss has slope at most 1."""
        moved = float(np.abs(self.optimized - self.reference).sum())
        base = float(self.base.sum())
        return moved / base if base else math.inf

    def delta_ne(self, codes: IntArray | None, confidence: float) -> Interval:
        """The relative change of NE with its interval."""
        change = self.loss - self.reference_loss
        return ratio_interval(change, self.base, codes, confidence)


def task_rows(
    reference: Mapping[str, ArrayLike],
    optimized: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike],
    regression: frozenset[str],
) -> tuple[TaskRows, ...]:
    """Checks the rows of all tasks; a task without labels takes the original's own answers.

    Raises:
        DataError: no tasks or rows, rows that don't match, or values that can't be judged on.
    """
    if not reference:
        raise DataError("there is no task to judge: the model has no outputs")
    if set(reference) != set(optimized):
        raise DataError(
            f"the tasks differ: the original has {sorted(reference)}, the optimized model "
            f"{sorted(optimized)}"
        )
    strangers = sorted((set(labels) | regression) - set(reference))
    if strangers:
        raise DataError(f"unknown task {', '.join(strangers)}; the model has {sorted(reference)}")
    rows = tuple(
        _one_task(name, reference[name], optimized[name], labels.get(name), name in regression)
        for name in reference
    )
    lengths = {task.name: len(task.reference) for task in rows}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the tasks have different numbers of rows: {lengths}")
    return rows


def _one_task(
    name: str,
    reference: ArrayLike,
    optimized: ArrayLike,
    labels: ArrayLike | None,
    regression: bool,
) -> TaskRows:
    before = quality.finite_rows(reference, f"original logits of task {name!r}")
    after = quality.finite_rows(optimized, f"optimized logits of task {name!r}")
    if len(before) != len(after):
        raise DataError(
            f"task {name!r}: {len(before)} rows of the original, {len(after)} of the optimized"
        )
    truth = _truth(name, before, labels, regression)
    if len(truth) != len(before):
        raise DataError(f"task {name!r}: {len(truth)} labels for {len(before)} rows")
    loss_of = quality.squared_error_per_row if regression else quality.log_loss_per_row
    reference_loss, loss = loss_of(before, truth), loss_of(after, truth)
    base = reference_loss
    if regression and labels is None:
        base = np.square(before - before.mean())
    return TaskRows(
        name, regression, labels is None, before, after, truth, reference_loss, loss, base
    )


def _truth(
    name: str, reference: FloatArray, labels: ArrayLike | None, regression: bool
) -> FloatArray:
    if labels is None and regression:
        return reference
    if labels is None:
        return np.asarray(special.expit(reference), dtype=np.float64)
    if regression:
        return quality.finite_rows(labels, f"labels of task {name!r}")
    truth = quality.label_rows(labels, f"labels of task {name!r}")
    if truth.min() == truth.max() and truth[0] in (0.0, 1.0):
        raise DataError(
            f"evaluation rows of task {name!r} are all {truth[0]:g} ({len(truth):,} rows): "
            "NE and AUC need both classes; give more rows, or leave the task's labels out"
        )
    return truth
