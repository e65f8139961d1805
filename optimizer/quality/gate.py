"""The gate that decides whether an optimized model gave up more quality than its budget.

`judge` measures it against the original on the same rows. Every limit applies to a confidence
bound, never to an estimate: not enough rows is inconclusive, not a pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ..errors import BudgetError, DataError
from . import intervals, repeats
from . import metrics as quality
from .blocks import blocks_of
from .budget import Budget, check_confidence
from .clusters import Clusters
from .intervals import Interval
from .measures import MIN_CLASS_ROWS, Seen, checks
from .metrics import FloatArray, IntArray
from .task_rows import TaskRows, task_rows
from .verdict import (
    CohortResult,
    CohortStatus,
    Metrics,
    Ranking,
    Status,
    TaskResult,
    Verdict,
    check_sentence,
    cohort_sentence,
    notes,
)

COHORT_FACTOR: Final = 3.0
"""A cohort may lose this many times the whole's limit before it fails the copy (κ)."""

MIN_COHORT_ROWS: Final = 500
"""Smaller cohorts are *unknown*: their intervals are too wide to say anything."""

MIN_COHORT_CLUSTERS: Final = 20
"""So are cohorts of fewer users or requests, whatever their rows."""

SOFT_COHORT_ROWS: Final = 30
"""Smaller cohorts aren't judged by their damage on soft labels either."""

SATURATED_LOGIT: Final = 30.0
"""A sigmoid of more is 0 or 1 to thirteen digits, and in fp32 exactly 1."""

_LARGEST: Final = tuple(float(np.finfo(dtype).max) for dtype in (np.float16, np.float32))

_UNKNOWN_LISTED: Final = 20


@dataclass(frozen=True)
class FoundCohort:
    """A cohort that isn't given by a column, but was found on other rows.

    Attributes:
        task: The task it is judged for.
        axis: What it is cut by.
        value: Which slice of that.
        members: ``[N]``, the rows in it.
    """

    task: str
    axis: str
    value: str
    members: NDArray[np.bool_]


def split_confidence(confidence: float, attempt: int) -> float:
    """The confidence to judge attempt 0, 1, 2, … at, so that all attempts together keep theirs.

    An optimizer that backs off and looks at the proof rows again gets a second chance to pass by
    luck. Attempt ``k`` may err in ``alpha / 2**(k + 1)`` of cases (``alpha = 1 - confidence``); the
    sum over any number of attempts stays below ``alpha`` (union bound), and the attempts need not
    be known in advance. The price is paid at once: the first look at 0.95 is judged at 0.975, its
    interval 14 % wider; the fourth at 0.997, 51 % wider. Rows that only *choose* a plan are
    another set and cost nothing here.

    Args:
        confidence: Of the whole run, between 0 and 1.
        attempt: From 0.

    Raises:
        BudgetError: a confidence outside (0, 1), or a negative attempt.
    """
    check_confidence(confidence)
    if attempt < 0:
        raise BudgetError(f"attempts count from 0, found {attempt}")
    return 1.0 - (1.0 - confidence) / 2.0 ** (attempt + 1)


def judge(
    reference: Mapping[str, ArrayLike],
    optimized: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike] | None,
    budget: Budget,
    *,
    group: ArrayLike | None = None,
    time: ArrayLike | None = None,
    cohorts: Mapping[str, ArrayLike] | None = None,
    columns: Mapping[str, NDArray[np.generic]] | None = None,
    found: Sequence[FoundCohort] = (),
    regression: Collection[str] = (),
    confidence: float | None = None,
    min_cohort_rows: int = MIN_COHORT_ROWS,
    weights: ArrayLike | None = None,
) -> Verdict:
    """Judges an optimized model against the original on the same rows.

    A task without labels is judged on *soft labels*, the original's own probabilities: its ΔNE is
    then the mean Kullback-Leibler divergence over the mean entropy, what the change would cost if
    the original were exactly right. A regression task without labels is charged the squared shift
    over the variance of the original's scores. The verdict says so.

    Args:
        reference: Logits of the original, ``{task: [N]}``; scores for a regression task.
        optimized: The same of the optimized model, on the same rows in the same order.
        labels: ``{task: [N]}`` in [0, 1] (any real number for a regression), or None.
        budget: The limits.
        group: ``[N]``, the user or request of each row, to cluster by. None takes rows as
            independent but for their time, and the verdict notes it. Rows that repeat others are
            of one group with them.
        time: ``[N]``, when each row came, to cluster by; None takes the order of the rows for it.
        cohorts: ``{axis: [N]}``, what cohort each row is of.
        columns: ``{feature: [N, …]}`` of what measures of other packages read.
        found: Cohorts found on other rows, judged together with those.
        regression: Names of the regression tasks.
        confidence: In place of the budget's, for repeated looks (`split_confidence`).
        min_cohort_rows: Cohorts with fewer are unknown.
        weights: ``[N]``, how many rows of traffic each stands for; None where all count the same.

    Raises:
        DataError: no rows, rows that don't match, NaN or infinite scores, labels outside [0, 1] or
            all of one class, a limit that needs groups without groups.
        BudgetError: the budget names a task the model doesn't have, or a bad ``confidence``.
    """
    if confidence is not None:
        budget = replace(budget, confidence=confidence)
    rows = task_rows(reference, optimized, labels or {}, frozenset(regression), weights)
    count = len(rows[0].reference)
    clusters, axes = _hung_together(rows, budget, group, time, cohorts)

    # Intersection-union test: the copy passes only if *every* task and limit passes, so passing a
    # bad copy needs the bad one among them to slip through its own test; its error rate is the
    # bound for all together, and no correction for their number is due. (Failing is another
    # matter: cohorts fail by a lower bound, and there the number of them is corrected for.)
    tasks = tuple(
        _judge_task(Seen(task, clusters, budget.confidence, columns or {}), budget) for task in rows
    )
    damage, unlisted = _judge_cohorts(rows, budget, axes, found, clusters, min_cohort_rows)

    reasons = [check_sentence(task.task, check) for task in tasks for check in task.checks]
    reasons += [
        cohort_sentence(cohort, COHORT_FACTOR, _cohort_limit(budget, cohort.task))
        for cohort in damage
    ]
    statuses = [task.status for task in tasks]
    statuses += _cohort_statuses(damage)
    soft = tuple(task.name for task in rows if task.soft)
    return Verdict(
        status=_worst(statuses),
        rows=count,
        confidence=budget.confidence,
        labels="soft labels" if soft else "labels",
        tasks=tasks,
        cohorts=damage,
        reasons=tuple(filter(None, reasons)),
        notes=(*_counted(rows, weights), *notes(tasks, soft, clusters, damage, unlisted)),
    )


def status_of(
    reference: Mapping[str, ArrayLike],
    optimized: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike] | None,
    budget: Budget,
    *,
    group: ArrayLike | None = None,
    time: ArrayLike | None = None,
    cohorts: Mapping[str, ArrayLike] | None = None,
    regression: Collection[str] = (),
    weights: ArrayLike | None = None,
) -> Status:
    """What `judge` comes to, without its description; for simulations of many sets of rows.

    Arguments and errors as `judge`.
    """
    rows = task_rows(reference, optimized, labels or {}, frozenset(regression), weights)
    clusters, axes = _hung_together(rows, budget, group, time, cohorts)
    statuses = []
    for task in rows:
        seen = Seen(task, clusters, budget.confidence)
        statuses += [check.status for check in checks(seen, budget.for_task(task.name))]
    damage, _ = _judge_cohorts(rows, budget, axes, (), clusters, MIN_COHORT_ROWS)
    return _worst([*statuses, *_cohort_statuses(damage)])


def _hung_together(
    rows: Sequence[TaskRows],
    budget: Budget,
    group: ArrayLike | None,
    time: ArrayLike | None,
    cohorts: Mapping[str, ArrayLike] | None,
) -> tuple[Clusters, dict[str, NDArray[np.str_]]]:
    """What rows are clustered by, and the cohorts that are gated."""
    count, names = len(rows[0].reference), [task.name for task in rows]
    unknown = sorted(set(budget.overrides) - set(names))
    if unknown:
        raise BudgetError(
            f"budget: it limits task {', '.join(unknown)}, the model has {', '.join(names)}"
        )
    clusters = Clusters.of(count, group, time, repeats.found(rows))
    return clusters, _gated_axes(budget, cohorts or {}, count)


def _cohort_statuses(damage: Iterable[CohortResult]) -> Iterable[Status]:
    """What cohorts do to a verdict."""
    for cohort in damage:
        if cohort.status is CohortStatus.FAIL:
            yield Status.FAIL
        elif cohort.is_open:
            yield Status.INCONCLUSIVE


def _judge_task(seen: Seen, budget: Budget) -> TaskResult:
    task, clusters = seen.task, seen.clusters
    own = budget.for_task(task.name)
    found = tuple(checks(seen, own))
    return TaskResult(
        task=task.name,
        status=_worst(check.status for check in found),
        labels="soft labels" if task.soft else "labels",
        delta_ne=seen.delta_ne,
        before=_metrics(task, task.reference, task.reference_loss, clusters.own),
        after=_metrics(task, task.optimized, task.loss, clusters.own),
        shift=seen.shift,
        checks=found,
        ranking=tuple(_ranking(seen.all, own, seen.hung)),
        blocks=blocks_of(task, clusters),
    )


def _ranking(task: TaskRows, budget: Budget, clusters: Clusters) -> Iterable[Ranking]:
    """Hard and soft recall of the original's top of each group, where it is limited."""
    codes = clusters.own
    if codes is None:
        return
    value = task.reference if task.regression else special.expit(task.reference)
    summed = bool((value >= 0.0).all())
    for k, _ in budget.cuts:
        hard = intervals.recall_interval(value, task.optimized, clusters, k, budget.confidence)
        recall = quality.recall_at_k(value, task.optimized, codes, k, soft=summed)
        yield Ranking(k, hard, recall if summed else None)


def _metrics(
    task: TaskRows, scores: FloatArray, loss: FloatArray, codes: IntArray | None
) -> Metrics:
    w = task.weights
    mean = float(loss.sum() / w.sum())
    size = np.abs(scores)
    ended = np.isin(size, _LARGEST) if task.regression else size >= SATURATED_LOGIT
    saturated = int(ended.sum())
    if task.regression:
        middle = np.average(task.labels, weights=w)
        spread = float(np.average(np.square(task.labels - middle), weights=w))
        return Metrics(mean, mean / spread if spread else None, saturated=saturated)
    try:
        gauc = None if codes is None else quality.gauc(scores, task.labels, codes, w)
    except DataError:
        gauc = None  # no group holds both classes: nothing to average
    return Metrics(
        loss=mean,
        ne=quality.normalized_entropy(scores, task.labels, w),
        auc=quality.auc(scores, task.labels, w),
        gauc=gauc,
        calibration=quality.calibration_ratio(scores, task.labels, w),
        saturated=saturated,
    )


def _counted(rows: Sequence[TaskRows], weights: ArrayLike | None) -> Iterable[str]:
    """What there is to say of rows that a task leaves out, and of rows that count more."""
    for task in rows:
        if task.known is not None:
            yield (
                f"task {task.name!r}: judged on the {int(task.known.sum()):,} of "
                f"{len(task.known):,} rows that have a label"
            )
    if weights is not None:
        w = rows[0].weights
        worth = float(w.sum()) ** 2 / float(np.square(w).sum())
        yield (
            f"rows count by their weights, {w.min():.4g} to {w.max():.4g}, which tell as much as "
            f"{worth:,.0f} that count the same"
        )


def _worst(statuses: Iterable[Status]) -> Status:
    found = set(statuses)
    for status in (Status.FAIL, Status.INCONCLUSIVE):
        if status in found:
            return status
    return Status.PASS


# --- cohorts --------------------------------------------------------------------------------------


def _gated_axes(
    budget: Budget, cohorts: Mapping[str, ArrayLike], count: int
) -> dict[str, NDArray[np.str_]]:
    names = budget.cohorts
    if isinstance(names, tuple):
        missing = [name for name in names if name not in cohorts]
        if missing:
            raise DataError(
                f"the budget gates cohort {', '.join(missing)}; the rows bring "
                f"{', '.join(cohorts) or 'no cohorts'}"
            )
    elif not names:
        return {}
    axes = {}
    for name in cohorts if names is True else names:
        column = np.asarray(cohorts[name])
        if column.shape != (count,):
            raise DataError(
                f"cohort {name!r}: shape {list(column.shape)}, expected one entry for {count} rows"
            )
        axes[name] = column.astype(np.str_)
    return axes


def _judge_cohorts(
    tasks: tuple[TaskRows, ...],
    budget: Budget,
    axes: Mapping[str, NDArray[np.str_]],
    found: Sequence[FoundCohort],
    clusters: Clusters,
    min_rows: int,
) -> tuple[tuple[CohortResult, ...], int]:
    """Every cohort of every task, worst first, and how many tiny ones are not listed.

    A cohort fails when its loss is surely over κ times the limit, at an error rate that allows for
    the number of cohorts (C2AL, 2510.02215, whose cohorts become a gate here), on the labels or on
    soft labels, which have no noise. It is bounded when either shows that it surely isn't; where
    neither does, a cohort that was given leaves the verdict open.
    """
    tested: list[CohortResult] = []
    unknown: list[CohortResult] = []
    unlisted = 0
    every = [task.labelled for task in tasks]
    limited = [task for task in every if budget.for_task(task.name).ne is not None]
    for axis, column in axes.items():
        whole = _largest_first(column)
        for task in limited:
            own = task.places
            parts = whole if own is None else _largest_first(column[own])
            hung = clusters if own is None else clusters.part(own)
            tiny: list[CohortResult] = []
            for value, part in parts:
                result = _cohort(task, axis, value, part, hung, budget.confidence, min_rows)
                (tiny if result.soft is None else tested).append(result)
            unknown += tiny[:_UNKNOWN_LISTED]
            unlisted += len(tiny[_UNKNOWN_LISTED:])
    by_name = {task.name: task for task in limited}
    for one in found:
        if one.task not in by_name:
            continue
        task = by_name[one.task]
        own = task.places
        part = np.flatnonzero(one.members if own is None else one.members[own])
        hung = clusters if own is None else clusters.part(own)
        result = _cohort(task, one.axis, one.value, part, hung, budget.confidence, min_rows)
        result = replace(result, found=True)
        (unknown if result.status is CohortStatus.UNKNOWN else tested).append(result)
    corrected = sorted(_decided(tested, budget), key=_severity)
    return (*corrected, *unknown), unlisted


def _largest_first(column: NDArray[np.str_]) -> list[tuple[str, IntArray]]:
    """Each value of a cohort column with its rows."""
    values, of_row = np.unique(column, return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(of_row))[:-1])
    return sorted(zip(values.tolist(), parts, strict=True), key=lambda part: -len(part[1]))


def _cohort(
    task: TaskRows,
    axis: str,
    value: str,
    part: IntArray,
    clusters: Clusters,
    confidence: float,
    min_rows: int,
) -> CohortResult:
    """What its rows say: of ΔNE where they are enough, of the damage on soft labels before that."""
    result = CohortResult(task.name, axis, value, len(part), CohortStatus.UNKNOWN)
    if len(part) < max(min(min_rows, SOFT_COHORT_ROWS), 2):
        return result
    rows, inside = task.of(part), clusters.part(part)
    if len(inside) < MIN_COHORT_CLUSTERS or not rows.base.any():
        return result
    result = replace(result, soft=rows.soft_damage(inside, confidence))
    # With hardly a positive row the differences are nearly all of one sign, and no standard error
    # made from them holds.
    if len(part) < max(min_rows, 2) or rows.rarer_class < MIN_CLASS_ROWS:
        return result
    result = replace(
        result,
        status=CohortStatus.INCONCLUSIVE,
        delta_ne=rows.delta_ne(inside, confidence),
    )
    if task.regression:
        return result
    return replace(
        result,
        calibration_before=quality.calibration_ratio(rows.reference, rows.labels, rows.weights),
        calibration_after=quality.calibration_ratio(rows.optimized, rows.labels, rows.weights),
    )


def _decided(tested: list[CohortResult], budget: Budget) -> list[CohortResult]:
    """Decides the cohorts by their labels, and by soft labels what these leave open.

    A copy that was finetuned has other scores on purpose (``two_sided=False``): soft labels say
    then what is harmless, but not what is harm.
    """
    known = _control_false_alarms([one for one in tested if one.delta_ne is not None], budget)
    small = [one for one in tested if one.delta_ne is None]
    judged = [*known, *small]
    mended = [one.found or not budget.for_task(one.task).two_sided for one in judged]
    limits = [_cohort_limit(budget, one.task) for one in judged]
    soft = [one.soft for one in judged if one.soft is not None]
    _, damaged, _ = _rejected(soft, limits, budget.confidence)
    decided = []
    for one, within, limit, harm, exempt in zip(judged, soft, limits, damaged, mended, strict=True):
        bounded = within.high <= limit
        if harm and not exempt and one.status is not CohortStatus.PASS:
            one = replace(one, status=CohortStatus.FAIL)
        elif one.status is CohortStatus.UNKNOWN and not bounded and not exempt:
            one = replace(one, status=CohortStatus.INCONCLUSIVE)
        decided.append(replace(one, bounded=bounded))
    return decided


def _rejected(
    deltas: Sequence[Interval], limits: Sequence[float], confidence: float
) -> tuple[list[float], list[bool], float]:
    """Adjusted p-values of "within the limit", which are surely over it, and at what level.

    Benjamini and Hochberg's control (J. R. Stat. Soc. B, 1995).
    """
    if not deltas:
        return [], [], 0.0
    alpha = (1.0 - confidence) / 2.0
    p = np.array(list(map(intervals.upper_tail_p_value, deltas, limits)))
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    rejected = adjusted <= alpha
    return adjusted.tolist(), rejected.tolist(), alpha * max(int(rejected.sum()), 1) / len(p)


def _control_false_alarms(tested: list[CohortResult], budget: Budget) -> list[CohortResult]:
    """Decides the cohorts on their labels, with control over how many there are.

    Among cohorts that are all sound, one is called damaged in at most ``(1 - confidence) / 2`` of
    cases, the lower tail of the intervals shown; where some are damaged, that is the expected share
    of false ones among those called so. Cohort axes overlap and so depend on one another
    positively, where the procedure holds (Benjamini and Yekutieli, Ann. Statist. 2001). Holm's
    would be stricter against false alarms and blinder to damage, the costlier error here. The
    corrected bound is at the level of the last rejection, so "it is over κ times the limit" and
    "rejected" say the same.
    """
    limits = [_cohort_limit(budget, cohort.task) for cohort in tested]
    deltas = [cohort.delta_ne for cohort in tested if cohort.delta_ne is not None]
    adjusted, rejected, level = _rejected(deltas, limits, budget.confidence)
    decided = []
    for cohort, delta, limit, value, damaged in zip(
        tested, deltas, limits, adjusted, rejected, strict=True
    ):
        within = CohortStatus.PASS if delta.high <= limit else CohortStatus.INCONCLUSIVE
        decided.append(
            replace(
                cohort,
                status=CohortStatus.FAIL if damaged else within,
                corrected_low=intervals.lower_bound(delta, level),
                p_value=value,
            )
        )
    return decided


def _cohort_limit(budget: Budget, task: str) -> float:
    return COHORT_FACTOR * (budget.for_task(task).ne or 0.0)


def _severity(cohort: CohortResult) -> tuple[bool, float]:
    """Sorts failed cohorts first, then by what they lost."""
    lost = cohort.delta_ne.estimate if cohort.delta_ne is not None else -math.inf
    return cohort.status is not CohortStatus.FAIL, -lost
