"""Checked rows by feature name, and the disjoint sets they are split into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..ir.program import with_defaults
from ..ir.signature import Signature, TaskKind
from .arrays import array_of
from .batch import Batch, Contract, as_batch, call_of
from .checks import check_features
from .delimiters import Ragged, ragged_of, row_count
from .ragged import join, take
from .times import time_column

#: Rows kept for calibrating ranges, unless the user hands them in apart.
CALIBRATION_ROWS = 4096
#: Of the remaining rows, the share that chooses the plan; the rest proves it.
CHOICE_SHARE = 0.3
#: Rows a batch of an internal run holds.
RUN_BATCH = 2048


@dataclass(frozen=True)
class Rows:
    """Rows by feature name, as the program takes them.

    Attributes:
        features: ``{name: [N, …]}``.
        labels: ``{task: [N]}`` float64, NaN where one is missing, or None.
        group: ``[N]`` int64, or None.
        cohorts: ``{name: [N]}``.
        synthetic: Whether they were made up from the signature.
        first: Which row of the user's data comes first, so that messages can name rows.
        ragged: What delimits the features whose rows hold different numbers of ids.
        time: ``[N]``, when each row came, never falling; None where the order is all that tells.
        notes: What there is to say of how they were read.
        weights: ``[N]`` float64, how many rows of traffic each stands for; None where all count
            the same.
    """

    features: Mapping[str, Tensor]
    labels: Mapping[str, np.ndarray[Any, Any]] | None = None
    group: np.ndarray[Any, Any] | None = None
    cohorts: Mapping[str, np.ndarray[Any, Any]] | None = None
    synthetic: bool = False
    first: int = 0
    ragged: tuple[Ragged, ...] = ()
    time: np.ndarray[Any, Any] | None = None
    notes: tuple[str, ...] = ()
    weights: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return row_count(self.features, self.ragged)

    def part(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop``."""
        piece = slice(start, stop)
        return replace(
            self,
            features=take(self.features, self.ragged, piece)
            if self.ragged
            else {name: value[piece] for name, value in self.features.items()},
            labels=None
            if self.labels is None
            else {name: value[piece] for name, value in self.labels.items()},
            group=None if self.group is None else self.group[piece],
            cohorts=None
            if self.cohorts is None
            else {name: value[piece] for name, value in self.cohorts.items()},
            first=self.first + start,
            time=None if self.time is None else self.time[piece],
            weights=None if self.weights is None else self.weights[piece],
        )

    def filled(self, count: int) -> Rows:
        """The first ``count`` rows, repeated from the start where there are too few."""
        if len(self) >= count:
            return self.part(0, count)
        order = torch.arange(count) % len(self)
        return Rows(take(self.features, self.ragged, order), ragged=self.ragged)

    def spread(self, count: int) -> Rows:
        """At most so many rows, evenly spaced, so that all of the time they cover is in them."""
        if len(self) <= count:
            return self
        return self.picked(spread_over(len(self), count))

    def picked(self, picked: np.ndarray[Any, np.dtype[np.int64]]) -> Rows:
        """Some rows, by their places, in that order."""
        return replace(
            self,
            features=take(self.features, self.ragged, torch.from_numpy(picked)),
            labels=None if self.labels is None else {k: v[picked] for k, v in self.labels.items()},
            group=None if self.group is None else self.group[picked],
            cohorts=None
            if self.cohorts is None
            else {name: value[picked] for name, value in self.cohorts.items()},
            time=None if self.time is None else self.time[picked],
            weights=None if self.weights is None else self.weights[picked],
        )

    def in_order(self) -> Rows:
        """The rows in the order of their time; those of one time stay as they were given."""
        if self.time is None or bool((self.time[1:] >= self.time[:-1]).all()):
            return self
        order = np.argsort(self.time, kind="stable")
        behind = int((self.time[1:] < self.time[:-1]).argmax()) + 1
        note = (
            f"the rows were sorted by time, which goes backwards first in row {behind}; the "
            "latest prove"
        )
        return replace(self.picked(order), notes=(*self.notes, note))

    def batches(self, size: int = RUN_BATCH) -> Iterator[dict[str, Tensor]]:
        """The features in batches."""
        for start in range(0, len(self), size):
            yield dict(self.part(start, start + size).features)


def spread_over(total: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most ``count`` of the positions below ``total``, evenly spaced."""
    count = min(total, count)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


@dataclass(frozen=True)
class Split:
    """Three disjoint sets of rows.

    Attributes:
        calibration: Ranges and statistics.
        choice: Chooses the plan.
        proof: Proves it; never seen before.
    """

    calibration: Rows
    choice: Rows
    proof: Rows

    def __str__(self) -> str:
        return (
            f"{len(self.calibration):,} to calibrate, {len(self.choice):,} to choose the plan, "
            f"{len(self.proof):,} to prove it"
        )


def collect(data: Iterable[Any], program: Contract, max_rows: int = 1_000_000) -> Rows:
    """All rows of ``data``, checked against the program's signature.

    Raises:
        SignatureError: Names, dtypes or shapes don't fit; ids are beyond their table.
        DataError: NaN or Inf in the inputs, labels outside [0, 1] or of unknown tasks, weights
            that are negative, no rows.
    """
    ragged = ragged_of(program.signature)
    features: list[dict[str, Tensor]] = []
    labels: dict[str, list[Any]] = {}
    groups: list[Any] = []
    times: list[Any] = []
    weights: list[Any] = []
    cohorts: dict[str, list[Any]] = {}
    rows = 0
    for item in data:
        batch = _with_labels(as_batch(item, program.arguments), program.signature)
        found = features_of(program, batch.inputs)
        check_features(program.signature, found, first_row=rows)
        features.append(found)
        count = row_count(found, ragged)
        for task, values in _labels(program.signature, batch.labels, count, rows).items():
            labels.setdefault(task, []).append(values)
        if batch.group is not None:
            groups.append(_column("group", batch.group, count))
        if batch.time is not None:
            times.append(_column("time", batch.time, count))
        if batch.weights is not None:
            weights.append(_weights(_column("weights", batch.weights, count), rows))
        for name, values in (batch.cohorts or {}).items():
            cohorts.setdefault(name, []).append(_column(f"cohort {name}", values, count))
        rows += count
        if rows >= max_rows:
            break
    if rows == 0:
        raise DataError("data is empty: it has no rows.")
    together = {
        "labels": {task: np.concatenate(parts) for task, parts in labels.items()},
        "cohorts": {name: np.concatenate(parts) for name, parts in cohorts.items()},
    }
    for what, columns in together.items():
        for name, column in columns.items():
            if len(column) != rows:
                raise DataError(
                    f"{what} {name!r} is missing from some batches: {len(column):,} of {rows:,} "
                    "rows."
                )
    group = np.concatenate(groups) if groups else None
    if group is not None and len(group) != rows:
        raise DataError(f"group is missing from some batches: {len(group):,} of {rows:,} rows.")
    time = time_column(np.concatenate(times), sum(map(len, times))) if times else None
    if time is not None and len(time) != rows:
        raise DataError(f"time is missing from some batches: {len(time):,} of {rows:,} rows.")
    weight = np.concatenate(weights) if weights else None
    if weight is not None and len(weight) != rows:
        raise DataError(f"weights are missing from some batches: {len(weight):,} of {rows:,} rows.")
    for name, column in together["labels"].items():
        if np.isnan(column).all():
            raise DataError(
                f"label {name!r} is missing in every row. Leave the task out of the labels: it is "
                "then judged by the original's own scores."
            )
    return Rows(
        join(features, ragged),
        together["labels"] or None,
        group,
        together["cohorts"] or None,
        ragged=ragged,
        time=time,
        weights=weight,
    ).in_order()


def _tasks_of(signature: Signature) -> dict[str, str]:
    """The task a label may be called after: its own name, or the output's in the model.

    They differ where a feature has the output's name, as where labels lay among an example's.
    """
    names = [task.name for task in signature.tasks]
    short = {name.removesuffix("_out"): name for name in names}
    return {**{k: v for k, v in short.items() if k in signature.names}, **{n: n for n in names}}


def _with_labels(batch: Batch, signature: Signature) -> Batch:
    """The batch with the labels that lie among its features, called like the model's tasks."""
    if batch.labels is not None or not isinstance(batch.inputs, Mapping):
        return batch
    read = set(signature.names) - set(signature.unused)
    names = set(_tasks_of(signature)) - read
    labels = {name: value for name, value in batch.inputs.items() if name in names}
    if not labels:
        return batch
    kept = {
        name: value
        for name, value in batch.inputs.items()
        if name not in labels or name in signature.unused
    }
    return replace(batch, inputs=kept, labels=labels)


def _weights(column: np.ndarray[Any, Any], first_row: int) -> np.ndarray[Any, Any]:
    try:
        weights = column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the weights aren't numbers: {error}.") from error
    bad = ~(np.isfinite(weights) & (weights >= 0.0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"the weights are negative, NaN or Inf in {int(bad.sum()):,} rows, first in row "
            f"{first_row + row}: {weights[row]}. Give each row the number of rows it stands for, 0 "
            "for one that doesn't count."
        )
    return weights


def _labels(
    signature: Signature, labels: Any, rows: int, first_row: int
) -> dict[str, np.ndarray[Any, Any]]:
    if labels is None:
        return {}
    names = [task.name for task in signature.served]
    if not isinstance(labels, Mapping):
        try:
            values = torch.as_tensor(labels)
        except (TypeError, ValueError) as error:
            raise DataError(f"the labels aren't numbers: {error}.") from error
        every = [task.name for task in signature.tasks]
        columns = next(
            (c for c in (names, every) if values.dim() == 2 and values.shape[1] == len(c) > 1), None
        )
        if columns is not None:
            labels = {name: values[:, index] for index, name in enumerate(columns)}
        elif len(names) == 1:
            labels = {names[0]: values}
        else:
            raise DataError(
                f"the model has {len(names)} tasks {names}; give labels as a dict of task to "
                f"tensor, got one of shape {list(values.shape)}."
            )
    elif len(names) == 1 and len(labels) == 1:
        labels = {names[0]: next(iter(labels.values()))}
    own = _tasks_of(signature)
    labels = {own.get(name, name): values for name, values in labels.items()}
    # What is only learned isn't judged.
    auxiliary = {task.name for task in signature.tasks if task.auxiliary}
    labels = {name: values for name, values in labels.items() if name not in auxiliary}
    unknown = [name for name in labels if name not in names]
    if unknown:
        raise DataError(f"labels for unknown tasks {unknown}; the model's tasks are {names}.")
    return {
        name: _checked_label(signature, name, _column(f"label {name}", values, rows), first_row)
        for name, values in labels.items()
    }


def _checked_label(
    signature: Signature, name: str, column: np.ndarray[Any, Any], first_row: int
) -> np.ndarray[Any, Any]:
    try:
        label = column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"label {name!r} isn't a number: {error}.") from error
    (task,) = (task for task in signature.served if task.name == name)
    if task.missing is not None:
        label = np.where(label == task.missing, np.nan, label)
    bad, what, remedy = np.isinf(label), "Inf", " NaN is a missing label."
    if task.kind is TaskKind.BINARY and not bad.any():
        bad, what = (label < 0) | (label > 1), "outside [0, 1]"
        remedy = _outside(name, label[bad]) if bad.any() else ""
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"label {name!r} is {what} in {int(bad.sum()):,} rows, first in row "
            f"{first_row + row}: {label[row]}.{remedy}"
        )
    return label


def _outside(name: str, found: np.ndarray[Any, Any]) -> str:
    """What to do about labels that are no probability: a sentinel is one value, others aren't."""
    said = f"signature=rankc.capture(model, inputs).signature.with_task({name!r}, "
    regression = f" If the task is a regression, say so: {said}kind=rankc.TaskKind.REGRESSION)."
    value = float(found[0])
    if len(np.unique(found)) > 1 or not value.is_integer():
        return regression
    return (
        f" If {value:g} stands for a missing label, say so: {said}missing={value:g}).{regression}"
    )


def _column(what: str, values: Any, rows: int) -> np.ndarray[Any, Any]:
    column = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    column = column.reshape(len(column), -1)[:, 0] if column.ndim > 1 else column
    if len(column) != rows:
        raise DataError(f"{what} has {len(column)} rows, the inputs have {rows}.")
    return column


def split(rows: Rows, calibration: Rows | None = None) -> Split:
    """Calibration, choice and proof rows: disjoint, in the order given, the last ones prove.

    Order is kept so that rows sorted by time are judged on the most recent ones: those that prove
    reach past those that choose.

    Raises:
        DataError: Too few rows to split.
    """
    if len(rows) < 30:
        raise DataError(
            f"{len(rows)} rows are too few to calibrate, choose and prove on disjoint sets; "
            "give at least 30, and tens of thousands for a budget of 0.02 %."
        )
    taken = 0 if calibration is not None else min(CALIBRATION_ROWS, len(rows) // 5)
    kept = calibration if calibration is not None else rows.part(0, taken)
    middle = taken + int((len(rows) - taken) * CHOICE_SHARE)
    return Split(kept, rows.part(taken, middle), rows.part(middle, len(rows)))


def features_of(program: Contract, inputs: Any) -> dict[str, Tensor]:
    """One call's inputs as tensors by feature name."""
    optional = program.signature.optional
    found = program.inputs.flatten(call_of(program.arguments, inputs), optional)
    return with_defaults(program.signature, tensors_of(program.signature, found))


def tensors_of(signature: Signature, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a caller gave as tensors by feature name, less what nothing reads.

    Raises:
        SignatureError: One can't be a tensor.
    """
    unused = signature.unused
    return {name: _tensor(name, v) for name, v in found.items() if name not in unused}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    array = array_of(name, value)
    if any(stride < 0 for stride in array.strides):  # which tensors can't have
        array = array.copy()
    return torch.from_numpy(array)
