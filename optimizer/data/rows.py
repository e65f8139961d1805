"""What users hand in: batches of rows. And rows made up from the signature when they don't."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, SignatureError
from ..ir.program import Program, bind_arguments, with_defaults
from ..ir.signature import Feature, FeatureKind, Signature, TaskKind
from ..ir.structure import Structure
from .limits import id_limits, id_lows, taken
from .listcolumns import from_lists
from .ragged import Ragged, check_delimiters, join, ragged_of, row_count, take
from .times import time_column

#: Rows kept for calibrating ranges, unless the user hands them in apart.
CALIBRATION_ROWS = 4096
#: Of the remaining rows, the share that chooses the plan; the rest proves it.
CHOICE_SHARE = 0.3
#: Rows a batch of an internal run holds.
RUN_BATCH = 2048


@dataclass(frozen=True)
class Batch:
    """Rows of traffic.

    Attributes:
        inputs: What the model takes: a tuple of arguments, a dict, or one tensor; the first
            dimension of every tensor is the row.
        labels: A tensor ``[B]`` in [0, 1], or one per task; None without labels.
        group: ``[B]`` integers, the user or request a row belongs to: rows of one group aren't
            independent, and top-k is taken within it.
        cohorts: ``{name: [B]}`` integers or strings, slices that are judged apart.
        time: ``[B]`` numbers, dates or text that sorts by time: when each row came. Rows are put in
            its order, and judged on the latest; without it the order they are given in counts.
    """

    inputs: Any
    labels: Any = None
    group: Any = None
    cohorts: Mapping[str, Any] | None = None
    time: Any = None


class Contract(Protocol):
    """What a call is held against: a `Program`, or the manifest of an artifact."""

    @property
    def signature(self) -> Signature:
        """The features and tasks."""

    @property
    def inputs(self) -> Structure:
        """How a call's arguments map to features."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments."""


_DELIMITERS = (FeatureKind.OFFSETS, FeatureKind.LENGTHS)


@dataclass(frozen=True)
class Rows:
    """Rows by feature name, as the program takes them.

    Attributes:
        features: ``{name: [N, …]}``.
        labels: ``{task: [N]}`` float64, or None.
        group: ``[N]`` int64, or None.
        cohorts: ``{name: [N]}``.
        synthetic: Whether they were made up from the signature.
        first: Which row of the user's data comes first, so that messages can name rows.
        ragged: What delimits the features whose rows hold different numbers of ids.
        time: ``[N]``, when each row came, never falling; None where the order is all that tells.
        notes: What there is to say of how they were read.
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
        )

    def in_order(self) -> Rows:
        """The rows in the order of their time; those of one time stay as they were given."""
        if self.time is None or bool((self.time[1:] >= self.time[:-1]).all()):
            return self
        order = np.argsort(self.time, kind="stable")
        behind = int((self.time[1:] < self.time[:-1]).argmax()) + 1
        told = (
            f"the rows were sorted by time, which goes backwards first in row {behind}; the "
            "latest prove"
        )
        return replace(self.picked(order), notes=(*self.notes, told))

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


def call_of(arguments: tuple[str, ...], inputs: Any) -> dict[str, Any]:
    """The model's arguments by name, from a batch's ``inputs``.

    A tuple or list is the positional arguments, a dict is keyword arguments if its keys are
    argument names and else the model's one argument, anything else is the one argument.

    Raises:
        SignatureError: Too many arguments.
    """
    if isinstance(inputs, Mapping):
        named = set(inputs) & set(arguments)
        if set(inputs) == named or (named and len(arguments) > 1):
            return bind_arguments(arguments, (), inputs)
        return bind_arguments(arguments, (inputs,), {})
    plain = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
    return bind_arguments(arguments, tuple(inputs) if plain else (inputs,), {})


def as_batch(item: Any, arguments: tuple[str, ...]) -> Batch:
    """What an iterable of data yields, as a `Batch`.

    Accepted: a `Batch`; ``(inputs, labels)``; and what a DataLoader over a TensorDataset yields,
    the model's arguments with the labels last.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, (tuple, list)):
        if len(item) == 2 and (len(arguments) == 1 or not isinstance(item[0], Tensor | np.ndarray)):
            return Batch(item[0], item[1])
        if len(item) == len(arguments) + 1:
            return Batch(tuple(item[:-1]), item[-1])
    return Batch(item)


def first_inputs(data: Any, arguments: tuple[str, ...]) -> tuple[Any, Iterable[Any]]:
    """The first batch's inputs, and the data with that batch still in it.

    Raises:
        DataError: No batch at all.
    """
    iterator = iter(data)
    try:
        first = next(iterator)
    except StopIteration:
        raise DataError("data is empty: it yields no batch.") from None

    def again() -> Iterator[Any]:
        yield first
        yield from iterator

    return as_batch(first, arguments).inputs, (data if data is not iterator else again())


def collect(data: Iterable[Any], program: Contract, max_rows: int = 1_000_000) -> Rows:
    """All rows of ``data``, checked against the program's signature.

    Raises:
        SignatureError: Names, dtypes or shapes don't fit; ids are beyond their table.
        DataError: NaN or Inf in the inputs, labels outside [0, 1] or of unknown tasks, no rows.
    """
    ragged = ragged_of(program.signature)
    features: list[dict[str, Tensor]] = []
    labels: dict[str, list[Any]] = {}
    groups: list[Any] = []
    times: list[Any] = []
    cohorts: dict[str, list[Any]] = {}
    rows = 0
    for item in data:
        batch = as_batch(item, program.arguments)
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
    return Rows(
        join(features, ragged),
        together["labels"] or None,
        group,
        together["cohorts"] or None,
        ragged=ragged,
        time=time,
    ).in_order()


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
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SignatureError(
            f"feature {name!r} is a {type(value).__name__}, expected a tensor or an array of "
            f"numbers ({error})."
        ) from error


def check_features(
    signature: Signature, features: Mapping[str, Tensor], first_row: int = 0
) -> None:
    """Raises unless the tensors fit the signature.

    Raises:
        SignatureError: Which feature has which wrong dtype, shape or ids.
        DataError: Which feature is NaN or Inf, and in which row first.
    """
    batch: int | None = None
    for feature in signature:
        value = features[feature.name]
        _check_shape(feature, value)
        if feature.shape and feature.shape[0] == "batch":
            if batch is not None and len(value) != batch:
                raise SignatureError(
                    f"feature {feature.name!r} has {len(value)} rows, the others have {batch}."
                )
            batch = len(value)
        _check_values(feature, value, first_row)
    check_delimiters(signature, features, batch)


def _check_shape(feature: Feature, value: Tensor) -> None:
    dtype = str(value.dtype).removeprefix("torch.")
    fits = dtype == feature.dtype
    if not fits:
        raise SignatureError(
            f"feature {feature.name!r} is {dtype}, expected {feature.dtype}. "
            f"Convert it, as in {feature.name}.to(torch.{feature.dtype})."
        )
    if value.dim() != len(feature.shape) or any(
        isinstance(expected, int) and expected != size
        for expected, size in zip(feature.shape, value.shape, strict=True)
    ):
        shape = ", ".join(map(str, feature.shape))
        raise SignatureError(
            f"feature {feature.name!r} has shape {list(value.shape)}, expected [{shape}]."
        )


def _check_values(feature: Feature, value: Tensor, first_row: int) -> None:
    if value.numel() == 0:
        return
    if value.is_floating_point():
        bad = ~torch.isfinite(value)
        if bool(bad.any()) and feature.missing:
            bad &= ~taken(feature, value)
        if bool(bad.any()):
            rows = bad.reshape(len(value), -1).any(1).nonzero().flatten()
            raise DataError(
                f"feature {feature.name!r} has NaN or Inf in {len(rows):,} rows, first in row "
                f"{first_row + int(rows[0])}. Fill missing values as in training, before scoring "
                "or in the model's forward: its own scores of them are NaN or Inf."
            )
    if feature.bounds is not None:
        low, high = feature.bounds
        outside = (value < low) | (value > high)
        if bool(outside.any()):
            row = int(outside.reshape(len(value), -1).any(1).to(torch.int8).argmax())
            raise SignatureError(
                f"feature {feature.name!r} is {float(value[outside].flatten()[0]):g} in row "
                f"{first_row + row}, outside of {low:g} to {high:g}, beyond which nothing is known."
            )
    if feature.cardinalities and feature.kind not in _DELIMITERS:
        _check_ids(feature, value.to(torch.int64), first_row)


def _check_ids(feature: Feature, ids: Tensor, first_row: int) -> None:
    lows, limits = id_lows(feature), id_limits(feature)
    bad = ((ids >= limits) | (ids < lows)) & (limits > 0)
    if not bool(bad.any()):
        return
    rows = bad.reshape(len(ids), -1).any(1).nonzero().flatten()
    first = 0
    if len(feature.cardinalities) > 1:
        first = int(bad.movedim(feature.axis, 0).flatten(1).any(1).nonzero()[0])
        bad = bad & (torch.arange(len(feature.cardinalities)) == first).reshape(limits.shape)
        rows = bad.reshape(len(ids), -1).any(1).nonzero().flatten()
    column = f", column {first}" if len(feature.cardinalities) > 1 else ""
    low, limit = feature.least[first], feature.cardinalities[first]
    table = f"its table of {limit:,} rows" if low == 0 else f"{low:,} to {limit - 1:,}"
    raise SignatureError(
        f"feature {feature.name!r}{column} has ids beyond {table} in "
        f"{len(rows):,} rows: from {int(ids[bad].min())} to {int(ids[bad].max())}, first in row "
        f"{first_row + int(rows[0])}. Map unknown ids to a known row, or hash them into the table."
    )


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
    bad, what, remedy = ~np.isfinite(label), "NaN or Inf", ""
    if task.kind is TaskKind.BINARY and not bad.any():
        bad, what = (label < 0) | (label > 1), "outside [0, 1]"
        remedy = (
            " If the task is a regression, say so: signature=rankc.capture(model, inputs).signature"
            f".with_task({name!r}, kind=rankc.TaskKind.REGRESSION)."
        )
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"label {name!r} is {what} in {int(bad.sum()):,} rows, first in row "
            f"{first_row + row}: {label[row]}.{remedy}"
        )
    return label


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


def synthesize(signature: Signature, rows: int, seed: int = 0) -> Rows:
    """Rows made up from the signature: normal dense values, ids uniform over their tables.

    Integers that are looked up nowhere are 1, by which a model may divide: nothing in a signature
    tells what they are. Where the program is at hand, `optimizer/compare/ordinary.py` finds out
    what it takes.
    """
    generator = torch.Generator().manual_seed(seed)
    ragged = ragged_of(signature)
    features = {}
    for feature in signature:
        # Two ids a row, so that every row has some and their number isn't the rows'.
        count = 2 * rows if feature.delimiter else rows
        features[feature.name] = _made_up(feature, count, generator)
    for one in ragged:
        dtype = features[one.delimiter].dtype
        lengths = torch.full((rows,), 2, dtype=torch.int64)
        features[one.delimiter] = one.delimiter_of(lengths, dtype)
    return Rows(features, synthetic=True, ragged=ragged)


def _made_up(feature: Feature, rows: int, generator: torch.Generator) -> Tensor:
    sizes = [size if isinstance(size, int) else rows for size in feature.shape]
    dtype: torch.dtype = getattr(torch, feature.dtype)
    if feature.kind is FeatureKind.OFFSETS:
        return torch.arange(sizes[0], dtype=dtype)
    if feature.kind is FeatureKind.LENGTHS:
        return torch.ones(sizes, dtype=dtype)
    if dtype is torch.bool:
        held = torch.rand(sizes, generator=generator) < 0.75
        if len(sizes) > 1:
            held[..., 0] = True  # no list is empty
        return held
    if feature.cardinalities:
        uniform = torch.rand(sizes, generator=generator, dtype=torch.float64)
        lows, limits = id_lows(feature), id_limits(feature)
        ids = (lows + (uniform * (limits - lows)).floor()).to(dtype)
        if not dtype.is_floating_point or all(feature.cardinalities):
            return ids
        dense = torch.randn(sizes, generator=generator).to(dtype)
        return torch.where(limits > 0, ids, dense)
    if feature.bounds is not None:
        low, high = feature.bounds
        return (low + torch.rand(sizes, generator=generator) * (high - low)).to(dtype)
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    return torch.ones(sizes, dtype=dtype)


@dataclass(frozen=True)
class Parquet:
    """A parquet file of rows whose columns are named like the features.

    A feature of several columns is either one column of lists, or columns ``name_0``, ``name_1``
    and so on. Ids whose number differs from row to row are one column of lists, called like the
    feature of their values with or without ``_values``; offsets or lengths follow from the lists.

    Attributes:
        path: The file.
        labels: Label columns, ``"column"`` or ``"task=column"``; when empty, the columns named
            like the tasks.
        group: The column of users or requests.
        cohorts: Columns of slices that are judged apart.
        time: The column of when a row came.
    """

    path: str | Path
    labels: tuple[str, ...] = ()
    group: str | None = None
    cohorts: tuple[str, ...] = ()
    time: str | None = None

    def batches(self, program: Program) -> Iterator[Batch]:
        """The rows, as batches the program's model would take.

        Raises:
            DataError: The file or a column is missing, or pyarrow isn't installed.
        """
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise DataError("reading parquet needs pyarrow: pip install rankc[data]") from error
        if not Path(self.path).is_file():
            raise DataError(f"{self.path} is not a file.")
        try:
            file = parquet.ParquetFile(self.path)
        except (ArrowException, OSError) as error:
            raise DataError(f"{self.path} is no parquet file: {error}") from error
        columns = set(file.schema_arrow.names)
        labels = self._label_columns(program, columns)
        wanted = [*labels.values(), *filter(None, (self.group, self.time)), *self.cohorts]
        missing = [column for column in wanted if column not in columns]
        if missing:
            raise DataError(f"{self.path} has no column {missing}; it has {sorted(columns)}.")
        ragged = ragged_of(program.signature)
        for chunk in file.iter_batches(batch_size=65536):
            leaves: dict[str, Tensor] = {}
            for one in ragged:
                leaves |= from_lists(one, program.signature, chunk, self.path)
            values = chunk.to_pandas()
            known = {*leaves, *program.signature.unused}
            rest = (f for f in program.signature if f.name not in known)
            leaves |= {f.name: _from_columns(f, values, self.path) for f in rest}
            leaves = with_defaults(program.signature, leaves)
            yield Batch(
                program.inputs.unflatten(leaves),
                {task: values[column].to_numpy() for task, column in labels.items()} or None,
                values[self.group].to_numpy() if self.group else None,
                {name: values[name].to_numpy() for name in self.cohorts} or None,
                values[self.time].to_numpy() if self.time else None,
            )

    def _label_columns(self, program: Program, columns: set[str]) -> dict[str, str]:
        """Which column holds each task's label."""
        if not self.labels:
            tasks = [task.name for task in program.signature.served]
            return {task: task for task in tasks if task in columns}
        pairs = [text.rpartition("=") for text in self.labels]
        return {task or column: column for task, _, column in pairs}


def _from_columns(feature: Feature, values: Any, path: str | Path) -> Tensor:
    dtype: torch.dtype = getattr(torch, feature.dtype)
    if feature.name in values.columns:
        column = values[feature.name].to_numpy()
        if column.dtype == object:
            column = _stacked(feature, column, path)
    else:
        width = feature.shape[1] if len(feature.shape) == 2 else 0
        names = [f"{feature.name}_{i}" for i in range(width)] if isinstance(width, int) else []
        if not names or any(name not in values.columns for name in names):
            raise DataError(
                f"{path} has no column for feature {feature.name!r}: neither {feature.name!r} (a "
                f"list per row if it has several values) nor {feature.name}_0, {feature.name}_1 "
                f"and so on; it has {sorted(values.columns)}."
            )
        column = values[names].to_numpy()
    if column.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: column {feature.name!r} holds {column.dtype}, expected {feature.dtype}. "
            "Encode it as numbers first."
        )
    if feature.is_integer and column.dtype.kind == "f" and not np.isfinite(column).all():
        raise DataError(
            f"{path}: column {feature.name!r} has empty values. Fill them with the id of a known "
            "row first."
        )
    tensor = torch.tensor(np.ascontiguousarray(column)).to(dtype)
    # A column of single numbers may stand for [batch, 1].
    return tensor.unsqueeze(1) if tensor.dim() == 1 and feature.shape[1:] == (1,) else tensor


def _stacked(feature: Feature, column: Any, path: str | Path) -> np.ndarray[Any, Any]:
    """A column of equally long lists, or of lists of such lists, as one array."""
    try:
        stacked: np.ndarray[Any, Any] = np.stack(list(column))
        if stacked.dtype == object and stacked.ndim > 1:
            stacked = np.stack([np.stack(list(row)) for row in stacked])
    except ValueError as error:
        raise DataError(
            f"{path}: the lists of column {feature.name!r} differ in length, expected "
            f"{list(feature.shape[1:])} values a row. Pad them."
        ) from error
    return stacked
