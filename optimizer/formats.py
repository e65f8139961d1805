"""Number formats: how values become codes, which range to choose, and Q/DQ around a linear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from .ir.facts import Precision
from .ir.ops import DEQUANTIZE, QUANTIZE, ROUND_ROWS
from .ir.rewrite import Rewriter

_aten = torch.ops.aten
_FLOAT8_MAX = 448.0
#: Steps below this are denormal: hardware rounds them to zero, and dividing by zero is no code.
_SMALLEST_STEP = torch.finfo(torch.float32).tiny
#: Shares of the smallest and of the largest value that are tried as the clipping range.
_CLIP_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1)
#: Rows a range is chosen on; 256 predict held-out error within a few percent (LoKA's Probe).
_RANGE_ROWS = 512
#: Columns differ enough to scale them or to keep some when the longest is this much the median.
_UNEVEN = 4.0
#: A dearer candidate must leave less than this share of the error of the cheaper ones.
_CLEARLY_LESS = 0.7


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


def candidates(
    samples: Tensor,
    weight: Tensor,
    number_format: str,
    int8_activations: str,
    row_wise: bool = False,
) -> list[tuple[Precision, float]]:
    """The ways a linear can take a low format, plain one first, each with the error it leaves.

    - *plain*: one static range for the whole input.
    - *scaled*: input columns multiplied so that their ranges are alike, the weights divided by the
      same (SmoothQuant, 2211.10438, whose migration strength is searched): for columns of
      different sizes.
    - *kept*: the few columns of the longest tails stay fp32, in a small linear of their own
      (2208.07339, with static columns): for raw counts and amounts beside embeddings.
    - *rows*: INT8 only, each row scaled by its own largest value, found while running: for rows of
      different sizes. It often leaves less error than E4M3.

    Args:
        samples: ``[rows, K]`` real inputs of the linear.
        weight: ``[N, K]``.
        number_format: ``"int8"`` or ``"fp8"``.
        int8_activations: ``"uint8"`` or ``"int8"``.
        row_wise: Whether the target takes a scale per row.

    Returns:
        A precision each with the relative L2 error of the linear's output on real rows. Only those
        that leave clearly less than the cheaper ones before them.
    """
    rows = samples[torch.linspace(0, len(samples) - 1, min(len(samples), _RANGE_ROWS)).long()]
    search = _RangeSearch(samples, rows, weight, number_format, int8_activations)
    found = [search.best()]
    peaks = samples.abs().amax(0)
    if float(peaks.max()) > _UNEVEN * float(peaks.median()):
        scaled = [search.best(scale=scale) for scale in _column_scales(peaks, weight)]
        found += _improving(found[0], [min(scaled, key=lambda f: f[1])])
        order = torch.argsort(peaks, descending=True)
        counts = sorted({max(1, len(peaks) // part) for part in (64, 16, 8)} & {*range(len(peaks))})
        kept = [search.best(kept=tuple(sorted(order[:count].tolist()))) for count in counts]
        found += _improving(found[0], kept)
    if row_wise and number_format == "int8":
        found += _improving(min(found, key=lambda f: f[1]), [search.per_row()])
    return found


def choose_input(
    samples: Tensor, weight: Tensor, number_format: str, int8_activations: str
) -> tuple[Precision, float]:
    """The plain one of `candidates`: the static range that hurts the output least."""
    rows = samples[torch.linspace(0, len(samples) - 1, min(len(samples), _RANGE_ROWS)).long()]
    return _RangeSearch(samples, rows, weight, number_format, int8_activations).best()


def _improving(
    plain: tuple[Precision, float], others: list[tuple[Precision, float]]
) -> list[tuple[Precision, float]]:
    best, better = plain[1], []
    for precision, error in others:
        if error < _CLEARLY_LESS * best:
            better.append((precision, error))
            best = error
    return better


def _column_scales(peaks: Tensor, weight: Tensor) -> list[Tensor]:
    """Multipliers ``[K]`` that even out the input's columns, by how much of it the weights bear."""
    size, weights = _positive(peaks), _positive(weight.abs().amax(0))
    scales = []
    for strength in (0.5, 0.75, 1.0):
        scale = weights ** (1.0 - strength) / size**strength
        scale[peaks == 0] = 1.0
        # Powers of two multiply without rounding.
        scales.append(2.0 ** (scale / scale.median()).log2().round().clamp(-60, 60))
    return scales


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(float(values.max()) * 1e-6).clamp_min(_SMALLEST_STEP)


@dataclass(frozen=True)
class _RangeSearch:
    """Finds the range of one linear's input, after columns were scaled or taken out.

    Ranges are shares of the smallest and the largest value, each its own where the format has a
    zero point. Each is tried on real rows, weights quantized, and the one with the smallest
    relative L2 error of the output is kept (the L2 range search of 2105.12676's toolchain, applied
    to the output instead of the input): the upper end first, then the lower one.
    """

    samples: Tensor
    rows: Tensor
    weight: Tensor
    number_format: str
    int8_activations: str

    def best(
        self, scale: Tensor | None = None, kept: tuple[int, ...] = ()
    ) -> tuple[Precision, float]:
        """The precision with the least error, and that error."""
        samples = self.samples if scale is None else self.samples * scale
        samples = _without(samples, kept)
        exact = self.rows @ self.weight.T
        norm = exact.norm().clamp_min(1e-30)
        extra: dict[str, Any] = {"kept": kept}
        if scale is not None:
            extra["column_scale"] = tuple(scale.tolist())
        weight_dtype = torch.float8_e4m3fn if self.number_format == "fp8" else torch.int8
        coded: Codes | None = None

        def measured(low: float, high: float) -> tuple[Precision, float]:
            nonlocal coded
            plain = _precision(samples, low, high, self.number_format, self.int8_activations)
            precision = replace(plain, **extra)
            if coded is None:
                coded = quantize_weight(_low_weight(self.weight, precision), weight_dtype)
            output = _output(self.rows, self.weight, coded, precision)
            return precision, float((output - exact).norm() / norm)

        affine = self.number_format == "int8" and self.int8_activations == "uint8"
        found = [(*measured(1.0 if affine else share, share), share) for share in _CLIP_SHARES]
        precision, error, high = min(found, key=lambda f: f[1])
        if affine and float(samples.min()) < 0.0 < float(samples.max()):
            for share in _CLIP_SHARES[1:]:
                other = measured(share, high)
                if other[1] < error:
                    precision, error = other
        return precision, error

    def per_row(self) -> tuple[Precision, float]:
        """INT8 with a scale of each row's own, and its error."""
        precision = Precision("int8", 1.0, 0, "int8", "int8", rows=True)
        exact = self.rows @ self.weight.T
        coded = quantize_weight(self.weight, torch.int8)
        off = _output(self.rows, self.weight, coded, precision) - exact
        return precision, float(off.norm() / exact.norm().clamp_min(1e-30))


def _without(samples: Tensor, kept: tuple[int, ...]) -> Tensor:
    if not kept:
        return samples
    mask = torch.ones(samples.shape[1], dtype=torch.bool)
    mask[list(kept)] = False
    return samples[:, mask]


def _low_weight(weight: Tensor, precision: Precision) -> Tensor:
    """The weight that is quantized: columns scaled back, and those kept in fp32 zero."""
    if precision.column_scale:
        weight = weight / torch.tensor(precision.column_scale)
    if precision.kept:
        weight = weight.clone()
        weight[:, list(precision.kept)] = 0.0
    return weight


def _output(rows: Tensor, weight: Tensor, coded: Codes, precision: Precision) -> Tensor:
    """What the linear gives in that format, without its bias."""
    scaled = rows * torch.tensor(precision.column_scale) if precision.column_scale else rows
    decoded = coded.codes.float() * coded.scale[:, None]
    low = _round_trip(scaled, precision) @ decoded.T
    kept = list(precision.kept)
    return low + rows[:, kept] @ weight[:, kept].T if kept else low


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
    if precision.rows:
        return ROUND_ROWS.reference(rows)  # type: ignore[no-any-return]
    scale = torch.tensor(precision.input_scale)
    zero = torch.tensor(precision.input_zero_point, dtype=torch.int32)
    codes = QUANTIZE.reference(rows, scale, zero, -1, dtype)
    return DEQUANTIZE.reference(codes, scale, zero, -1)  # type: ignore[no-any-return]


def insert_qdq(
    rw: Rewriter, linear: fx.Node, precision: Precision, samples: Tensor | None = None
) -> None:
    """Puts Q/DQ in front of a linear's input and replaces its weight by codes and a DQ.

    Args:
        rw: The editor.
        linear: Whose weight is a parameter.
        precision: The format, with the input's range, column scales and kept columns.
        samples: ``[rows, K]`` real inputs. With them, and a bias that is a parameter, the mean
            error of each output is taken out of the bias (bias correction, 1906.04721): rounding
            that shifts all scores one way costs more NE than its size says.
    """
    source, weight = linear.args[0], linear.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    exact = rw.program.tensor(str(weight.target))
    input_dtype: torch.dtype = getattr(torch, precision.input_dtype)
    weight_dtype: torch.dtype = getattr(torch, precision.weight_dtype)
    coded = quantize_weight(_low_weight(exact, precision), weight_dtype)
    name = str(weight.target).replace(".", "_")
    scale = rw.parameter(f"{name}_input_scale", torch.tensor(precision.input_scale))
    zero_point = torch.tensor(precision.input_zero_point).to(input_dtype)
    zero = rw.parameter(f"{name}_input_zero", zero_point)
    codes = rw.parameter(f"{name}_codes", coded.codes)
    weight_scale = rw.parameter(f"{name}_scale", coded.scale)
    weight_zero = rw.parameter(f"{name}_zero", coded.zero_point)
    with rw.before(linear):
        low = source
        if precision.column_scale:
            columns = rw.parameter(f"{name}_columns", torch.tensor(precision.column_scale))
            low = rw.emit(_aten.mul.Tensor, source, columns, like=linear)
        if precision.rows:
            restored = rw.emit(ROUND_ROWS.op, low, like=linear)
        else:
            quantized = rw.emit(QUANTIZE.op, low, scale, zero, -1, input_dtype, like=linear)
            restored = rw.emit(DEQUANTIZE.op, quantized, scale, zero, -1, like=linear)
        decoded = rw.emit(DEQUANTIZE.op, codes, weight_scale, weight_zero, 0, like=linear)
    bias = linear.args[2] if len(linear.args) > 2 else None
    if samples is not None and isinstance(bias, fx.Node) and bias.op == "get_attr":
        # What quantizing adds to each output on average, a bias can take away again.
        shift = (_output(samples, exact, coded, precision) - samples @ exact.T).mean(0)
        bias = rw.parameter(f"{name}_bias", rw.program.tensor(str(bias.target)) - shift)
        linear.args = (restored, decoded, bias)
    else:
        linear.args = (restored, decoded, *linear.args[2:])
    if precision.kept:
        _add_kept(rw, linear, source, exact, precision.kept, name)


def _add_kept(
    rw: Rewriter, linear: fx.Node, source: fx.Node, exact: Tensor, kept: tuple[int, ...], name: str
) -> None:
    """Adds the columns that stay fp32 to what the low linear gives."""
    columns = rw.parameter(f"{name}_kept", torch.tensor(kept))
    weights = rw.parameter(f"{name}_kept_weight", exact[:, list(kept)].contiguous())
    users = list(linear.users)
    with rw.before(linear.next):
        picked = rw.emit(_aten.index_select.default, source, -1, columns, like=linear)
        high = rw.emit(_aten.linear.default, picked, weights, like=linear)
        total = rw.emit(_aten.add.Tensor, linear, high, like=linear)
    for user in users:
        user.replace_input_with(linear, total)
