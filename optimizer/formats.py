"""Number formats: how values become codes, which range to choose, and Q/DQ around a linear."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .ir.facts import Precision
from .ir.ops import DEQUANTIZE, QUANTIZE
from .ir.rewrite import Rewriter

_FLOAT8_MAX = 448.0
#: Steps below this are denormal: hardware rounds them to zero, and dividing by zero is no code.
_SMALLEST_STEP = torch.finfo(torch.float32).tiny
#: Shares of the smallest and of the largest value that are tried as the clipping range.
_CLIP_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1)
#: Rows a range is chosen on; 256 predict held-out error within a few percent (LoKA's Probe).
_RANGE_ROWS = 512


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


def quantize_weight(weight: Tensor, dtype: torch.dtype) -> Codes:
    """Symmetric codes per output channel.

    Args:
        weight: ``[N, K]`` float32.
        dtype: int8 or float8_e4m3fn.
    """
    limit = _FLOAT8_MAX if dtype.is_floating_point else 127.0
    peak = weight.abs().amax(1)
    scale = _usable(peak / limit)
    scaled = weight / scale[:, None]
    if not dtype.is_floating_point:
        scaled = scaled.round()
    codes = scaled.clamp(-limit, limit).to(dtype)
    return Codes(codes, scale, torch.zeros(len(scale)).to(dtype))


def quantize_rows(weight: Tensor, chunk: int = 65536) -> tuple[Tensor, Tensor, Tensor]:
    """A table's rows as uint8 codes with a floating-point bias per row.

    A row of zeros, such as a padding row, decodes to exactly zero.

    Args:
        weight: ``[R, D]`` float32.
        chunk: Rows worked on at once, so that a large table needs little memory besides itself.

    Returns:
        codes ``[R, D]`` uint8, and scale and bias ``[R, 1]`` float32.
    """
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scale, bias = torch.empty(len(weight), 1), torch.empty(len(weight), 1)
    for start in range(0, len(weight), chunk):
        part = slice(start, start + chunk)
        rows = weight[part]
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        scale[part] = _usable((high - low) / 255.0)
        bias[part] = low
        codes[part] = ((rows - low) / scale[part]).round().to(torch.uint8)
    return codes, scale, bias


def _usable(steps: Tensor) -> Tensor:
    """Steps, with 1 where all values are (as good as) the same."""
    return torch.where(steps >= _SMALLEST_STEP, steps, torch.ones_like(steps))


def choose_input(
    samples: Tensor, weight: Tensor, number_format: str, int8_activations: str
) -> tuple[Precision, float]:
    """The static input range that hurts the linear's output least, and the error it leaves.

    Ranges are shares of the smallest and the largest value, each its own where the format has a
    zero point. Each pair is tried on real rows, weights quantized, and the one with the smallest
    relative L2 error of the output is kept (the L2 range search of 2105.12676's toolchain, applied
    to the output instead of the input).

    Args:
        samples: ``[rows, K]`` real inputs of the linear.
        weight: ``[N, K]``.
        number_format: ``"int8"`` or ``"fp8"``.
        int8_activations: ``"uint8"`` or ``"int8"``.
    """
    rows = samples[torch.linspace(0, len(samples) - 1, min(len(samples), _RANGE_ROWS)).long()]
    exact = rows @ weight.T
    norm = exact.norm().clamp_min(1e-30)
    best: tuple[float, Precision] | None = None
    weight_dtype = torch.float8_e4m3fn if number_format == "fp8" else torch.int8
    coded = quantize_weight(weight, weight_dtype)
    decoded = coded.codes.float() * coded.scale[:, None]
    affine = number_format == "int8" and int8_activations == "uint8"
    ends = (
        itertools.product(_CLIP_SHARES, repeat=2)
        if affine
        else ((share, share) for share in _CLIP_SHARES)
    )
    for low, high in ends:
        precision = _precision(samples, low, high, number_format, int8_activations)
        error = float((_round_trip(rows, precision) @ decoded.T - exact).norm() / norm)
        if best is None or error < best[0]:
            best = (error, precision)
    assert best is not None
    return best[1], best[0]


def _precision(
    samples: Tensor, low_share: float, high_share: float, number_format: str, int8_activations: str
) -> Precision:
    low, high = min(float(samples.min()), 0.0), max(float(samples.max()), 0.0)
    peak = max(-low, high) * high_share
    low, high = low * low_share, high * high_share
    if number_format == "fp8":
        step, dtype = peak / _FLOAT8_MAX, "float8_e4m3fn"
    elif int8_activations == "uint8":
        step, dtype = (high - low) / 255.0, "uint8"
    else:
        step, dtype = peak / 127.0, "int8"
    # Scales are stored and applied in fp32: choose among the values that exist there.
    scale = float(_usable(torch.tensor(step, dtype=torch.float32)))
    zero = round(-low / scale) if dtype == "uint8" else 0
    weight_dtype = "float8_e4m3fn" if number_format == "fp8" else "int8"
    return Precision(number_format, scale, zero, dtype, weight_dtype)


def _round_trip(rows: Tensor, precision: Precision) -> Tensor:
    dtype: torch.dtype = getattr(torch, precision.input_dtype)
    scale = torch.tensor(precision.input_scale)
    zero = torch.tensor(precision.input_zero_point, dtype=torch.int32)
    codes = QUANTIZE.reference(rows, scale, zero, -1, dtype)
    return DEQUANTIZE.reference(codes, scale, zero, -1)  # type: ignore[no-any-return]


def _mean_error(rows: Tensor, weight: Tensor, coded: Codes, precision: Precision) -> Tensor:
    """What quantizing adds to each output on average, ``[N]``: a bias can take it away again."""
    decoded = coded.codes.float() * coded.scale[:, None]
    return (_round_trip(rows, precision) @ decoded.T - rows @ weight.T).mean(0)


def insert_qdq(
    rw: Rewriter, linear: fx.Node, precision: Precision, samples: Tensor | None = None
) -> None:
    """Puts Q/DQ in front of a linear's input and replaces its weight by codes and a DQ.

    Args:
        rw: The editor.
        linear: Whose weight is a parameter.
        precision: The format, with the input's range.
        samples: ``[rows, K]`` real inputs. With them, and a bias that is a parameter, the mean
            error of each output is taken out of the bias (bias correction, 1906.04721): rounding
            that shifts all scores one way costs more NE than its size says.
    """
    source, weight = linear.args[0], linear.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    input_dtype: torch.dtype = getattr(torch, precision.input_dtype)
    weight_dtype: torch.dtype = getattr(torch, precision.weight_dtype)
    coded = quantize_weight(rw.program.tensor(str(weight.target)), weight_dtype)
    name = str(weight.target).replace(".", "_")
    scale = rw.parameter(f"{name}_input_scale", torch.tensor(precision.input_scale))
    zero_point = torch.tensor(precision.input_zero_point).to(input_dtype)
    zero = rw.parameter(f"{name}_input_zero", zero_point)
    codes = rw.parameter(f"{name}_codes", coded.codes)
    weight_scale = rw.parameter(f"{name}_scale", coded.scale)
    weight_zero = rw.parameter(f"{name}_zero", coded.zero_point)
    with rw.before(linear):
        quantized = rw.emit(QUANTIZE.op, source, scale, zero, -1, input_dtype, like=linear)
        restored = rw.emit(DEQUANTIZE.op, quantized, scale, zero, -1, like=linear)
        decoded = rw.emit(DEQUANTIZE.op, codes, weight_scale, weight_zero, 0, like=linear)
    linear.args = (restored, decoded, *linear.args[2:])
    bias = linear.args[2] if len(linear.args) > 2 else None
    if samples is None or not isinstance(bias, fx.Node) or bias.op != "get_attr":
        return
    weights = rw.program.tensor(str(weight.target))
    shift = _mean_error(samples, weights, coded, precision)
    corrected = rw.program.tensor(str(bias.target)) - shift
    linear.args = (restored, decoded, rw.parameter(f"{name}_bias", corrected))
