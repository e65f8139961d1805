"""What a feature's values may be, as tensors to hold them against."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ir.signature import MISSING, Feature


def id_limits(feature: Feature) -> Tensor:
    """One more than the largest of each id, shaped to broadcast over the ids."""
    return _by_column(feature, feature.cardinalities)


def id_lows(feature: Feature) -> Tensor:
    """The least of each id, shaped to broadcast over the ids."""
    return _by_column(feature, feature.least)


def _by_column(feature: Feature, numbers: tuple[int, ...]) -> Tensor:
    values = torch.tensor(numbers)
    if len(numbers) == 1:
        return values
    return values.reshape([-1 if d == feature.axis else 1 for d in range(len(feature.shape))])


def taken(feature: Feature, value: Tensor) -> Tensor:
    """Which values are missing and may be."""
    found = torch.zeros_like(value, dtype=torch.bool)
    for word in MISSING:
        columns = torch.tensor([word in words.split() for words in feature.missing])
        here = torch.isnan(value) if word == "nan" else value == float(word)
        found |= here & columns  # one entry for all of it, or one a column of [B, columns]
    return found
