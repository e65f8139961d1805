"""What a feature's values may be, as arrays to hold them against."""

from __future__ import annotations

import numpy as np

from ..ir.signature import MISSING, Feature
from .arrays import Array


def id_limits(feature: Feature) -> Array:
    """One more than the largest of each id, shaped to broadcast over the ids."""
    return _by_column(feature, feature.cardinalities)


def id_lows(feature: Feature) -> Array:
    """The least of each id, shaped to broadcast over the ids."""
    return _by_column(feature, feature.least)


def _by_column(feature: Feature, numbers: tuple[int, ...]) -> Array:
    values = np.array(numbers, np.int64)
    if len(numbers) == 1:
        return values
    return values.reshape([-1 if d == feature.axis else 1 for d in range(len(feature.shape))])


def taken(feature: Feature, value: Array) -> Array:
    """Which values are missing and may be."""
    found = np.zeros(value.shape, bool)
    for word in MISSING:
        columns = np.array([word in words.split() for words in feature.missing])
        here = np.isnan(value) if word == "nan" else value == float(word)
        found |= here & columns  # one entry for all of it, or one a column of [B, columns]
    return found
