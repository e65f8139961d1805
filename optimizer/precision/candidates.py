"""The ways a linear can take a low format, and the error each leaves on real rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..formats import HALF, WEIGHTS_ALONE
from ..ir.facts import Precision
from ..ir.ops import CODED_LINEAR, DEQUANTIZE, HALF_LINEAR, QUANTIZE, ROWWISE_LINEAR
from .codes import (
    BLOCK,
    FLOAT8_MAX,
    SMALLEST_STEP,
    Codes,
    quantize_weight,
    quantize_weights_alone,
    usable,
)

_aten = torch.ops.aten
#: Shares of the smallest and of the largest value that are tried as the clipping range.
_CLIP_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1)
#: Rows a range is chosen on; 256 predict held-out error within a few percent (LoKA's Probe).
_RANGE_ROWS = 512
#: Columns differ enough to scale them or to keep some when the longest is this much the median.
_UNEVEN = 4.0
#: A dearer candidate must leave less than this share of the error of the cheaper ones.
_CLEARLY_LESS = 0.7
#: One column in so many stays fp32.
_KEPT_SHARES = (64, 16, 8)
#: How much of the columns' differences the weights bear (SmoothQuant's alpha).
_STRENGTHS = (0.5, 0.75, 1.0)


def candidates(
    samples: Tensor,
    weight: Tensor,
    formats: Iterable[str],
    int8_activations: str,
    assumed: Callable[[str], tuple[float, float]] | None = None,
) -> list[tuple[Precision, dict[str, float]]]:
    """The ways a linear can take the formats, each with the errors it leaves.

    - *plain*: one static range for the whole input, or one for each row.
    - *scaled*: input columns multiplied so that their ranges are alike, the weights divided by the
      same (SmoothQuant, 2211.10438, whose migration strength is searched): for columns of
      different sizes.
    - *kept*: the few columns of the longest tails stay fp32, in a small linear of their own
      (2208.07339, with static columns): for raw counts and amounts beside embeddings.

    Args:
        samples: ``[rows, K]`` real inputs of the linear.
        weight: ``[N, K]``.
        formats: ``"int8"``, ``"int8-rows"``, ``"fp8"``, ``"int8-weights"``, ``"int4-weights"``
            (where K is a multiple of 64), ``"bf16"`` or ``"fp16"``.
        int8_activations: ``"uint8"`` or ``"int8"``: the codes of a static range.
        assumed: Gives the static range in a format where the samples aren't real; then only the
            plain form is tried.

    Returns:
        A precision each with the errors of the linear's output on real rows (`errors_of`). Of each
        format the plain one, then only what leaves clearly less than the cheaper ones before it.
    """
    linear = _Linear(samples, _some(samples), weight, int8_activations, assumed)
    exact = linear.rows @ weight.T
    return [
        (precision, errors_of(exact, output_of(linear.rows, weight, precision)))
        for name in formats
        if name != "int4-weights" or weight.shape[1] % BLOCK == 0
        for precision, _ in linear.candidates(name)
    ]


def choose_input(
    samples: Tensor, weight: Tensor, number_format: str, int8_activations: str
) -> tuple[Precision, float]:
    """The plain one of `candidates`: the static range that hurts the output least."""
    return _Linear(samples, _some(samples), weight, int8_activations).plain(number_format)


def output_of(rows: Tensor, weight: Tensor, precision: Precision) -> Tensor:
    """What a linear without bias gives in a format: ``[rows, K]`` to ``[rows, N]``."""
    return _output(rows, weight, precision, _coded(weight, precision))


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


@dataclass(frozen=True)
class _Linear:
    """Searches the candidates of one linear.

    Ranges are shares of the smallest and the largest value, each its own where the format has a
    zero point. Each is tried on real rows, weights quantized, and the one with the smallest
    relative L2 error of the output is kept (the L2 range search of 2105.12676's toolchain, applied
    to the output instead of the input): the upper end first, then the lower one.
    """

    samples: Tensor
    rows: Tensor
    weight: Tensor
    int8_activations: str
    assumed: Callable[[str], tuple[float, float]] | None = None

    def candidates(self, name: str) -> list[tuple[Precision, float]]:
        """Plain first, then what leaves clearly less."""
        found = [self.plain(name)]
        if name in HALF or name in WEIGHTS_ALONE or self.assumed is not None:
            return found
        peaks = self.samples.abs().amax(0)
        if float(peaks.max()) > _UNEVEN * float(peaks.median()):
            scaled = [self.best(name, scale=s) for s in _column_scales(peaks, self.weight)]
            found += _improving(found[0], [min(scaled, key=lambda f: f[1])])
            found += _improving(found[0], [self.best(name, kept=k) for k in self._kept(name)])
        return found

    def plain(self, name: str) -> tuple[Precision, float]:
        """All columns alike."""
        return self.best(name)

    def best(
        self, name: str, scale: tuple[float, ...] = (), kept: tuple[int, ...] = ()
    ) -> tuple[Precision, float]:
        """The precision with the least error, and that error."""
        if name in ("int8", "fp8") and self.assumed is not None:
            precision = _static(*self.assumed(name), name, self.int8_activations)
            return precision, self._error(precision, _coded(self.weight, precision))
        if name in ("int8", "fp8"):
            return self._ranged(name, scale, kept)
        if name in WEIGHTS_ALONE:
            bits = WEIGHTS_ALONE[name]
            precision = Precision(name, input_dtype="bfloat16", weight_dtype=f"int{bits}")
            return precision, self._error(precision, _coded(self.weight, precision))
        dtype = "int8" if name == "int8-rows" else HALF[name]
        codes = "uint8" if name == "int8-rows" else dtype
        precision = Precision(
            name, input_dtype=codes, weight_dtype=dtype, column_scale=scale, kept=kept
        )
        return precision, self._error(precision, _coded(self.weight, precision))

    def _ranged(
        self, name: str, scale: tuple[float, ...], kept: tuple[int, ...]
    ) -> tuple[Precision, float]:
        samples = self.samples * torch.tensor(scale) if scale else self.samples
        samples = _without(samples, kept)
        coded: Codes | None = None

        def measured(low: float, high: float) -> tuple[Precision, float]:
            nonlocal coded
            ends = float(samples.min()) * low, float(samples.max()) * high
            plain = _static(*ends, name, self.int8_activations)
            precision = replace(plain, column_scale=scale, kept=kept)
            coded = coded or _coded(self.weight, precision)
            return precision, self._error(precision, coded)

        affine = name == "int8" and self.int8_activations == "uint8"
        found = [(*measured(1.0 if affine else share, share), share) for share in _CLIP_SHARES]
        precision, error, high = min(found, key=lambda f: f[1])
        if affine and float(samples.min()) < 0.0 < float(samples.max()):
            for share in _CLIP_SHARES[1:]:
                other = measured(share, high)
                if other[1] < error:
                    precision, error = other
        return precision, error

    def _kept(self, name: str) -> list[tuple[int, ...]]:
        """Columns to keep, by the size of their tails; a row's range is spoilt by its largest."""
        sizes = self.samples.abs()
        tails = sizes.pow(4).mean(0) if name == "int8-rows" else sizes.amax(0)
        order = torch.argsort(tails, descending=True)
        inputs = len(order)
        counts = {max(1, inputs // part) for part in _KEPT_SHARES} & {*range(inputs)}
        return [tuple(sorted(order[:count].tolist())) for count in sorted(counts)]

    def _error(self, precision: Precision, coded: Codes) -> float:
        exact = self.rows @ self.weight.T
        output = _output(self.rows, self.weight, precision, coded)
        return float((output - exact).norm() / exact.norm().clamp_min(1e-30))


def _some(samples: Tensor) -> Tensor:
    count = min(len(samples), _RANGE_ROWS)
    return samples[torch.linspace(0, len(samples) - 1, count).long()]


def _improving(
    plain: tuple[Precision, float], others: Sequence[tuple[Precision, float]]
) -> list[tuple[Precision, float]]:
    best, better = plain[1], []
    for precision, error in others:
        if error < _CLEARLY_LESS * best:
            better.append((precision, error))
            best = error
    return better


def _column_scales(peaks: Tensor, weight: Tensor) -> list[tuple[float, ...]]:
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


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(float(values.max()) * 1e-6).clamp_min(SMALLEST_STEP)


def _without(samples: Tensor, kept: tuple[int, ...]) -> Tensor:
    if not kept:
        return samples
    mask = torch.ones(samples.shape[1], dtype=torch.bool)
    mask[list(kept)] = False
    return samples[:, mask]


def _coded(weight: Tensor, precision: Precision) -> Codes:
    if precision.format in WEIGHTS_ALONE:
        codes, scale = quantize_weights_alone(weight, WEIGHTS_ALONE[precision.format])
        return Codes(codes, scale, torch.zeros(0))
    dtype: torch.dtype = getattr(torch, precision.weight_dtype)
    if precision.format in HALF:
        return Codes(weight.to(dtype), torch.ones(len(weight)), torch.zeros(0))
    return quantize_weight(low_weight(weight, precision), dtype)


def _output(rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
    if precision.format in HALF:
        half: Tensor = HALF_LINEAR.reference(rows, coded.codes, None)
        return half
    if precision.format in WEIGHTS_ALONE:
        decoded: Tensor = CODED_LINEAR.reference(rows, coded.codes, coded.scale, None)
        return decoded
    kept = list(precision.kept)
    if precision.format == "int8-rows":
        scale = column_scale(precision, weight.shape[1])
        high = (torch.tensor(kept), weight[:, kept]) if kept else (None, None)
        by_row: Tensor = ROWWISE_LINEAR.reference(
            rows, coded.codes, coded.scale, None, scale, *high
        )
        return by_row
    scaled = rows * torch.tensor(precision.column_scale) if precision.column_scale else rows
    low = _round_trip(scaled, precision) @ coded.decoded.T
    return low + rows[:, kept] @ weight[:, kept].T if kept else low


def _static(low: float, high: float, number_format: str, int8_activations: str) -> Precision:
    low, high = min(low, 0.0), max(high, 0.0)
    peak = max(-low, high)
    if number_format == "fp8":
        step, dtype = peak / FLOAT8_MAX, "float8_e4m3fn"
    elif int8_activations == "uint8":
        step, dtype = (high - low) / 255.0, "uint8"
    else:
        step, dtype = peak / 127.0, "int8"
    # Scales are stored and applied in fp32: choose among the values that exist there.
    scale = float(usable(torch.tensor(step, dtype=torch.float32)))
    zero = round(-low / scale) if dtype == "uint8" else 0
    weight_dtype = "float8_e4m3fn" if number_format == "fp8" else "int8"
    return Precision(number_format, scale, zero, dtype, weight_dtype)


def _round_trip(rows: Tensor, precision: Precision) -> Tensor:
    dtype: torch.dtype = getattr(torch, precision.input_dtype)
    scale = torch.tensor(precision.input_scale)
    zero = torch.tensor(precision.input_zero_point, dtype=torch.int32)
    codes = QUANTIZE.reference(rows, scale, zero, -1, dtype)
    return DEQUANTIZE.reference(codes, scale, zero, -1)  # type: ignore[no-any-return]
