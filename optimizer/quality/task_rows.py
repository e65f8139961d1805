"""The rows of each task that a gate judges on, checked, with their losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ..errors import DataError
from . import metrics as quality
from .clusters import Clusters, Spread
from .intervals import Interval, ratio_interval
from .metrics import FloatArray, IntArray


@dataclass(frozen=True)
class TaskRows:
    """Rows of one task: scores, labels and losses, ``[N]`` float64 each.

    ``base`` is what a change of loss is relative to: the original's loss, or the variance of its
    scores where a regression has no labels and the original's loss against itself is 0. Losses and
    base are times the rows' ``weights``. Where labels are missing, ``known`` says of which rows
    there is one (the others have the original's own answer in its place), and ``labelled`` is those
    alone: ``places`` says which of all rows they are.
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
    weights: FloatArray
    known: NDArray[np.bool_] | None = None
    places: IntArray | None = None

    @cached_property
    def labelled(self) -> TaskRows:
        """The rows that have a label, which are judged; all where none has."""
        if self.known is None:
            return self
        places = np.flatnonzero(self.known)
        return replace(self.of(places), known=None, places=places)

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

    def certain_bound(self, confidence: float) -> float:
        """An upper bound of ΔNE whatever the labels, since a loss has slope at most 1.

        For a regression, whose loss has no such slope, there is none.
        """
        base = float(self.base.sum())
        if self.regression or not base:
            return 0.0 if bool((self.optimized == self.reference).all()) else math.inf
        shift = self.weights * np.abs(self.optimized - self.reference)
        return rare_bound(shift, confidence) / base

    def delta_ne(self, clusters: Clusters, confidence: float) -> Interval:
        """The relative change of NE with its interval.

        Its upper end has room for what few rows of much damage hide: where the rows at hand are
        few of their kind, the next ones may be more.
        """
        change = self.loss - self.reference_loss
        found = ratio_interval(change, self.base, clusters, confidence, self._label_noise())
        return replace(found, high=found.high + self._rare(clusters, confidence))

    def soft_damage(self, clusters: Clusters, confidence: float) -> Interval:
        """What the change would cost if the original were exactly right: without label noise."""
        damage, base = self._soft
        found = ratio_interval(damage, base, clusters, confidence)
        total = float(base.sum())
        if not total:
            return found
        bound = rare_bound(_by_unit(damage, clusters), confidence) / total
        return replace(found, low=max(found.low, 0.0), high=max(found.high, bound))

    @cached_property
    def _soft(self) -> tuple[FloatArray, FloatArray]:
        """Damage on soft labels, and what it is relative to, row by row."""
        if self.soft:
            return self.loss - self.reference_loss, self.base
        if self.regression:
            return self.weights * np.square(self.optimized - self.reference), self.base
        own = np.asarray(special.expit(self.reference), dtype=np.float64)
        base = quality.log_loss_per_row(self.reference, own)
        damage = np.maximum(quality.log_loss_per_row(self.optimized, own) - base, 0.0)
        return self.weights * damage, self.weights * base

    @cached_property
    def drawn(self) -> bool:
        """Whether labels are 0 or 1, drawn by chance, rather than probabilities themselves."""
        return not self.soft and bool(((self.labels == 0.0) | (self.labels == 1.0)).all())

    @property
    def probability(self) -> FloatArray:
        """The original's probability of each row, ``[N]``, scaled to the labels' mean."""
        p = special.expit(self.reference)
        positive = float(self.weights @ self.labels)
        scale = positive / max(float(self.weights @ p), 1e-300)
        return np.asarray(np.minimum(p * scale, 1.0), dtype=np.float64)

    def _label_noise(self) -> Spread | None:
        """The error that labels alone make, by the original's own probabilities.

        With hardly a positive among the rows that changed, the labels at hand don't show how much
        they could have said. The probabilities, scaled to the labels' mean, do:
        ``Σ p (1 - p) δ²``. Its concentration is that expected of ``(p - y) δ``.
        """
        if self.regression or not self.drawn:
            return None
        shift = self.weights * (self.optimized - self.reference)
        total = float(self.base.sum())
        p = self.probability
        q = 1.0 - p
        size = float(np.abs(shift).max())
        if not size or not total:
            return None
        squares = np.square(shift / size)
        variance = float((p * q * squares).sum())
        fourth = float((p * q * (p**3 + q**3) * np.square(squares)).sum())
        if not variance or not fourth:
            return None
        return Spread(size * math.sqrt(variance) / total, math.inf, variance**2 / fourth - 1.0, "")

    def _rare(self, clusters: Clusters, confidence: float) -> float:
        """How much further the soft damage may reach than its own standard error says."""
        damage, base = self._soft
        total = float(base.sum())
        if not total or not damage.any():
            return 0.0
        each = _by_unit(damage, clusters)
        z = float(special.ndtri((1.0 + confidence) / 2.0))
        plain = float(each.sum()) + z * math.sqrt(float(np.square(each).sum()))
        return max(rare_bound(each, confidence) - plain, 0.0) / total


def _by_unit(values: FloatArray, clusters: Clusters) -> FloatArray:
    """Sums of values ``[N]`` over what rows are clustered by, but for time."""
    if clusters.group is None:
        return values
    return quality.sum_by(clusters.group, values, clusters.groups)


def rare_bound(values: FloatArray, confidence: float) -> float:
    """An upper bound of the expected sum of values that are never negative, however few carry it.

    Each value counts as an event of a Poisson process with that weight: the bound is Fay and
    Feuer's gamma interval (Statist. Med. 1997), which holds for weights however uneven, where
    normal theory fails: of one row it makes 5.6 at 95 %.

    Args:
        values: ``[N]``, not negative.
        confidence: Of a two-sided interval, of which this is the upper end.
    """
    largest = float(values.max())
    if largest <= 0.0:
        return 0.0
    weights = values / largest
    scale = (float(np.square(weights).sum()) + 1.0) / (float(weights.sum()) + 1.0)
    shape = (float(weights.sum()) + 1.0) / scale
    return largest * scale * float(special.gammaincinv(shape, (1.0 + confidence) / 2.0))


def task_rows(
    reference: Mapping[str, ArrayLike],
    optimized: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike],
    regression: frozenset[str],
    weights: ArrayLike | None = None,
) -> tuple[TaskRows, ...]:
    """Checks the rows of all tasks; a task without labels takes the original's own answers.

    Args:
        reference: ``{task: [N]}``, the original's scores.
        optimized: The same of the copy.
        labels: ``{task: [N]}``, NaN where a label is missing.
        regression: Names of the regression tasks.
        weights: ``[N]``, how much each row counts; None where all count the same.

    Raises:
        DataError: no tasks or rows, rows that don't match, or values that can't be judged on.
    """
    if not reference:
        raise DataError(
            "there is no task to judge: no output of the model is a score, a floating-point number "
            "or several a row"
        )
    if set(reference) != set(optimized):
        raise DataError(
            f"the tasks differ: the original has {sorted(reference)}, the optimized model "
            f"{sorted(optimized)}"
        )
    strangers = sorted((set(labels) | regression) - set(reference))
    if strangers:
        raise DataError(f"unknown task {', '.join(strangers)}; the model has {sorted(reference)}")
    rows = tuple(
        _one_task(
            name, reference[name], optimized[name], labels.get(name), name in regression, weights
        )
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
    weights: ArrayLike | None,
) -> TaskRows:
    before = quality.finite_rows(reference, f"original logits of task {name!r}")
    after = quality.finite_rows(optimized, f"optimized logits of task {name!r}")
    if len(before) != len(after):
        raise DataError(
            f"task {name!r}: {len(before)} rows of the original, {len(after)} of the optimized"
        )
    count = np.ones_like(before) if weights is None else _weights(weights, len(before))
    truth, known = _truth(name, before, labels, regression)
    if len(truth) != len(before):
        raise DataError(f"task {name!r}: {len(truth)} labels for {len(before)} rows")
    loss_of = quality.squared_error_per_row if regression else quality.log_loss_per_row
    reference_loss, loss = count * loss_of(before, truth), count * loss_of(after, truth)
    base = reference_loss
    if regression and labels is None:
        base = count * np.square(before - np.average(before, weights=count))
    soft = labels is None
    return TaskRows(
        name, regression, soft, before, after, truth, reference_loss, loss, base, count, known
    )


def _weights(weights: ArrayLike, rows: int) -> FloatArray:
    found = quality.finite_rows(weights, "weights")
    if len(found) != rows or (found < 0.0).any() or not found.any():
        raise DataError(
            f"weights: {len(found)} for {rows} rows, the least {found.min():g}, the largest "
            f"{found.max():g}; expected one a row, none negative and not all 0"
        )
    return found


def _truth(
    name: str, reference: FloatArray, labels: ArrayLike | None, regression: bool
) -> tuple[FloatArray, NDArray[np.bool_] | None]:
    """The labels, and of which rows there is one; None for all."""
    own = reference
    if not regression:
        own = np.asarray(special.expit(reference), dtype=np.float64)
    if labels is None:
        return own, None
    given = np.asarray(labels)
    missing = np.isnan(given.astype(np.float64)).reshape(-1)
    if missing.all() and len(missing):
        raise DataError(
            f"none of the {len(missing):,} evaluation rows of task {name!r} has a label: give more "
            "rows, or leave the task's labels out"
        )
    truth = _checked(name, given.reshape(-1)[~missing] if missing.any() else given, regression)
    if not missing.any():
        return truth, None
    if len(missing) != len(own):
        raise DataError(f"task {name!r}: {len(missing)} labels for {len(own)} rows")
    filled = own.copy()
    filled[~missing] = truth
    return filled, ~missing


def _checked(name: str, labels: ArrayLike, regression: bool) -> FloatArray:
    if regression:
        return quality.finite_rows(labels, f"labels of task {name!r}")
    truth = quality.label_rows(labels, f"labels of task {name!r}")
    if truth.min() == truth.max() and truth[0] in (0.0, 1.0):
        raise DataError(
            f"evaluation rows of task {name!r} are all {truth[0]:g} ({len(truth):,} rows): "
            "NE and AUC need both classes; give more rows, or leave the task's labels out"
        )
    return truth
