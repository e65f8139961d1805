"""The dialect: the few operators ranking models need beyond core ATen."""

from __future__ import annotations

import torch
from torch import Tensor

from .dialect import define_op

_FLOAT8_MAX = {torch.float8_e4m3fn: 448.0}


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    """Per-channel values shaped to broadcast along ``axis``; scalars stay as they are."""
    if values.dim() == 0:
        return values
    shape = [1] * rank
    shape[axis] = values.shape[0]
    return values.reshape(shape)


def _quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, dtype: torch.dtype
) -> Tensor:
    """``clamp(round(x / scale) + zero_point)`` in integers, saturating cast in FP8 (ONNX rules)."""
    scaled = x / _along(scale, axis, x.dim())
    limit = _FLOAT8_MAX.get(dtype)
    if limit is not None:
        return scaled.clamp(-limit, limit).to(dtype)
    bounds = torch.iinfo(dtype)
    codes = torch.round(scaled) + _along(zero_point, axis, x.dim()).to(x.dtype)
    return codes.clamp(bounds.min, bounds.max).to(dtype)


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """``(codes - zero_point) * scale``, in the scale's dtype."""
    values = codes.to(scale.dtype)
    if not codes.dtype.is_floating_point:
        values = values - _along(zero_point, axis, codes.dim()).to(scale.dtype)
    decoded: Tensor = values * _along(scale, axis, codes.dim())
    return decoded


def _round_rows(x: Tensor) -> Tensor:
    """The nearest values that int8 codes hold whose scale is each row's own: its largest / 127."""
    peak = torch.ops.aten.amax.default(torch.ops.aten.abs.default(x), [-1], True)
    scale = torch.ops.aten.clamp.default(peak / 127.0, torch.finfo(x.dtype).tiny)
    rounded: Tensor = torch.round(x / scale) * scale
    return rounded


def _rowwise_embedding(codes: Tensor, scale: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """``codes[ids] * scale[ids] + bias[ids]``: a floating-point bias instead of a zero point."""
    lookup = torch.ops.aten.embedding.default
    decoded: Tensor = lookup(codes, ids).to(scale.dtype) * lookup(scale, ids) + lookup(bias, ids)
    return decoded


#: x ``[...]`` float, scale and zero_point ``[]`` or ``[channels]`` -> codes ``[...]`` of ``dtype``.
QUANTIZE = define_op(
    "quantize(Tensor x, Tensor scale, Tensor zero_point, int axis, ScalarType dtype) -> Tensor",
    _quantize,
)

#: codes ``[...]``, scale and zero_point ``[]`` or ``[channels]`` -> ``[...]`` in the scale's dtype.
DEQUANTIZE = define_op(
    "dequantize(Tensor codes, Tensor scale, Tensor zero_point, int axis) -> Tensor", _dequantize
)

#: x ``[..., K]`` float -> ``[..., K]`` float: quantized and dequantized, a scale per row. A row's
#: scale is its own, so that a score doesn't depend on the other rows of its batch.
ROUND_ROWS = define_op("round_rows(Tensor x) -> Tensor", _round_rows)

#: codes ``[R, D]`` uint8, scale and bias ``[R, 1]`` float, ids ``[...]`` -> ``[..., D]`` float.
#: Row-wise quantized table with a floating-point bias (2105.12676, and FBGEMM's fused rows).
ROWWISE_EMBEDDING = define_op(
    "rowwise_embedding(Tensor codes, Tensor scale, Tensor bias, Tensor ids) -> Tensor",
    _rowwise_embedding,
)


def _dot_interaction(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``(x @ xᵀ)[:, rows, columns]``; ONNX Runtime gathers by two indices faster than by one."""
    every_pair = torch.ops.aten.bmm.default(x, x.transpose(1, 2))
    pairs: Tensor = torch.ops.aten.index.Tensor(every_pair, [None, rows, columns])
    return pairs


#: x ``[B, n, d]``, rows and columns ``[P]`` int64 -> ``[B, P]``: dot products of pairs of rows.
#: DLRM's interaction (1906.00091), PNN's inner products.
DOT_INTERACTION = define_op(
    "dot_interaction(Tensor x, Tensor rows, Tensor columns) -> Tensor", _dot_interaction
)
