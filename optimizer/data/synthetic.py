"""Rows made up from the signature."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ir.signature import Feature, FeatureKind, Signature
from .delimiters import ragged_of
from .limits import id_limits, id_lows
from .ragged import delimiter_of
from .rows import Rows


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
        features[one.delimiter] = delimiter_of(one, lengths, dtype)
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
        lows, limits = map(torch.from_numpy, (id_lows(feature), id_limits(feature)))
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
