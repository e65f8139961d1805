"""Rows from a parquet file whose columns are named like the features.

Ids whose number differs from row to row are one column of lists per feature of values, or of
weights: where each row begins, or how many ids it has, follows from the lists, so that the
delimiter needs no column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..ir.program import Program, with_defaults
from ..ir.signature import Feature, Signature
from .batch import Batch
from .delimiters import Ragged, ragged_of
from .ragged import delimiter_of


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
        weights: The column of how many rows of traffic a row stands for.
    """

    path: str | Path
    labels: tuple[str, ...] = ()
    group: str | None = None
    cohorts: tuple[str, ...] = ()
    time: str | None = None
    weights: str | None = None

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
        wanted = [
            *labels.values(),
            *filter(None, (self.group, self.time, self.weights)),
            *self.cohorts,
        ]
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
                {task: _numbers(values[column]) for task, column in labels.items()} or None,
                values[self.group].to_numpy() if self.group else None,
                {name: values[name].to_numpy() for name in self.cohorts} or None,
                values[self.time].to_numpy() if self.time else None,
                values[self.weights].to_numpy() if self.weights else None,
            )

    def _label_columns(self, program: Program, columns: set[str]) -> dict[str, str]:
        """Which column holds each task's label."""
        if not self.labels:
            tasks = [task.name for task in program.signature.served]
            return {task: task for task in tasks if task in columns}
        pairs = [text.rpartition("=") for text in self.labels]
        return {task or column: column for task, _, column in pairs}


def _numbers(column: Any) -> np.ndarray[Any, Any]:
    """A column of labels; what is null in it is NaN, a missing label."""
    if column.isna().any():
        column = column.astype(object).where(column.notna(), np.nan)
    return np.asarray(column.to_numpy())


def _check_whole(name: str, column: np.ndarray[Any, Any], path: str | Path) -> None:
    """Raises where numbers that are to be ids have a fraction."""
    broken = np.flatnonzero((column != np.floor(column)).reshape(len(column), -1).any(1))
    if len(broken):
        row = int(broken[0])
        raise DataError(
            f"{path}: column {name!r} holds {column.dtype} with fractions, {column[row].tolist()} "
            f"in row {row} of a row group, and its feature takes whole numbers. Write it as "
            "integers; if it is no id, let the model take floats."
        )


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
    if feature.is_integer and column.dtype.kind == "f":
        _check_whole(feature.name, column, path)
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


def from_lists(one: Ragged, signature: Signature, rows: Any, path: str | Path) -> dict[str, Tensor]:
    """The features that one delimiter delimits, and the delimiter itself.

    A row without a list has no ids.

    Args:
        one: What delimits what.
        signature: The features.
        rows: A ``pyarrow.RecordBatch``.
        path: The file, for messages.

    Raises:
        DataError: A column is missing, holds no lists or no numbers, or lists of one row that
            belong together differ in length.
    """
    found: dict[str, Tensor] = {}
    lengths, first = np.zeros(0, dtype=np.int64), ""
    for name in one.values:
        column = _column_of(name, rows.schema.names, path)
        counts, values = _lists(rows.column(column), column, signature.feature(name), path)
        if first and not np.array_equal(counts, lengths):
            row = int((counts != lengths).argmax())
            raise DataError(
                f"{path}: columns {first!r} and {column!r} belong together and have lists of "
                f"different lengths: {int(lengths[row])} and {int(counts[row])} in row {row} of a "
                "row group."
            )
        lengths, first = counts, first or column
        found[name] = values
    dtype: torch.dtype = getattr(torch, signature.feature(one.delimiter).dtype)
    found[one.delimiter] = delimiter_of(one, torch.from_numpy(lengths), dtype)
    return found


def _column_of(name: str, columns: list[str], path: str | Path) -> str:
    """The column of a feature: called like it, or like it less ``_values``."""
    short = name.removesuffix("_values")
    for column in (name, short):
        if column in columns:
            return column
    names = " or ".join(repr(column) for column in dict.fromkeys((name, short)))
    raise DataError(
        f"{path} has no column for feature {name!r}: a list per row, in a column called {names}; "
        f"it has {sorted(columns)}."
    )


def _lists(
    column: Any, name: str, feature: Feature, path: str | Path
) -> tuple[np.ndarray[Any, Any], Tensor]:
    """How many values each row has, int64 ``[B]``, and all values one after another."""
    from pyarrow import compute, types

    kind = column.type
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if not any(is_list(kind) for is_list in lists):
        raise DataError(f"{path}: column {name!r} holds {kind}, expected a list of ids per row.")
    inner = kind.value_type
    if not (types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)):
        raise DataError(
            f"{path}: column {name!r} holds lists of {inner}, expected {feature.dtype}. Encode "
            "them as numbers first."
        )
    if types.is_floating(inner) and feature.is_integer:
        raise DataError(
            f"{path}: column {name!r} holds lists of {inner}, expected {feature.dtype}. Convert "
            "them first."
        )
    values = compute.list_flatten(column)
    if values.null_count:
        raise DataError(
            f"{path}: column {name!r} has empty values within its lists. Leave them out, or fill "
            "them with the id of a known row."
        )
    counts = compute.fill_null(compute.list_value_length(column), 0)
    array = values.to_numpy(zero_copy_only=False)
    tensor = torch.tensor(np.ascontiguousarray(array)).to(getattr(torch, feature.dtype))
    return counts.to_numpy(zero_copy_only=False).astype(np.int64), tensor
