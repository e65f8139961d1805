"""Columns of a linear's input that are scaled, or stay in fp32, and what that makes of a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ir.facts import Precision
from .codes import SMALLEST_STEP

#: How much of the columns' differences the weights bear (SmoothQuant's alpha).
_STRENGTHS = (0.5, 0.75, 1.0)


def low_weight(weight: Tensor, precision: Precision) -> Tensor:
    """The weight that is quantized: columns scaled back, and those kept in fp32 zero."""
    if precision.column_scale:
        scale = torch.tensor(precision.column_scale)
        weight = weight / torch.where(scale == 0.0, torch.ones_like(scale), scale)
    if precision.kept:
        weight = weight.clone()
        weight[:, list(precision.kept)] = 0.0
    return weight


def column_scale(precision: Precision, inputs: int) -> Tensor | None:
    """What a row-wise linear multiplies its input by: kept columns take no part in the range."""
    if not precision.column_scale and not precision.kept:
        return None
    scale = torch.tensor(precision.column_scale) if precision.column_scale else torch.ones(inputs)
    scale[list(precision.kept)] = 0.0
    return scale


def column_scales(peaks: Tensor, weight: Tensor) -> list[tuple[float, ...]]:
    """Multipliers ``[K]`` that even out the input's columns, by how much of it the weights bear."""
    size, weights = _positive(peaks), _positive(weight.abs().amax(0))
    scales = []
    for strength in _STRENGTHS:
        scale = weights ** (1.0 - strength) / size**strength
        scale[peaks == 0] = 1.0
        # Powers of two multiply without rounding.
        even = 2.0 ** (scale / scale.median()).log2().round().clamp(-60, 60)
        scales.append(tuple(even.tolist()))
    return scales


def without(samples: Tensor, kept: tuple[int, ...]) -> Tensor:
    """Samples ``[n, K]`` less the columns that stay fp32."""
    if not kept:
        return samples
    mask = torch.ones(samples.shape[1], dtype=torch.bool)
    mask[list(kept)] = False
    return samples[:, mask]


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(float(values.max()) * 1e-6).clamp_min(SMALLEST_STEP)
