"""Columns of a table to ids and standardised numbers, learnt on the training rows alone."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from .archive import DataUnavailable
from .rows import Floats, Ints

UNKNOWN = 0


def import_pandas() -> Any:
    """Imports pandas, which only the loaders of real data need."""
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise DataUnavailable(
            "reading this data set needs pandas: pip install rankc[demo]"
        ) from error


def encode_ids(
    frame: Any,  # a pandas DataFrame, which has no types
    columns: tuple[str, ...],
    train_rows: npt.NDArray[np.bool_],
) -> tuple[Ints, tuple[int, ...]]:
    """Numbers the values of each column from 1, the most frequent in training first.

    Missing values, and values that no training row has, become `UNKNOWN`. Ties are broken by
    value, so that the numbering doesn't depend on the order of the rows.

    Returns:
        ids `[N, len(columns)]` int64, and the number of ids per column with the unknown one.
    """
    pandas = import_pandas()
    encoded, cardinalities = [], []
    for name in columns:
        codes, values = pandas.factorize(frame[name], sort=True)
        counts = np.bincount(codes[train_rows & (codes >= 0)], minlength=len(values))
        by_frequency = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        # One entry more than there are values: factorize marks a missing one by -1.
        new_id = np.full(len(values) + 1, UNKNOWN, dtype=np.int64)
        new_id[by_frequency] = np.arange(1, len(by_frequency) + 1)
        encoded.append(new_id[codes])
        cardinalities.append(len(by_frequency) + 1)
    return np.stack(encoded, axis=1), tuple(cardinalities)


def standardise(
    frame: Any,  # a pandas DataFrame, which has no types
    columns: tuple[str, ...],
    train_rows: npt.NDArray[np.bool_],
) -> Floats:
    """Scales each column to mean 0 and deviation 1 over the training rows.

    Missing values take the mean, so they become 0.

    Returns:
        `[N, len(columns)]` float32.
    """
    values = frame.loc[:, list(columns)].to_numpy(dtype=np.float64)
    mean = np.nanmean(values[train_rows], axis=0)
    deviation = np.nanstd(values[train_rows], axis=0)
    scaled = (values - mean) / np.where(deviation > 0, deviation, 1.0)
    filled: Floats = np.nan_to_num(scaled, nan=0.0).astype(np.float32)
    return filled


def first_rows(total: int, share: float) -> npt.NDArray[np.bool_]:
    """Marks the first `share` of rows: the training side of a split by time. `[total]` bool."""
    return np.arange(total) < int(total * share)
