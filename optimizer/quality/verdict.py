"""What a gate found: the `Verdict` of an optimized model, as values, text and JSON.

It says *pass*, *inconclusive* or *fail*, or *unverified* when there was nothing to measure on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from typing import Any

import numpy as np

from .clusters import Clusters
from .intervals import Interval, rows_to_decide
from .metrics import ShiftSummary


class Status(StrEnum):
    """What a measurement against a limit came to; for a verdict, the worst of its parts."""

    PASS = "pass"
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"
    UNVERIFIED = "unverified"


class CohortStatus(StrEnum):
    """What is known of one cohort; *fail* fails the verdict, *inconclusive* may leave it open."""

    PASS = "pass"
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Metrics:
    """How well one model does on one task; None where a metric has no meaning.

    Attributes:
        loss: Mean log loss in nats; for a regression task the mean squared error.
        ne: Loss over that of always answering the label mean.
        auc: Area under the ROC curve.
        gauc: The same within groups; None without groups.
        calibration: Mean p over mean y.
        saturated: Rows whose logit is beyond ±30, where a probability is 0 or 1 for good; for a
            regression, rows whose score is the largest number of fp16 or fp32.
    """

    loss: float
    ne: float | None = None
    auc: float | None = None
    gauc: float | None = None
    calibration: float | None = None
    saturated: int = 0


@dataclass(frozen=True)
class Ranking:
    """How much of the original's top candidates of a group stays at the top.

    Attributes:
        k: How many candidates the top is.
        hard: The share of the original's top k that is in the optimized top k, a mean over groups.
        soft: The original's scores (as probabilities) of the optimized top k over the most that k
            candidates have: swapping two near equal ones costs nothing. None where a regression
            scores below 0.
    """

    k: int
    hard: Interval
    soft: float | None


@dataclass(frozen=True)
class Check:
    """One limit, held against one measurement. Every measure is one where smaller is better.

    Attributes:
        measure: What was measured, e.g. ``"ΔNE"``.
        limit: Its limit.
        interval: What the rows say.
        status: Pass, inconclusive or fail.
        more_rows: How many more rows would decide; None when that can't be promised.
        few: What the measurement has too few of to be trusted, or empty.
        name: By which a budget limits it, e.g. ``"ne"``.
        share: Whether it is a share, shown in percent.
    """

    measure: str
    limit: float
    interval: Interval
    status: Status
    more_rows: int | None
    few: str = ""
    name: str = ""
    share: bool = False


@dataclass(frozen=True)
class Block:
    """Rows of one time.

    Attributes:
        first: Its first row, counted from 0 among the rows judged.
        rows: How many there are.
        delta_ne: Their ΔNE.
        standard_error: Of it, clustered by group.
    """

    first: int
    rows: int
    delta_ne: float
    standard_error: float


@dataclass(frozen=True)
class BlockResult:
    """ΔNE by block of time.

    Attributes:
        blocks: In the order of time.
        p_value: How likely blocks would differ so much if all had one ΔNE (Cochran's Q).
    """

    blocks: tuple[Block, ...]
    p_value: float

    @property
    def differ(self) -> bool:
        """Whether they surely differ."""
        return self.p_value < 0.01


@dataclass(frozen=True)
class TaskResult:
    """One task, judged.

    Attributes:
        task: Its name.
        status: The worst of its checks.
        labels: ``"labels"`` or ``"soft labels"``.
        delta_ne: Relative change of NE (of the squared error for a regression task).
        before: Metrics of the original.
        after: Metrics of the optimized model.
        shift: How far its logits moved.
        checks: One for each limit.
        ranking: One for each k that is limited.
        blocks: Its ΔNE by block of time; None where there are too few rows for it.
    """

    task: str
    status: Status
    labels: str
    delta_ne: Interval
    before: Metrics
    after: Metrics
    shift: ShiftSummary
    checks: tuple[Check, ...]
    ranking: tuple[Ranking, ...] = ()
    blocks: BlockResult | None = None


@dataclass(frozen=True)
class CohortResult:
    """One cohort of one task.

    Attributes:
        task: The task.
        axis: Name of the cohort axis, e.g. ``"age"``.
        value: Which cohort of the axis.
        rows: Rows in it.
        status: Unknown when too small to judge.
        delta_ne: Its own change, at the verdict's confidence; None when unknown.
        corrected_low: Lower bound that allows for the number of cohorts looked at.
        p_value: Benjamini-Hochberg adjusted, of "it loses at most κ times the limit".
        calibration_before: Mean p over mean y in the cohort; None for a regression.
        calibration_after: The same of the optimized model.
        found: Whether it was found, on other rows, as a slice on which the models differ most.
        soft: Its damage on soft labels, which have no noise; None where it is too small for that.
        bounded: Whether that is surely within the limit.
    """

    task: str
    axis: str
    value: str
    rows: int
    status: CohortStatus
    delta_ne: Interval | None = None
    corrected_low: float | None = None
    p_value: float | None = None
    calibration_before: float | None = None
    calibration_after: float | None = None
    found: bool = False
    soft: Interval | None = None
    bounded: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it was asked for, and neither labels nor soft labels say that it is sound."""
        return self.status is CohortStatus.INCONCLUSIVE and not self.bounded and not self.found

    @property
    def name(self) -> str:
        """Which cohort it is, in words."""
        if self.found:
            return f"found cohort ({self.axis}: {self.value})"
        return f"cohort {self.axis}={self.value}"


@dataclass(frozen=True)
class Verdict:
    """Whether the optimized model still ranks as well as the original.

    Attributes:
        status: Pass, inconclusive, fail or unverified.
        rows: Rows it was judged on.
        confidence: Of every interval.
        labels: ``"labels"``; ``"soft labels"`` when any task was judged on the original's own
            scores; ``"none"`` when unverified.
        tasks: One result for each task.
        cohorts: Worst first, the unknown at the end.
        reasons: A sentence for each limit failed or left open, and how many more rows would decide.
        notes: What limits the verdict but doesn't decide it.
        failed: A sentence for each pass that failed or broke its promise, and so did nothing.
    """

    status: Status
    rows: int
    confidence: float
    labels: str
    tasks: tuple[TaskResult, ...] = ()
    cohorts: tuple[CohortResult, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def delta_ne(self) -> dict[str, Interval]:
        """The relative change of NE, by task."""
        return {result.task: result.delta_ne for result in self.tasks}

    @property
    def shift(self) -> dict[str, ShiftSummary]:
        """How far the logits moved, by task."""
        return {result.task: result.shift for result in self.tasks}

    @property
    def worst_delta_ne(self) -> float | None:
        """The largest upper bound of ΔNE over the tasks; None when unverified."""
        return max((result.delta_ne.high for result in self.tasks), default=None)

    @classmethod
    def unverified(cls, reason: str, confidence: float = 0.95) -> Verdict:
        """The verdict when there was nothing to measure on."""
        return cls(Status.UNVERIFIED, 0, confidence, "none", reasons=(reason,))

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        data: dict[str, Any] = _jsonable(asdict(self))
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_json`."""
        return cls(
            status=Status(data["status"]),
            rows=data["rows"],
            confidence=data["confidence"],
            labels=data["labels"],
            tasks=tuple(_task_from_json(task) for task in data["tasks"]),
            cohorts=tuple(_cohort_from_json(cohort) for cohort in data["cohorts"]),
            reasons=tuple(data["reasons"]),
            notes=tuple(data["notes"]),
            failed=tuple(data.get("failed", ())),
        )

    def __str__(self) -> str:
        if self.status is Status.UNVERIFIED:
            first = "UNVERIFIED: no rows to measure on"
            return "\n".join([first, *_failures(self.failed), *_bullets(self.reasons)])
        lines = [
            f"{self.status.value.upper()} on {self.rows:,} rows "
            f"({self.labels}, {100.0 * self.confidence:.4g} % confidence)",
            *_failures(self.failed),
        ]
        lines += [
            f"  {result.task}: ΔNE {_range(result.delta_ne, _percent)}, "
            f"logit shift {result.shift.relative:.2g} of their spread"
            for result in self.tasks
        ]
        lines += [
            f"  {result.task}: of the original's top {one.k}, {_range(one.hard, _share)} stay"
            + ("" if one.soft is None else f", and {_share(one.soft)} of their value")
            for result in self.tasks
            for one in result.ranking
        ]
        lines += [
            f"  {result.task}: {_lost(check)}"
            for result in self.tasks
            for check in result.checks
            if check.measure == check.name
        ]
        lines += [
            f"  {result.task} by time: {_by_time(result.blocks)}"
            for result in self.tasks
            if result.blocks is not None
        ]
        for found in (False, True):
            cohorts = (c for c in self.cohorts if c.delta_ne is not None and c.found is found)
            worst = next(cohorts, None)
            if worst is not None and worst.delta_ne is not None:
                lines.append(
                    f"  worst {worst.name} ({worst.task}): "
                    f"ΔNE {_range(worst.delta_ne, _percent)}, {worst.status.value}"
                    + _bounded(worst)
                )
        return "\n".join([*lines, *_bullets(self.reasons), *_bullets(self.notes)])


# --- JSON -----------------------------------------------------------------------------------------


def _jsonable(value: Any) -> Any:
    """The same of dicts, lists, strings and numbers only."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _task_from_json(data: Mapping[str, Any]) -> TaskResult:
    return TaskResult(
        task=data["task"],
        status=Status(data["status"]),
        labels=data["labels"],
        delta_ne=Interval.from_json(data["delta_ne"]),
        before=Metrics(**data["before"]),
        after=Metrics(**data["after"]),
        shift=ShiftSummary.from_json(data["shift"]),
        checks=tuple(
            Check(
                measure=check["measure"],
                limit=check["limit"],
                interval=Interval.from_json(check["interval"]),
                status=Status(check["status"]),
                more_rows=check["more_rows"],
                few=check.get("few", ""),
                name=check.get("name", ""),
                share=check.get("share", False),
            )
            for check in data["checks"]
        ),
        ranking=tuple(
            Ranking(one["k"], Interval.from_json(one["hard"]), one["soft"])
            for one in data.get("ranking", ())
        ),
        blocks=_blocks_from_json(data.get("blocks")),
    )


def _blocks_from_json(data: Mapping[str, Any] | None) -> BlockResult | None:
    if data is None:
        return None
    return BlockResult(tuple(Block(**block) for block in data["blocks"]), data["p_value"])


def _cohort_from_json(data: Mapping[str, Any]) -> CohortResult:
    delta, soft = data["delta_ne"], data.get("soft")
    return CohortResult(
        **{
            **data,
            "status": CohortStatus(data["status"]),
            "delta_ne": None if delta is None else Interval.from_json(delta),
            "soft": None if soft is None else Interval.from_json(soft),
        }
    )


# --- text -----------------------------------------------------------------------------------------


def _lost(check: Check) -> str:
    """What was lost of a measure of another package."""
    show = _percent if check.share else _plain
    limit = show(check.limit).lstrip("+")
    return f"{check.measure} lost {_range(check.interval, show)}, {limit} allowed"


def check_sentence(task: str, check: Check) -> str:
    """What a check found; empty when it passed."""
    if check.status is Status.PASS:
        return ""
    show = _percent if check.share else _plain
    limit = show(check.limit).lstrip("+")
    found = f"task {task!r}: {check.measure} {_range(check.interval, show)}"
    if check.name == "ne gain":
        return (
            f"{found} is surely over {limit}: a copy that differs this much was lucky on these "
            "rows; set two_sided=False if it was finetuned"
        )
    if check.status is Status.FAIL:
        return f"{found} is over the limit {limit}"
    if check.few:
        return (
            f"{found} is within the limit {limit}, but rests on fewer than {check.few}; about "
            f"{check.more_rows:,} more rows would decide"
        )
    seen = f"{found} straddles the limit {limit} on {check.interval.rows:,} rows"
    if "time" in check.interval.by:
        seen += ", clustered by time"
    if check.more_rows is None:
        return f"{seen}, and the estimate itself is not under it: more rows would likely fail it"
    return f"{seen}; about {check.more_rows:,} more would decide, if the estimate stays"


def cohort_sentence(cohort: CohortResult, factor: float, limit: float) -> str:
    """What a cohort lost over its limit, ``factor`` times the whole's; empty where it is sound."""
    within = f"{factor:g} times the limit ({_percent(limit).lstrip('+')})"
    told = f"task {cohort.task!r}: {cohort.name} ({cohort.rows:,} rows)"
    soft = "" if cohort.soft is None else f"{_range(cohort.soft, _percent)} on soft labels"
    if cohort.is_open:
        seen = "" if cohort.delta_ne is None else f"{_range(cohort.delta_ne, _percent)}, and "
        told = f"{told} is inconclusive: ΔNE {seen}{soft}, may be over {within}"
        more = None if cohort.soft is None else rows_to_decide(cohort.soft, limit)
        if cohort.delta_ne is not None and not more:
            more = rows_to_decide(cohort.delta_ne, limit)
        return f"{told}; about {more:,} more rows of it would decide" if more else told
    if cohort.status is not CohortStatus.FAIL:
        return ""
    if cohort.delta_ne is None or cohort.corrected_low is None or cohort.corrected_low <= limit:
        return f"{told} surely loses ΔNE {soft}: over {within}"
    return (
        f"{told} loses ΔNE {_percent(cohort.delta_ne.estimate)}, at least "
        f"{_percent(cohort.corrected_low)} after correction for the number of cohorts: over "
        f"{within}"
    )


def notes(
    tasks: tuple[TaskResult, ...],
    soft: tuple[str, ...],
    clusters: Clusters,
    cohorts: tuple[CohortResult, ...],
    unlisted: int,
) -> tuple[str, ...]:
    """What limits a verdict: soft labels, rows without groups, cohorts too small, saturation."""
    tiny = unlisted + sum(cohort.status is CohortStatus.UNKNOWN for cohort in cohorts)
    found = []
    if soft:
        names = ", ".join(repr(name) for name in soft)
        found.append(f"task {names}: no labels, judged on the original's own scores (soft labels)")
    if clusters.own is None:
        found.append(
            "rows are taken as independent but for their time; give `group` if a user has several"
        )
    elif len(np.unique(clusters.own)) == clusters.rows > 1:
        found.append("every row is a group of its own: `group` says nothing of which hang together")
    if clusters.repeats:
        found.append(
            f"{clusters.repeats:,} of {clusters.rows:,} rows repeat others, features and labels "
            "alike; a row counts once, however often it comes"
        )
    found += clusters.notes
    for task in tasks:
        if task.blocks is not None and task.blocks.differ:
            deltas = [block.delta_ne for block in task.blocks.blocks]
            found.append(
                f"task {task.task!r}: ΔNE differs from block to block of time, by more than chance "
                f"(p = {task.blocks.p_value:.1g}): from {_percent(min(deltas))} to "
                f"{_percent(max(deltas))}; rows to come may be as the worst of them"
            )
    if tiny:
        found.append(f"{tiny:,} cohorts are too small to judge: unknown, not passed")
    for task in tasks:
        before, after = task.before.saturated, task.after.saturated
        if after:
            found.append(
                f"task {task.task!r}: {after:,} rows are saturated (logits beyond ±30, or the "
                f"largest number of a format); {before:,} of the original's"
            )
    return tuple(found)


def _bounded(cohort: CohortResult) -> str:
    """What soft labels say of a cohort that its labels leave open."""
    if cohort.status is not CohortStatus.INCONCLUSIVE or cohort.soft is None:
        return ""
    within = "which bounds it" if cohort.bounded else "which doesn't bound it"
    return f"; {_range(cohort.soft, _percent)} on soft labels, {within}"


def _by_time(found: BlockResult) -> str:
    """ΔNE of each block, and how sure it is at the median."""
    errors = sorted(block.standard_error for block in found.blocks)
    deltas = ", ".join(f"{100.0 * block.delta_ne:+.3f}" for block in found.blocks)
    rows = sum(block.rows for block in found.blocks) // len(found.blocks)
    return (
        f"ΔNE {deltas} % in {len(found.blocks)} blocks of {rows:,} rows, each ± "
        f"{100.0 * 1.96 * errors[len(errors) // 2]:.3f}"
    )


def _bullets(sentences: Iterable[str]) -> list[str]:
    return [f"  - {sentence}" for sentence in sentences]


def _failures(sentences: Iterable[str]) -> list[str]:
    return [f"  OPTIMIZER ERROR: {sentence}" for sentence in sentences]


def _range(interval: Interval, show: Callable[[float], str]) -> str:
    return f"{show(interval.estimate)} [{show(interval.low)}, {show(interval.high)}]"


def _percent(value: float) -> str:
    return f"{100.0 * value:+.4f} %"


def _share(value: float) -> str:
    return f"{value:.2%}"


def _plain(value: float) -> str:
    return f"{value:.4g}"


def least(left: float | None, right: float | None) -> float | None:
    """The smaller of two, of which either may be missing."""
    known = [value for value in (left, right) if value is not None]
    return min(known, default=None)
