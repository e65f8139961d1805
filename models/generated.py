"""Rows made up by a known rule, for tests and for machines where no data set can be had."""

from __future__ import annotations

import numpy as np

from .encoding import UNKNOWN, first_rows
from .flights import TRAIN_SHARE
from .rows import RankingData, Rows

ID_NAMES = ("plane", "flight", "route", "carrier", "hour", "origin")
VALUES = (800, 600, 120, 16, 20, 3)
DENSE_NAMES = ("wind", "rain", "visibility", "distance")
# Positive rates near those of the real flights.
BIAS = {"late_arr": -1.8, "late_dep": -2.0, "cancelled": -4.5}
SECONDS_PER_ROW = 90
START_OF_2013 = 1_356_998_400


def synthetic_flights(rows: int = 20_000, seed: int = 0) -> RankingData:
    """Generates rows that look like `load_flights()`. They are made up and prove nothing.

    Ids follow a power law. A label's log odds are a sum of an effect per id, a linear effect of
    the dense features, and one interaction of two ids; labels are drawn from it, so no model can
    be perfect. The tasks share the rule and differ in their rate. Rows are in order of time and
    split 80/20; ids that the training rows lack are 0 in the test rows.

    Args:
        rows: training and test rows together.
        seed: the same seed gives the same rows.
    """
    if rows < 10:
        raise ValueError(f"rows must be at least 10, got {rows}")
    rng = np.random.default_rng(seed)
    train_rows = first_rows(rows, TRAIN_SHARE)
    ids = np.stack([power_law(rng, rows, values) for values in VALUES], axis=1)
    dense = rng.standard_normal((rows, len(DENSE_NAMES))).astype(np.float32)
    vectors = [rng.normal(0.0, 0.6, (values + 1, 4)) for values in VALUES]
    looked_up = np.stack([table[ids[:, i]] for i, table in enumerate(vectors)], axis=1)
    log_odds = looked_up[:, :, 0].sum(axis=1)
    log_odds += (looked_up[:, 0] * looked_up[:, 2]).sum(axis=1)
    log_odds += dense @ rng.normal(0.0, 0.5, len(DENSE_NAMES))
    labels = {
        task: (rng.random(rows) < 1.0 / (1.0 + np.exp(-bias - log_odds))).astype(np.float32)
        for task, bias in BIAS.items()
    }
    plane, carrier = ids[:, 0].copy(), ids[:, 3]
    for column in ids.T:
        column[~np.isin(column, column[train_rows])] = UNKNOWN
    generated = Rows(
        dense=dense,
        ids=ids,
        labels=labels,
        group=plane,
        cohorts={"carrier": np.char.add("carrier ", carrier.astype(np.str_))},
        timestamp=START_OF_2013 + SECONDS_PER_ROW * np.arange(rows, dtype=np.int64),
    )
    return RankingData(
        name="generated, not real",
        licence="none needed: generated",
        train=generated.take(train_rows),
        test=generated.take(~train_rows),
        dense_names=DENSE_NAMES,
        id_names=ID_NAMES,
        cardinalities=tuple(values + 1 for values in VALUES),
    )


def power_law(
    rng: np.random.Generator, rows: int, values: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Draws ids from 1 to `values`, the low ones often; `[rows]` int64."""
    weights = 1.0 / np.arange(1, values + 1)
    return rng.choice(values, size=rows, p=weights / weights.sum()).astype(np.int64) + 1
