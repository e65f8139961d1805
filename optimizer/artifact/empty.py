"""Batches without rows: a runtime that has no scores of nothing is asked for those of one row.

A minimum over no values has none, so a runtime refuses it: where a format's range is found in the
batch, or a backend fixes the least size of a batch. What an empty batch scores is known all the
same: as many outputs, of the same types and widths, of no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.delimiters import ragged_of
from ..ir.signature import BATCH, Feature, Signature
from .chunks import ArrayRunner


def is_empty(signature: Signature, arrays: Mapping[str, Any]) -> bool:
    """Whether a batch has no rows."""
    counts = [
        one.rows({one.delimiter: arrays[one.delimiter]})
        for one in ragged_of(signature)
        if one.delimiter in arrays
    ]
    counts += [
        len(arrays[f.name])
        for f in signature
        if f.shape[:1] == (BATCH,) and np.ndim(arrays.get(f.name, 0))
    ]
    return bool(counts) and not any(counts)


def scores_of_nothing(
    run: ArrayRunner, signature: Signature, arrays: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of an empty batch, from those of a row that any model takes.

    Args:
        run: Scores batches that have rows.
        signature: What it takes.
        arrays: The empty batch.
    """
    given = {f.name: _row(f, arrays[f.name]) for f in signature if f.name in arrays}
    for one in ragged_of(signature):
        if one.delimiter not in arrays:
            continue
        made = one.delimiter_of(np.zeros(1, np.int64))
        given[one.delimiter] = made.astype(arrays[one.delimiter].dtype)
        given |= {name: arrays[name][:0] for name in one.values if name in arrays}
    return {name: value[:0] for name, value in run(given).items()}


def _row(feature: Feature, empty: Any) -> np.ndarray[Any, Any]:
    """One row of a feature: its least ids, else ones, which divide."""
    shape = [1 if size == BATCH else n for size, n in zip(feature.shape, empty.shape, strict=True)]
    row = np.ones(shape, empty.dtype)
    if feature.bounds is not None:
        row = np.full(shape, feature.bounds[0]).astype(empty.dtype)
    if any(feature.cardinalities):
        lows = [
            max(low, 0) if high else 1
            for low, high in zip(feature.least, feature.cardinalities, strict=True)
        ]
        sizes = [1] * len(shape)
        if len(lows) > 1:
            sizes[feature.axis] = len(lows)
        row = np.broadcast_to(np.array(lows, empty.dtype).reshape(sizes), shape).copy()
    return row
