"""Columns of lists in a table, as features whose rows hold different numbers of ids.

One column per feature of values, or of weights: a list per row. Where each row begins, or how many
ids it has, follows from the lists, so that the delimiter needs no column.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..ir.signature import Feature, Signature
from .ragged import Ragged


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
    found[one.delimiter] = one.delimiter_of(torch.from_numpy(lengths), dtype)
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
