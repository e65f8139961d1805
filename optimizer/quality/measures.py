"""What a budget may limit: a row for each measure, and measures of other packages.

A row says by what name the budget limits it, how the verdict calls it, what it needs, and how much
of it was lost: always an interval, clustered like the others, of which less is better.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ..errors import BudgetError, DataError
from ..plugins import plugin, plugin_names
from . import intervals
from . import metrics as quality
from .budget import Budget
from .clusters import Clusters
from .intervals import Interval, ratio_interval
from .metrics import FloatArray, IntArray, ShiftSummary
from .task_rows import TaskRows
from .verdict import Check, Status

#: The entry point group packages announce measures under: ``my-measure = pkg.mod:MyMeasure``.
GROUP: Final = "rankc.measures"

Limits = Iterable[tuple[str, float]]

MIN_CLASS_ROWS: Final = 10
"""Rows of the rarer class below which a standard error of the log loss can't be trusted."""

MIN_CARRIERS: Final = 10
"""Independent contributions to ΔNE below which its interval can't be trusted."""


@dataclass(frozen=True)
class Seen:
    """The rows of one task, as measures see them.

    Attributes:
        all: Every row: scores, labels and losses.
        hung: What all rows are clustered by.
        confidence: Of intervals.
        columns: ``{feature: [N, …]}`` of what measures of other packages ask for, of all rows.
    """

    all: TaskRows
    hung: Clusters
    confidence: float
    columns: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    @property
    def task(self) -> TaskRows:
        """The rows that are judged: where labels are missing, those that have one."""
        return self.all.labelled

    @cached_property
    def clusters(self) -> Clusters:
        """What those are clustered by."""
        places = self.task.places
        return self.hung if places is None else self.hung.part(places)

    @cached_property
    def delta_ne(self) -> Interval:
        """The relative change of NE."""
        return self.task.delta_ne(self.clusters, self.confidence)

    @cached_property
    def shift(self) -> ShiftSummary:
        """How far scores moved, of all rows."""
        return quality.shift_summary(self.all.reference, self.all.optimized)


@dataclass(frozen=True)
class Row:
    """A measure of the table.

    Attributes:
        name: By which the budget limits it.
        limits: How the verdict calls it, and its limit, for a budget; none where it isn't limited.
        lost: How much of it was lost, given its name in the verdict.
        share: Whether it is shown in percent.
        groups: Whether it is measured within requests: every row needs its ``group``.
        binary: Whether it orders positives against negatives or compares probabilities: it has no
            meaning for a regression.
        decided: Turns the plain decision into another where the interval doesn't say all.
    """

    name: str
    limits: Callable[[Budget], Limits]
    lost: Callable[[Seen, str], Interval]
    share: bool = False
    groups: bool = False
    binary: bool = False
    decided: Callable[[Check, Seen], Check] = lambda check, seen: check


class Measure(ABC):
    """A measure of one's own, announced under the entry point group ``rankc.measures``.

    ``rankc.Budget(measures={"revenue-at-10": 0.001})`` then limits what may be lost of it. Both
    models' values are compared row by row, and the interval is that of the whole, clustered by
    group and time.
    """

    #: By which a budget limits it: lower-case words joined by dashes.
    name: ClassVar[str]
    #: Features it reads besides the scores.
    columns: ClassVar[tuple[str, ...]] = ()
    #: Whether every row needs its ``group``, or its label.
    groups: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    #: Whether less of it is a loss; else more is.
    larger_is_better: ClassVar[bool] = True
    #: Whether the limit is a share of what the original has, shown in percent; else it is in the
    #: measure's own unit, a mean over rows.
    relative: ClassVar[bool] = True

    @abstractmethod
    def values(self, rows: MeasuredRows) -> ArrayLike:
        """What each row adds to the measure, ``[N]``; its sum over all rows is what is compared."""


@dataclass(frozen=True)
class MeasuredRows:
    """What a measure is computed of, for one of the two models.

    Attributes:
        task: The task's name.
        scores: ``[N]`` logits of the model that is measured; a regression's scores.
        labels: ``[N]`` in [0, 1], or a regression's; None where there are none. A measure that
            says it needs labels sees the rows that have one; for others, NaN where one is missing.
        group: ``[N]`` codes from 0 of the user or request; None where there are none.
        columns: ``{feature: [N, …]}`` of the features it asks for.
    """

    task: str
    scores: FloatArray
    labels: FloatArray | None
    group: IntArray | None
    columns: Mapping[str, NDArray[np.generic]]

    @property
    def probabilities(self) -> FloatArray:
        """``[N]``, the logits as probabilities."""
        return np.asarray(special.expit(self.scores), dtype=np.float64)

    def top(self, k: int) -> NDArray[np.bool_]:
        """``[N]``, whether a row is among the k best scored of its group; ties by order.

        Raises:
            DataError: There are no groups.
        """
        if self.group is None:
            raise DataError("the top of a group was asked for, and rows have no `group`")
        order = np.lexsort((np.arange(len(self.scores)), -self.scores, self.group))
        starts = np.flatnonzero(np.diff(self.group[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        inside = np.zeros(len(order), dtype=bool)
        inside[order[rank < k]] = True
        return inside


# --- ours -----------------------------------------------------------------------------------------


def _one(label: str, limit: Callable[[Budget], float | None]) -> Callable[[Budget], Limits]:
    def limits(budget: Budget) -> Limits:
        found = limit(budget)
        return () if found is None else ((label, found),)

    return limits


def _lucky(check: Check, seen: Seen) -> Check:
    """Only a sure gain counts: every noisy copy would be open else."""
    status = Status.FAIL if check.interval.low > check.limit else Status.PASS
    return replace(check, status=status, more_rows=0)


def _enough(check: Check, seen: Seen) -> Check:
    """A check of ΔNE, left open if it passed on too few rows for its interval to be trusted.

    Unless the shift bounds it, or the widest that Student's t can be is within the limit as well.
    """
    task, confidence, known = seen.task, seen.confidence, check.interval.carriers
    carriers = math.inf if known is None else known
    wider = float(special.stdtrit([1.0, check.interval.freedom], 0.5 + confidence / 2.0) @ [1, -1])
    if check.interval.high + wider * check.interval.standard_error <= check.limit:
        carriers = math.inf
    if check.status is not Status.PASS:
        return check
    if task.rarer_class >= MIN_CLASS_ROWS and carriers >= MIN_CARRIERS:
        return check
    if task.certain_bound(confidence) <= check.limit:
        return check
    have, least, what = (
        task.rarer_class,
        MIN_CLASS_ROWS,
        f"{MIN_CLASS_ROWS} rows of the rarer class",
    )
    if have >= MIN_CLASS_ROWS:
        have, least = carriers, MIN_CARRIERS
        what = f"{MIN_CARRIERS} rows, or groups of rows, that carry the change"
    more = math.ceil(check.interval.rows * least / max(have, 1.0)) - check.interval.rows
    return replace(check, status=Status.INCONCLUSIVE, more_rows=max(more, 1), few=what)


def _scores(seen: Seen) -> tuple[FloatArray, FloatArray]:
    return seen.task.reference, seen.task.optimized


def _rms(seen: Seen, label: str) -> Interval:
    scores = seen.all.reference, seen.all.optimized
    return intervals.relative_shift_interval(*scores, seen.hung, seen.confidence)


def _auc(seen: Seen, label: str) -> Interval:
    return intervals.auc_delta(
        *_scores(seen), seen.task.labels, seen.clusters, seen.confidence, seen.task.weights
    ).negated


def _calibration(seen: Seen, label: str) -> Interval:
    return intervals.calibration_delta(
        *_scores(seen), seen.clusters, seen.confidence, seen.task.weights
    ).folded


def _gauc(seen: Seen, label: str) -> Interval:
    return intervals.gauc_delta(
        *_scores(seen), seen.task.labels, seen.clusters, seen.confidence, seen.task.weights
    ).negated


def _recall(seen: Seen, label: str) -> Interval:
    k = int(label.removeprefix("recall@").removesuffix(" loss"))
    scores = seen.all.reference, seen.all.optimized  # a request's candidates, labelled or not
    kept = intervals.recall_interval(*scores, seen.hung, k, seen.confidence)
    return kept.moved(1.0 - kept.estimate, 1.0 - kept.high, 1.0 - kept.low)


MEASURES: Final = (
    Row("ne", _one("ΔNE", lambda b: b.ne), lambda s, _: s.delta_ne, share=True, decided=_enough),
    # A lucky shift.
    Row(
        "ne gain",
        _one("NE gain", lambda b: b.ne if b.two_sided else None),
        lambda seen, _: seen.delta_ne.negated,
        share=True,
        decided=_lucky,
    ),
    Row("max_rms_shift", _one("rms logit shift", lambda b: b.max_rms_shift), _rms),
    Row(
        "max_shift",
        _one("largest logit shift", lambda b: b.max_shift),
        lambda seen, _: seen.delta_ne.moved(*[seen.shift.largest] * 3),
    ),
    Row("auc", _one("AUC drop", lambda b: b.auc), _auc, binary=True),
    Row(
        "calibration",
        _one("calibration change", lambda b: b.calibration),
        _calibration,
        share=True,
        binary=True,
    ),
    Row("gauc", _one("GAUC drop", lambda b: b.gauc), _gauc, groups=True, binary=True),
    Row(
        "recall_at",
        lambda budget: [(f"recall@{k} loss", 1.0 - least) for k, least in budget.cuts],
        _recall,
        groups=True,
        binary=True,
    ),
)
"""In the order in which a verdict lists them."""


# --- others' --------------------------------------------------------------------------------------


def measure_named(name: str) -> Measure:
    """The measure that a package announces.

    Raises:
        BudgetError: There is none, or it can't be used; which package, and why.
    """
    found = plugin(GROUP, name, "measure", Measure, BudgetError)  # type: ignore[type-abstract]
    if found is None:
        ours = [row.name for row in MEASURES if row.name != "ne gain"]
        known = ", ".join([*ours, *sorted(plugin_names(GROUP))])
        raise BudgetError(f"budget: no measure is called {name!r}; there are {known}")
    try:
        return found()
    except Exception as error:  # of whatever the package does when it is made
        raise BudgetError(f"measure {name!r} can't be made: {error}") from error


def columns_of(budget: Budget) -> tuple[str, ...]:
    """The features that the budget's measures read."""
    limited = [budget, *budget.overrides.values()]
    names = {name: None for one in limited for name, _ in one.measured}
    return tuple(dict.fromkeys(c for name in names for c in measure_named(name).columns))


def _plugged(name: str, limit: float) -> Row:
    measure = measure_named(name)

    def lost(seen: Seen, label: str) -> Interval:
        rows = seen.task if measure.labels else seen.all
        before, after = (
            _values(measure, seen, scores) for scores in (rows.reference, rows.optimized)
        )
        change = before - after if measure.larger_is_better else after - before
        base = before if measure.relative else np.ones(len(before))
        if measure.relative and bool((before < 0.0).any()):
            row = int(np.flatnonzero(before < 0.0)[0])
            raise DataError(
                f"measure {name!r} is {before[row]:g} in row {row}: a loss can be no share of what "
                "is below 0; declare relative = False"
            )
        clusters = seen.clusters if measure.labels else seen.hung
        return ratio_interval(rows.weights * change, rows.weights * base, clusters, seen.confidence)

    return Row(
        name,
        lambda budget: ((name, limit),),
        lost,
        share=measure.relative,
        groups=measure.groups,
    )


def _values(measure: Measure, seen: Seen, scores: FloatArray) -> FloatArray:
    name, task = measure.name, seen.task if measure.labels else seen.all
    if measure.labels and task.soft:
        raise DataError(f"measure {name!r} needs labels, and task {task.name!r} has none")
    missing = [column for column in measure.columns if column not in seen.columns]
    if missing:
        raise DataError(f"measure {name!r} reads {', '.join(missing)}, which is no feature")
    places = slice(None) if task.places is None else task.places
    given = {column: seen.columns[column][places] for column in measure.columns}
    labels = None if task.soft else task.labels
    if task.known is not None:
        labels = np.where(task.known, task.labels, np.nan)
    own = (seen.clusters if measure.labels else seen.hung).own
    rows = MeasuredRows(task.name, scores, labels, own, given)
    try:
        found = np.asarray(measure.values(rows), dtype=np.float64)
    except DataError:
        raise
    except Exception as error:  # of whatever the package computes
        raise DataError(f"measure {name!r} failed: {type(error).__name__}: {error}") from error
    if found.shape != scores.shape:
        raise DataError(
            f"measure {name!r} gave {list(found.shape)} values, expected one for each of "
            f"{len(scores):,} rows"
        )
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise DataError(f"measure {name!r} is {found[row]} in row {row}")
    return found


# --- held against a budget ------------------------------------------------------------------------


def checks(seen: Seen, budget: Budget) -> Iterable[Check]:
    """Each limit of a budget, held against the rows.

    Raises:
        DataError: A limit that needs groups without groups, or rows that a measure can't be had of.
        BudgetError: A measure that there isn't.
    """
    table = [*MEASURES, *(_plugged(name, limit) for name, limit in budget.measured)]
    limited = [(row, found) for row in table if (found := tuple(row.limits(budget)))]
    if seen.clusters.own is None:
        lacking = next((row.name for row, _ in limited if row.groups), None)
        if lacking is not None:
            raise DataError(
                f"the budget limits {lacking}, which is measured within requests: give every row "
                "its `group`"
            )
    for row, limits in limited:
        if row.binary and seen.task.regression:
            continue
        for label, limit in limits:
            interval = row.lost(seen, label)
            more = intervals.rows_to_decide(interval, limit)
            status = decide(interval, limit)
            check = Check(label, limit, interval, status, more, name=row.name, share=row.share)
            yield row.decided(check, seen)


def decide(interval: Interval, limit: float) -> Status:
    """Pass iff the upper bound is within the limit, fail iff the lower is over it."""
    if interval.high <= limit:
        return Status.PASS
    return Status.FAIL if interval.low > limit else Status.INCONCLUSIVE
