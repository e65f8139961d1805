"""The dialect: the few operators ranking models need beyond core ATen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .dialect import define_op
from .traits import Coded, Flops, NotFinite, OnRows, Rounding, Values

_FLOAT8_MAX = {torch.float8_e4m3fn: 448.0}
#: Rows that are all one value have no steps; dividing by zero would be no code.
_SMALLEST_STEP = torch.finfo(torch.float32).tiny
#: Offsets that an error shows.
_SHOWN = 8


def along(values: Tensor, axis: int, rank: int) -> Tensor:
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
    scaled = x / along(scale, axis, x.dim())
    limit = _FLOAT8_MAX.get(dtype)
    if limit is not None:
        return scaled.clamp(-limit, limit).to(dtype)
    bounds = torch.iinfo(dtype)
    codes = torch.round(scaled) + along(zero_point, axis, x.dim()).to(x.dtype)
    return codes.clamp(bounds.min, bounds.max).to(dtype)


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """``(codes - zero_point) * scale``, in the scale's dtype."""
    values = codes.to(scale.dtype)
    if not codes.dtype.is_floating_point:
        values = values - along(zero_point, axis, codes.dim()).to(scale.dtype)
    decoded: Tensor = values * along(scale, axis, codes.dim())
    return decoded


def _rowwise_embedding(codes: Tensor, scale: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """``codes[ids] * scale[ids] + bias[ids]``: a floating-point bias instead of a zero point."""
    lookup = torch.ops.aten.embedding.default
    decoded: Tensor = lookup(codes, ids).to(scale.dtype) * lookup(scale, ids) + lookup(bias, ids)
    return decoded


def _rowwise_embedding4(codes: Tensor, scale: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """The same with two 4-bit codes a byte, the low half first."""
    lookup = torch.ops.aten.embedding.default
    pairs = lookup(codes, ids)
    halves = torch.stack([pairs & 15, torch.bitwise_right_shift(pairs, 4)], dim=-1)
    step, low = lookup(scale, ids).to(torch.float32), lookup(bias, ids).to(torch.float32)
    decoded: Tensor = halves.flatten(-2).to(torch.float32) * step + low
    return decoded


#: x ``[...]`` float, scale and zero_point ``[]`` or ``[channels]`` -> codes ``[...]`` of ``dtype``.
QUANTIZE = define_op(
    "quantize(Tensor x, Tensor scale, Tensor zero_point, int axis, ScalarType dtype) -> Tensor",
    _quantize,
    rows=OnRows.SAME,
    flops=Flops.ELEMENTS,
    rounding=Rounding.NONE,
)

#: codes ``[...]``, scale and zero_point ``[]`` or ``[channels]`` -> ``[...]`` in the scale's dtype.
DEQUANTIZE = define_op(
    "dequantize(Tensor codes, Tensor scale, Tensor zero_point, int axis) -> Tensor",
    _dequantize,
    rows=OnRows.SAME,
    flops=Flops.FREE,
    learned=(0,),
    coded=Coded.IS,
    rounding=Rounding.ONCE,
)

#: codes ``[R, D]`` uint8, scale and bias ``[R, 1]`` float, ids ``[...]`` -> ``[..., D]`` float.
#: Row-wise quantized table with a floating-point bias (2105.12676, and FBGEMM's fused rows).
ROWWISE_EMBEDDING = define_op(
    "rowwise_embedding(Tensor codes, Tensor scale, Tensor bias, Tensor ids) -> Tensor",
    _rowwise_embedding,
    rows=OnRows.LOOKUP,
    flops=Flops.CODED_LOOKUP,
    tables=(0,),
    coded=Coded.IS,
    lookup=(0, 3),
    rounding=Rounding.ONCE,
)

#: codes ``[R, D / 2]`` uint8, scale and bias ``[R, 1]`` float16, ids ``[...]`` -> ``[..., D]``
#: float32: the same at 4 bits.
ROWWISE_EMBEDDING4 = define_op(
    "rowwise_embedding4(Tensor codes, Tensor scale, Tensor bias, Tensor ids) -> Tensor",
    _rowwise_embedding4,
    rows=OnRows.LOOKUP,
    flops=Flops.CODED_LOOKUP,
    coded=Coded.IS,
    lookup=(0, 3),
    rounding=Rounding.ONCE,
)


def _dot_interaction(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``(x @ xᵀ)[:, rows, columns]``; ONNX Runtime gathers by two indices faster than by one."""
    every_pair = torch.ops.aten.bmm.default(x, x.transpose(1, 2))
    pairs: Tensor = torch.ops.aten.index.Tensor(every_pair, [None, rows, columns])
    return pairs


#: x ``[B, n, d]``, rows and columns ``[P]`` int64 -> ``[B, P]``: dot products of pairs of rows.
#: DLRM's interaction (1906.00091), PNN's inner products.
DOT_INTERACTION = define_op(
    "dot_interaction(Tensor x, Tensor rows, Tensor columns) -> Tensor",
    _dot_interaction,
    rows=OnRows.FIRST,
    flops=Flops.PAIRS,
    values=Values.PAIRS,
    not_finite=NotFinite.MIXED,
)


def _rowwise_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    column_scale: Tensor | None,
    kept: Tensor | None,
    kept_weight: Tensor | None,
) -> Tensor:
    """Rounds each row of ``x`` to 256 steps between its own least and largest value."""
    scaled = x if column_scale is None else x * column_scale
    low = torch.ops.aten.amin.default(scaled, [-1], True)
    step = (torch.ops.aten.amax.default(scaled, [-1], True) - low) / 255.0
    steps = torch.round((scaled - low) * step.clamp_min(_SMALLEST_STEP).reciprocal())
    weight = codes.to(x.dtype)
    product = torch.ops.aten.linear.default(steps, weight) * step
    result: Tensor = (product + low * weight.sum(-1)) * scale
    if kept is not None and kept_weight is not None:
        picked = torch.ops.aten.index_select.default(x, -1, kept)
        result = result + torch.ops.aten.linear.default(picked, kept_weight)
    return result if bias is None else result + bias


#: x ``[..., K]`` float, codes ``[N, K]`` int8, scale and bias ``[N]`` -> ``[..., N]`` in x's dtype.
#: A linear in INT8 whose input is quantized row by row, so that a row's score doesn't depend on
#: its batch. ``column_scale`` ``[K]`` multiplies the input first; the columns ``kept`` ``[k]``
#: int64 have a column scale of 0 and go through ``kept_weight`` ``[N, k]`` in x's dtype instead
#: (2208.07339, with static columns).
ROWWISE_LINEAR = define_op(
    "rowwise_linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias, Tensor? column_scale, "
    "Tensor? kept, Tensor? kept_weight) -> Tensor",
    _rowwise_linear,
    rows=OnRows.LINEAR,
    flops=Flops.LINEAR,
    learned=(1, 3, 6),
    coded=Coded.IS,
    not_finite=NotFinite.SPREAD,
)


def _half_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in the weight's 16-bit format, the bias in x's."""
    product: Tensor = torch.ops.aten.linear.default(x.to(weight.dtype), weight).to(x.dtype)
    return product if bias is None else product + bias


#: x ``[..., K]`` float32, weight ``[N, K]`` bfloat16 or float16, bias ``[N]`` float32 ->
#: ``[..., N]`` float32: a linear in a 16-bit format.
HALF_LINEAR = define_op(
    "half_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    _half_linear,
    rows=OnRows.LINEAR,
    flops=Flops.LINEAR,
    learned=(1, 2),
    not_finite=NotFinite.SPREAD,
)


def decoded_weight(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes ``[N, K]`` times scales ``[N]`` or ``[N, K / block]``, in the scales' dtype."""
    blocks = codes.to(scale.dtype).reshape([*scale.shape, -1])
    return (blocks * scale.unsqueeze(-1)).reshape(codes.shape)


def _coded_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Decodes the weight and multiplies, in the scale's format; the bias in x's."""
    weight = decoded_weight(codes, scale)
    product: Tensor = torch.ops.aten.linear.default(x.to(scale.dtype), weight).to(x.dtype)
    return product if bias is None else product + bias


#: x ``[..., K]`` float32, codes ``[N, K]`` int8, scale ``[N]`` or ``[N, K / block]`` bfloat16, bias
#: ``[N]`` float32 -> ``[..., N]`` float32: a linear whose weight alone is coded. With a scale for
#: each block of inputs its codes have 4 bits.
CODED_LINEAR = define_op(
    "coded_linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias) -> Tensor",
    _coded_linear,
    rows=OnRows.LINEAR,
    flops=Flops.LINEAR,
    learned=(1, 3),
    coded=Coded.IS,
    not_finite=NotFinite.SPREAD,
)


#: The least a scale may be: below, its reciprocal is no number.
_LEAST_POWER = 2.0**-126
#: Values that share a scale in MXFP8.
MX_BLOCK = 32


def _in_blocks(x: Tensor, width: int, block: int) -> Tensor:
    """``[..., K]`` as blocks ``[..., width / block, block]``, zeros behind."""
    missing = width - x.shape[-1]
    if missing:
        # `constant_pad_nd` would make the batch a constant.
        x = torch.cat([x, x.new_zeros([*x.shape[:-1], missing])], -1)
    return x.reshape([*x.shape[:-1], width // block, block])


def mx_scales(blocks: Tensor) -> Tensor:
    """Scales of blocks ``[..., 32]`` in MXFP8, ``[...]`` float32.

    Powers of two, the least at which the block's largest value is one of E4M3: none saturates. A
    block with NaN or infinity has NaN.
    """
    step = (blocks.abs().amax(-1) / _FLOAT8_MAX[torch.float8_e4m3fn]).clamp_min(_LEAST_POWER)
    # Adding all of the mantissa's bits and cutting them off rounds up to a power of two.
    power = ((step.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return power + (blocks * 0.0).sum(-1)


def mx_codes(blocks: Tensor, scales: Tensor) -> Tensor:
    """Codes ``[..., 32]`` float8_e4m3fn of blocks, by their scales ``[...]``."""
    limit = _FLOAT8_MAX[torch.float8_e4m3fn]
    return (blocks / scales.unsqueeze(-1)).clamp(-limit, limit).to(torch.float8_e4m3fn)


def _mxfp8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Rounds blocks of each row of ``x`` to E4M3 at scales of their own, and multiplies."""
    blocks = _in_blocks(x, codes.shape[1], MX_BLOCK)
    scales = mx_scales(blocks)
    rounded = mx_codes(blocks, scales).to(x.dtype) * scales.unsqueeze(-1)
    weight = decoded_weight(codes, scale.view(torch.float8_e8m0fnu).to(x.dtype))
    result: Tensor = torch.ops.aten.linear.default(rounded.flatten(-2), weight, bias)
    return result


#: x ``[..., K]`` float32, codes ``[N, K']`` float8_e4m3fn, scale ``[N, K' / 32]`` uint8, the bytes
#: of E8M0, bias ``[N]`` float32 -> ``[..., N]`` float32: a linear in MXFP8 (OCP Microscaling
#: Formats 1.0).
#: K' is K rounded up to whole blocks; what is beyond K is zero. Each block of an input row finds
#: its scale while running, so that a row's score doesn't depend on its batch.
MXFP8_LINEAR = define_op(
    "mxfp8_linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias) -> Tensor",
    _mxfp8_linear,
    rows=OnRows.LINEAR,
    flops=Flops.LINEAR,
    coded=Coded.IS,
    not_finite=NotFinite.SPREAD,
)


#: Values that share a scale in NVFP4, the largest value of E2M1, and that of a scale.
NV_BLOCK, FLOAT4_MAX, _SCALE_MAX = 16, 6.0, 448.0


def nv_scales(blocks: Tensor, step: Tensor) -> Tensor:
    """Scales of blocks ``[..., 16]`` in NVFP4, ``[...]`` float8_e4m3fn, in units of ``step``.

    A block with NaN or infinity has NaN.
    """
    exact = blocks.abs().amax(-1) / FLOAT4_MAX / step
    return (exact.clamp_max(_SCALE_MAX) + (blocks * 0.0).sum(-1)).to(torch.float8_e4m3fn)


def nv_rounded(blocks: Tensor, steps: Tensor) -> Tensor:
    """Blocks ``[..., 16]`` in units of their steps ``[...]``, rounded to E2M1, ties to even."""
    # Where a step is zero, so is all that is decoded.
    units = blocks / torch.where(steps == 0.0, 1.0, steps).unsqueeze(-1)
    size = units.abs().clamp_max(FLOAT4_MAX)
    # Steps between values are a half below 2, one below 4, and two beyond.
    low = torch.where(size < 2.0, torch.round(size * 2.0) / 2.0, torch.round(size))
    return torch.where(size < 4.0, low, torch.round(size / 2.0) * 2.0) * torch.sign(units)


def nv_values(codes: Tensor) -> Tensor:
    """``[..., K]`` float32 of pairs of E2M1's codes ``[..., K / 2]`` uint8, the low half first."""
    halves = torch.stack([codes & 15, torch.bitwise_right_shift(codes, 4)], dim=-1).flatten(-2)
    place = (halves & 7).to(torch.float32)
    # 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
    high = torch.where(place < 7.0, place - 2.0, place - 1.0)
    size = torch.where(place < 4.0, place / 2.0, high)
    return torch.where(halves < 8, size, -size)


def _nvfp4_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    step: Tensor,
    input_step: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Rounds blocks of each row of ``x`` to E2M1 at scales of their own, and multiplies."""
    blocks = _in_blocks(x, codes.shape[1] * 2, NV_BLOCK)
    steps = nv_scales(blocks, input_step).to(x.dtype) * input_step
    rounded = (nv_rounded(blocks, steps) * steps.unsqueeze(-1)).flatten(-2)
    weight = decoded_weight(nv_values(codes), scale.to(x.dtype) * step)
    result: Tensor = torch.ops.aten.linear.default(rounded, weight, bias)
    return result


#: x ``[..., K]`` float32, codes ``[N, K' / 2]`` uint8, pairs of E2M1, scale ``[N, K' / 16]``
#: float8_e4m3fn, step and input_step ``[]`` float32, bias ``[N]`` float32 -> ``[..., N]`` float32:
#: a linear in NVFP4. K' is K rounded up to whole blocks; what is beyond K is zero. A weight is its
#: code times its block's scale times ``step``. Each block of an input row finds its scale while
#: running, in units of ``input_step``, which is static: a row's score doesn't depend on its batch.
NVFP4_LINEAR = define_op(
    "nvfp4_linear(Tensor x, Tensor codes, Tensor scale, Tensor step, Tensor input_step, "
    "Tensor? bias) -> Tensor",
    _nvfp4_linear,
    rows=OnRows.LINEAR,
    flops=Flops.LINEAR,
    coded=Coded.IS,
    not_finite=NotFinite.SPREAD,
)


def _request_broadcast(x: Tensor, rows: Tensor) -> Tensor:
    """As many rows as ``rows`` has; all of ``x`` where it has as many itself."""
    return x.expand([rows.shape[0], *[-1] * (x.dim() - 1)])


#: x ``[1, …]``, rows ``[B, …]`` -> ``[B, …]``: a value of the request, once for each candidate.
#: With x ``[B, …]`` it is x: a program for requests also scores rows that each have a user.
REQUEST_BROADCAST = define_op(
    "request_broadcast(Tensor x, Tensor rows) -> Tensor",
    _request_broadcast,
    rows=OnRows.BROADCAST,
    flops=Flops.ELEMENTS,
    values=Values.SAME,
    rounding=Rounding.NONE,
)


def _request_matmul(x: Tensor, y: Tensor) -> Tensor:
    """One product of all candidates' rows with the one ``y``; each with its own where there are."""
    product = torch.ops.aten.matmul.default
    if y.shape[0] != 1:
        return product(x, y)  # type: ignore[no-any-return]
    *heads, rows, inner = x.shape[1:]
    first = x.movedim(0, len(heads))
    stacked = product(first.reshape([*heads, -1, inner]), y.squeeze(0))
    apart = stacked.reshape([*heads, -1, rows, y.shape[-1]])
    return apart.movedim(len(heads), 0)  # type: ignore[no-any-return]


#: x ``[B, …, m, k]``, y ``[1, …, k, n]`` -> ``[B, …, m, n]``: ``x @ y`` where all candidates share
#: one matrix (a head). With y ``[B, …]`` it is ``x @ y`` as well.
REQUEST_MATMUL = define_op(
    "request_matmul(Tensor x, Tensor y) -> Tensor",
    _request_matmul,
    rows=OnRows.PRODUCT,
    flops=Flops.PRODUCT,
)


def limits_of(rows: Sequence[int], axis: int, ids: Tensor) -> Tensor:
    """The rows of each id's table, shaped to broadcast over the ids; 0 is any number."""
    limits = torch.tensor(rows, dtype=torch.int64)
    if len(rows) == 1:
        return limits.reshape([])
    return limits.reshape([-1 if d == axis % ids.dim() else 1 for d in range(ids.dim())])


def _bounded(ids: Tensor, rows: Sequence[int], axis: int, alone: bool) -> Tensor:
    """The ids, if all are in their tables."""
    limits = limits_of(rows, axis, ids)
    outside = ((ids < 0) | (ids >= limits)) & (limits > 0)
    if bool(outside.any()):
        found = ids[outside]
        raise IndexError(
            f"ids from {int(found.min())} to {int(found.max())} are beyond a table of "
            f"{max(rows):,} rows"
        )
    return ids.clone()


#: ids ``[...]`` integers -> the same, or an error where one isn't in 0 to ``rows`` - 1: one number,
#: or one a column along ``axis``, 0 for a column that takes any. It stands before lookups whose
#: ids nothing else bounds. ``alone``: what reads the ids doesn't refuse any itself.
BOUNDED = define_op(
    "bounded(Tensor ids, int[] rows, int axis, bool alone) -> Tensor",
    _bounded,
    lambda ids, rows, axis, alone: torch.empty_like(ids),
    rows=OnRows.SAME,
    flops=Flops.ELEMENTS,
    values=Values.BOUNDED,
)


def _rising(offsets: Tensor, values: Tensor, ends: bool) -> Tensor:
    """The offsets, if they cut the values into one list a row."""
    size, given = len(values), offsets.tolist()
    bounds = [0, *given, size]
    begins = not given or given[0] == 0
    if not begins or any(low > high for low, high in pairwise(bounds)):
        raise IndexError(f"offsets {_excerpt(given)} don't rise from 0 within {size:,} values")
    if ends and bounds[-2] != size:
        raise IndexError(f"offsets end at {bounds[-2]:,}, and there are {size:,} values")
    return offsets.clone()


def _excerpt(values: Sequence[int]) -> str:
    few = ", ".join(map(str, values[:_SHOWN]))
    return f"[{few}, …]" if len(values) > _SHOWN else f"[{few}]"


#: offsets ``[B]``, or ``[B + 1]`` where the last says where the last row ``ends``, integers, and
#: what they cut, ``[N, …]`` -> the offsets, or an error where they don't rise from 0 to N. It
#: stands before bags, which read whatever lies there.
RISING = define_op(
    "rising(Tensor offsets, Tensor values, bool ends) -> Tensor",
    _rising,
    lambda offsets, values, ends: torch.empty_like(offsets),
    rows=OnRows.LOST,
    flops=Flops.ELEMENTS,
)


def _wrapped(ids: Tensor, rows: int) -> Tensor:
    """Negative ids count from the end, as ONNX counts."""
    return torch.where(ids < 0, ids + rows, ids)


#: ids ``[...]`` integers -> ids of a table of ``rows``, where -1 is the last row (ONNX's Gather).
WRAPPED = define_op(
    "wrapped(Tensor ids, int rows) -> Tensor",
    _wrapped,
    rows=OnRows.SAME,
    flops=Flops.ELEMENTS,
    values=Values.WRAPPED,
)
