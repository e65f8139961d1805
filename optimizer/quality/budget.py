"""How much quality may be given up: a `Budget` of limits, as values, a line of text and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from ..errors import BudgetError
from ..plugins import plugin_names

_LIMITS: Final = ("ne", "auc", "gauc", "calibration", "max_shift", "max_rms_shift")
_RESERVED: Final = frozenset(",=+")
_FOR_ALL_TASKS: Final = ("cohorts", "find_cohorts", "confidence")


@dataclass(frozen=True)
class Budget:
    """Limits on what an optimized model may lose against the original; None sets no limit.

    Attributes:
        ne: Relative rise of normalized entropy; 2e-4 is 0.02 %. For a regression task, of the mean
            squared error.
        auc: Absolute drop of the AUC, e.g. 0.001.
        gauc: Absolute drop of the AUC within groups. Needs ``group``.
        calibration: Relative change, either way, of the calibration ratio (mean p / mean y).
        recall_at: ``(k, least recall)``, ``{k: least recall, ...}`` or pairs: how much of the
            original's top k the optimized top k of each group must keep, on average. Kept as a
            tuple of pairs. Needs ``group``.
        max_shift: Largest shift of any row's logit. A maximum has no interval, so the limit applies
            to the rows seen; ``N`` clean rows say that under ``3 / N`` of rows are over (95 %).
        max_rms_shift: Rms logit shift over the standard deviation of the original's logits. With
            ``two_sided`` it rejects copies that differ a lot and score well by luck. Sound 8-bit
            formats sit at 0.015-0.05, a site that doesn't stand 8 bits at 0.2 and more.
        batch_shift: Rms shift of a row's logit, over the logits' standard deviation, when the other
            rows of its batch change. Static formats only round differently from one batch size to
            the next (under 0.001); None allows scales taken from the whole batch.
        two_sided: Also fail a copy whose NE is *better* by more than ``ne``, surely (its upper
            bound below ``-ne``): nobody asked it to change. Turn off after finetuning.
        tasks: ``{task: Budget}``: replaces all limits of the task. Kept as a tuple of pairs.
        measures: ``{name: limit}``: how much may be lost of measures that other packages bring
            (`rankc.Measure`). Kept as a tuple of pairs.
        cohorts: True gates every cohort axis the data brings; or the names of those to gate.
        find_cohorts: Whether the slices on which the two models differ most are found, on rows
            apart, and gated like given cohorts (`optimizer/quality/found_cohorts.py`).
        confidence: Of every interval (two-sided).

    Raises:
        BudgetError: a limit that makes no sense.
    """

    ne: float | None = 2e-4
    auc: float | None = None
    gauc: float | None = None
    calibration: float | None = None
    recall_at: Mapping[int, float] | tuple[int, float] | tuple[tuple[int, float], ...] | None = None
    max_shift: float | None = None
    max_rms_shift: float | None = 0.1
    batch_shift: float | None = 0.003
    two_sided: bool = True
    tasks: Mapping[str, Budget] | tuple[tuple[str, Budget], ...] = ()
    cohorts: bool | tuple[str, ...] = True
    find_cohorts: bool = True
    confidence: float = 0.95
    measures: Mapping[str, float] | tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name in (*_LIMITS, "batch_shift"):
            _check_limit(name, getattr(self, name))
        check_confidence(self.confidence)
        for name in ("two_sided", "find_cohorts"):
            if not isinstance(getattr(self, name), bool):
                raise BudgetError(f"budget: {name} is True or False, found {getattr(self, name)!r}")
        object.__setattr__(self, "recall_at", _recall_pairs(self.recall_at) or None)
        object.__setattr__(self, "cohorts", _cohort_names(self.cohorts))
        object.__setattr__(self, "tasks", _task_pairs(self.tasks))
        object.__setattr__(self, "measures", _measure_pairs(self.measures))
        limited = any(getattr(self, name) is not None for name in (*_LIMITS, "recall_at"))
        if not limited and not self.measures:
            raise BudgetError("budget: it sets no limit at all; give at least ne=")

    @property
    def cuts(self) -> tuple[tuple[int, float], ...]:
        """``recall_at`` as pairs of k and least recall, by k."""
        return _recall_pairs(self.recall_at)

    @property
    def measured(self) -> tuple[tuple[str, float], ...]:
        """``measures`` as pairs of name and limit."""
        return _measure_pairs(self.measures)

    @property
    def overrides(self) -> dict[str, Budget]:
        """``tasks`` as a dict."""
        return dict(self.tasks)

    def for_task(self, task: str) -> Budget:
        """The limits of one task, with this budget's confidence and cohorts."""
        own = self.overrides.get(task, self)
        shared = {name: getattr(self, name) for name in _FOR_ALL_TASKS}
        return replace(own, tasks=(), **shared)

    def scaled(self, share: float) -> Budget:
        """The budget with its ΔNE limits times ``share``, so that a plan has room to be wrong."""
        tasks = {task: own.scaled(share) for task, own in self.overrides.items()}
        return replace(self, ne=None if self.ne is None else self.ne * share, tasks=tasks)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads a budget from a line: ``"ne=0.02%,auc=0.001,recall_at=10:0.95,cvr.ne=0.0005"``.

        ``task.limit=`` starts a budget of the task's own; ``none`` lifts a limit; several cuts or
        cohorts are joined by ``+``.

        Raises:
            BudgetError: an unknown or repeated limit, or a value that can't be read.
        """
        own: dict[str, Any] = {}
        tasks: dict[str, dict[str, Any]] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, sign, value = (piece.strip() for piece in part.partition("="))
            task, _, name = key.rpartition(".")
            given = tasks.setdefault(task, {}) if task else own
            if sign and name not in _READERS and name in plugin_names("rankc.measures"):
                taken = given.setdefault("measures", {})
                if name in taken:
                    raise BudgetError(f"budget {part!r}: {key} is given twice")
                taken[name] = _read_number(part, value)
                continue
            if not sign or name not in _READERS:
                known = [*_READERS, *sorted(plugin_names("rankc.measures"))]
                raise BudgetError(
                    f"budget {part!r}: expected limit=value with a limit of {', '.join(known)}"
                )
            if name in given:
                raise BudgetError(f"budget {part!r}: {key} is given twice")
            given[name] = _READERS[name](part, value)
        return cls(**own, tasks={task: cls(**given) for task, given in tasks.items()})

    def spec(self) -> str:
        """The line that `parse` reads back: ``ne`` and whatever differs from the defaults."""
        lines = self._fields_as_text("")
        for task, budget in self.overrides.items():
            lines += budget._fields_as_text(f"{task}.")
        return ",".join(lines)

    def _fields_as_text(self, prefix: str) -> list[str]:
        kept = [
            field.name
            for field in fields(self)
            if field.name in _READERS
            and (field.name == "ne" or getattr(self, field.name) != field.default)
        ]
        lines = [f"{prefix}{name}={_as_text(getattr(self, name))}" for name in kept]
        return [*lines, *(f"{prefix}{name}={limit!r}" for name, limit in self.measured)]

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, every field named."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["recall_at"] = [list(pair) for pair in self.cuts]
        data["measures"] = dict(self.measured)
        data["tasks"] = {task: budget.to_json() for task, budget in self.overrides.items()}
        data["cohorts"] = list(self.cohorts) if isinstance(self.cohorts, tuple) else self.cohorts
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        """The inverse of `to_json`; fields left out have their defaults.

        Raises:
            BudgetError: an unknown field, or a value that makes no sense.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise BudgetError(f"budget: unknown {', '.join(unknown)}; known: {sorted(known)}")
        values = dict(data)
        if values.get("recall_at") is not None:
            values["recall_at"] = tuple((k, least) for k, least in values["recall_at"])
        if isinstance(values.get("cohorts"), list):
            values["cohorts"] = tuple(values["cohorts"])
        values["tasks"] = {
            task: cls.from_json(budget) for task, budget in dict(values.get("tasks", {})).items()
        }
        return cls(**values)

    def __str__(self) -> str:
        return self.spec()


def check_confidence(confidence: object) -> None:
    """Refuses what is no confidence.

    Raises:
        BudgetError: not a number, or outside (0, 1).
    """
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
        raise BudgetError(f"budget: confidence is a number, found {confidence!r}")
    if not 0.0 < confidence < 1.0:
        raise BudgetError(f"budget: confidence={confidence} is outside (0, 1); 95 % is 0.95")


def _check_limit(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BudgetError(f"budget: {name} is a number or None, found {value!r}")
    if math.isnan(value) or math.isinf(value):
        raise BudgetError(f"budget: {name}={value} is no limit; use None for no limit")
    if value < 0:
        raise BudgetError(f"budget: {name}={value} is negative; a limit is what may be lost")
    if name in ("ne", "auc", "gauc", "calibration") and value >= 1:
        raise BudgetError(f"budget: {name}={value} is 100 % or more; 0.0002 is 0.02 %")


def _recall_pairs(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    try:
        pairs = value.items() if isinstance(value, Mapping) else value
        if not isinstance(value, Mapping) and len(value) == 2 and isinstance(value[0], int):
            pairs = (value,)
        found = sorted((k, least) for k, least in pairs)
    except (TypeError, ValueError) as error:
        raise BudgetError(
            f"budget: recall_at={value!r}; expected (k, least recall) or {{k: least recall}}"
        ) from error
    for k, least in found:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise BudgetError(f"budget: recall_at needs a whole k of at least 1, found {k!r}")
        if not isinstance(least, (int, float)) or not 0.0 <= least <= 1.0:
            raise BudgetError(f"budget: recall@{k} of at least {least!r} is outside [0, 1]")
    if len({k for k, _ in found}) < len(found):
        raise BudgetError(f"budget: recall_at gives one k twice: {found}")
    return tuple((k, float(least)) for k, least in found)


def _cohort_names(value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise BudgetError(f"budget: cohorts is True, False or a tuple of names, found {value!r}")
    for name in value:
        if not name or name in ("true", "false") or _RESERVED & set(name):
            raise BudgetError(f"budget: {name!r} can't name a cohort axis")
    return tuple(value) or False


def _measure_pairs(value: Any) -> tuple[tuple[str, float], ...]:
    pairs = tuple(value.items() if isinstance(value, Mapping) else value)
    for name, limit in pairs:
        if not isinstance(name, str) or not name or _RESERVED & set(name) or "." in name:
            raise BudgetError(f"budget: {name!r} can't name a measure")
        if limit is None:
            raise BudgetError(f"budget: measure {name!r} has no limit; leave it out")
        _check_limit(f"measure {name!r}", limit)
    if len(dict(pairs)) < len(pairs):
        raise BudgetError(f"budget: a measure is given twice: {[name for name, _ in pairs]}")
    return tuple((name, float(limit)) for name, limit in pairs)


def _task_pairs(value: Any) -> tuple[tuple[str, Budget], ...]:
    pairs = tuple(value.items() if isinstance(value, Mapping) else value)
    for task, budget in pairs:
        if not isinstance(task, str) or not isinstance(budget, Budget):
            raise BudgetError(f"budget: tasks maps names to Budgets, found {task!r}: {budget!r}")
        if not task or _RESERVED & set(task):
            raise BudgetError(f"budget: {task!r} can't name a task")
        if budget.tasks:
            raise BudgetError(f"budget: the budget of task {task!r} has tasks of its own")
        if any(getattr(budget, name) != getattr(Budget, name) for name in _FOR_ALL_TASKS):
            raise BudgetError(
                "budget: cohorts, find_cohorts and confidence hold for all tasks; take them out of "
                f"{task!r}'s"
            )
    if len({task for task, _ in pairs}) < len(pairs):
        raise BudgetError(f"budget: a task is given twice: {[task for task, _ in pairs]}")
    return pairs


def _read_number(part: str, value: str) -> float | None:
    if value.lower() == "none":
        return None
    scale = 100.0 if value.endswith("%") else 1.0
    try:
        return float(value.removesuffix("%")) / scale
    except ValueError as error:
        raise BudgetError(f"budget {part!r}: {value!r} is not a number") from error


def _read_flag(part: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise BudgetError(f"budget {part!r}: expected true or false")
    return value.lower() == "true"


def _read_recall(part: str, value: str) -> tuple[tuple[int, float], ...] | None:
    if value.lower() == "none":
        return None
    try:
        cuts = [cut.split(":") for cut in value.split("+")]
        return tuple((int(k), float(least)) for k, least in cuts)
    except ValueError as error:
        raise BudgetError(f"budget {part!r}: expected k:recall, such as 10:0.95") from error


def _read_cohorts(part: str, value: str) -> bool | tuple[str, ...]:
    if value.lower() in ("true", "false"):
        return _read_flag(part, value)
    return tuple(value.split("+"))


_READERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "ne": _read_number,
    "auc": _read_number,
    "gauc": _read_number,
    "calibration": _read_number,
    "recall_at": _read_recall,
    "max_shift": _read_number,
    "max_rms_shift": _read_number,
    "batch_shift": _read_number,
    "two_sided": _read_flag,
    "cohorts": _read_cohorts,
    "find_cohorts": _read_flag,
    "confidence": _read_number,
}


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(
            item if isinstance(item, str) else f"{item[0]}:{item[1]!r}" for item in value
        )
    return repr(value)
