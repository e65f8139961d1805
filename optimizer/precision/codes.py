"""How the values of weights and tables become codes, and how far off they are then."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: The largest value of E4M3.
FLOAT8_MAX = 448.0
#: Steps below this are denormal: hardware rounds them to zero, and dividing by zero is no code.
SMALLEST_STEP = torch.finfo(torch.float32).tiny
#: Shares of a row's range that are tried for clipping at either end, at 4 bits.
_TABLE_CLIPS = (0.0, 0.04, 0.08, 0.12, 0.18)
#: Weights of an output that share a scale, at 4 bits: the least that TensorRT takes.
BLOCK = 64
#: Shares of a block's peak that are tried as its range.
_BLOCK_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)


@dataclass(frozen=True)
class Codes:
    """A quantized weight: ``codes * scale`` along the first dimension.

    Attributes:
        codes: ``[N, K]`` int8 or float8.
        scale: ``[N]`` float32.
        zero_point: ``[N]``, all zero, in the codes' dtype.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def decoded(self) -> Tensor:
        """``[N, K]`` float32."""
        return self.codes.float() * self.scale[:, None]


def quantize_weight(weight: Tensor, dtype: torch.dtype) -> Codes:
    """Symmetric codes per output channel.

    Args:
        weight: ``[N, K]`` float32.
        dtype: int8 or float8_e4m3fn.
    """
    limit = FLOAT8_MAX if dtype.is_floating_point else 127.0
    peak = weight.abs().amax(1)
    scale = usable(peak / limit)
    scaled = weight / scale[:, None]
    if not dtype.is_floating_point:
        scaled = scaled.round()
    codes = scaled.clamp(-limit, limit).to(dtype)
    return Codes(codes, scale, torch.zeros(len(scale)).to(dtype))


def quantize_weights_alone(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes for a linear whose input stays as it is.

    At 8 bits an output has one scale; at 4 bits each 64 inputs have one, their range searched for
    the least squared error.

    Args:
        weight: ``[N, K]`` float32; K a multiple of `BLOCK` at 4 bits.
        bits: 8 or 4.

    Returns:
        codes ``[N, K]`` int8, between -7 and 7 at 4 bits, and bfloat16 scale ``[N]`` or
        ``[N, K / 64]``.
    """
    if bits == 8:
        scale = usable(weight.abs().amax(1) / 127.0).bfloat16()
        codes = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        return codes.to(torch.int8), scale
    blocks = weight.reshape(len(weight), -1, BLOCK)
    peak = blocks.abs().amax(2, keepdim=True)
    best, least = torch.ones_like(peak), torch.full_like(peak, float("inf"))
    for clip in _BLOCK_CLIPS:
        step = usable(clip * peak / 7.0).bfloat16().float()
        off = (blocks / step).round_().clamp_(-7, 7).mul_(step).sub_(blocks)
        error = off.square_().sum(2, keepdim=True)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    codes = (blocks / best).round_().clamp_(-7, 7).flatten(1)
    return codes.to(torch.int8), best.squeeze(2).bfloat16()


def quantize_rows(
    weight: Tensor, bits: int = 8, chunk: int = 8192
) -> tuple[Tensor, Tensor, Tensor]:
    """A table's rows as codes with a scale and a floating-point bias per row.

    A row of zeros, such as a padding row, decodes to exactly zero. At 4 bits each row's range is
    searched for the least squared error (the greedy search of FBGEMM and 1911.02079), two codes
    share a byte, the low half first, and scale and bias are fp16.

    Args:
        weight: ``[R, D]`` float32; D even at 4 bits.
        bits: 8 or 4.
        chunk: Rows worked on at once: what is between stays in the caches.

    Returns:
        codes ``[R, D]`` or ``[R, D / 2]`` uint8, and scale and bias ``[R, 1]``.
    """
    rows, width = weight.shape
    dtype = torch.float32 if bits == 8 else torch.float16
    codes = torch.empty(rows, width * bits // 8, dtype=torch.uint8)
    scale, bias = torch.empty(rows, 1, dtype=dtype), torch.empty(rows, 1, dtype=dtype)
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        values, scale[part], bias[part] = _code_rows(weight[part], bits)
        codes[part] = values if bits == 8 else values[:, 0::2] | (values[:, 1::2] << 4)
    return codes, scale, bias


def round_trip_rows(rows: Tensor, bits: int) -> Tensor:
    """What rows ``[..., D]`` of a table are after `quantize_rows`, in float32."""
    flat = rows.reshape(-1, rows.shape[-1])
    codes, scale, bias = _code_rows(flat, bits)
    return (codes.float() * scale.float() + bias.float()).reshape(rows.shape)


def _code_rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    if bits == 8:
        step = usable((high - low) / 255.0)
        return ((rows - low) / step).round().to(torch.uint8), step, low
    span = high - low
    least = torch.full_like(low, float("inf"))
    bias, step = low.half(), usable((span / 15.0).half())
    for below, above in itertools.product(_TABLE_CLIPS, repeat=2):
        start = (low + below * span).half()
        width = usable(((high - above * span - start.float()) / 15.0).half())
        off = _codes4(rows, width, start).mul_(width.float()).add_(start.float()).sub_(rows)
        error = torch.linalg.vector_norm(off, dim=1, keepdim=True)
        better = error < least
        bias, step = torch.where(better, start, bias), torch.where(better, width, step)
        least = torch.where(better, error, least)
    return _codes4(rows, step, bias).to(torch.uint8), step, bias


def _codes4(rows: Tensor, step: Tensor, bias: Tensor) -> Tensor:
    """The codes 0 to 15, as floats."""
    return (rows - bias.float()).div_(step.float()).round_().clamp_(0, 15)


def usable(steps: Tensor) -> Tensor:
    """Steps, with 1 where all values are (as good as) the same."""
    least = SMALLEST_STEP if steps.dtype is torch.float32 else torch.finfo(steps.dtype).tiny
    return torch.where(steps >= least, steps, torch.ones_like(steps))


def errors_of(exact: Tensor, low: Tensor) -> dict[str, float]:
    """How far values are off: relative L2 error, SQNR in dB, and LoKA's mean relative error.

    The last has no finite expectation where values cross zero (a second one, with a floor of a
    tenth of the values' rms, has): it is told for comparison and decides nothing.
    """
    off, size = (low - exact).double(), exact.double()
    relative = float(off.norm() / size.norm().clamp_min(1e-30))
    floor = 0.1 * float(size.square().mean().sqrt())
    return {
        "relative": relative,
        "sqnr": -20.0 * math.log10(max(relative, 1e-12)),
        "mere": float((off.abs() / size.abs().clamp_min(1e-30)).mean()),
        "mere_floor": float((off.abs() / size.abs().clamp_min(max(floor, 1e-30))).mean()),
    }
