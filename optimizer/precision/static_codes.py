"""Linears whose input has one static range: Q/DQ of the input, a DQ of the weight's codes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..ir.facts import Precision
from ..ir.ops import DEQUANTIZE, QUANTIZE
from ..ir.rewrite import Rewriter
from .codes import FLOAT8_MAX, Codes, quantize_weight, usable
from .columns import low_weight, without
from .linear_format import LinearFormat, base_of
from .search import Search

_aten = torch.ops.aten
#: Shares of the smallest and of the largest value that are tried as the clipping range.
_CLIP_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25, 0.15, 0.1)


class _StaticCodes(LinearFormat):
    """A format with a static range.

    Ranges are shares of the smallest and the largest value, each its own where the format has a
    zero point. Each is tried on real rows, weights quantized, and the one with the smallest
    relative L2 error of the output is kept (the L2 range search of 2105.12676's toolchain, applied
    to the output instead of the input): the upper end first, then the lower one.
    """

    columns: ClassVar[bool] = True

    @abstractmethod
    def static(self, low: float, high: float, search: Search) -> Precision:
        """The precision of a range that holds zero."""

    def affine(self, search: Search) -> bool:
        """Whether the two ends of a range are each their own."""
        return False

    def best(
        self, search: Search, scale: tuple[float, ...] = (), kept: tuple[int, ...] = ()
    ) -> tuple[Precision, float]:
        if search.assumed is not None:
            low, high = search.assumed(self.data.name)
            precision = self._of_ends(low, high, search)
            coded = self.coded(search.weight, precision)
            output = self.output(search.rows, search.weight, precision, coded)
            return precision, search.error(output)
        return self._ranged(search, scale, kept)

    def _ranged(
        self, search: Search, scale: tuple[float, ...], kept: tuple[int, ...]
    ) -> tuple[Precision, float]:
        samples = search.samples * torch.tensor(scale) if scale else search.samples
        samples = without(samples, kept)
        coded: Codes | None = None

        def measured(low: float, high: float) -> tuple[Precision, float]:
            nonlocal coded
            ends = float(samples.min()) * low, float(samples.max()) * high
            precision = replace(self._of_ends(*ends, search), column_scale=scale, kept=kept)
            coded = coded or self.coded(search.weight, precision)
            output = self.output(search.rows, search.weight, precision, coded)
            return precision, search.error(output)

        affine = self.affine(search)
        found = [(*measured(1.0 if affine else share, share), share) for share in _CLIP_SHARES]
        precision, error, high = min(found, key=lambda f: f[1])
        if affine and float(samples.min()) < 0.0 < float(samples.max()):
            for share in _CLIP_SHARES[1:]:
                other = measured(share, high)
                if other[1] < error:
                    precision, error = other
        return precision, error

    def _of_ends(self, low: float, high: float, search: Search) -> Precision:
        return self.static(min(low, 0.0), max(high, 0.0), search)

    def coded(self, weight: Tensor, precision: Precision) -> Codes:
        dtype: torch.dtype = getattr(torch, precision.weight_dtype)
        return quantize_weight(low_weight(weight, precision), dtype)

    def output(self, rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
        kept = list(precision.kept)
        scaled = rows * torch.tensor(precision.column_scale) if precision.column_scale else rows
        low = _round_trip(scaled, precision) @ coded.decoded.T
        return low + rows[:, kept] @ weight[:, kept].T if kept else low

    def put(
        self,
        rw: Rewriter,
        linear: fx.Node,
        weight: Tensor,
        bias: fx.Node | None,
        precision: Precision,
    ) -> None:
        source = linear.args[0]
        assert isinstance(source, fx.Node)
        name = base_of(linear)
        input_dtype: torch.dtype = getattr(torch, precision.input_dtype)
        coded = self.coded(weight, precision)
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
            quantized = rw.emit(QUANTIZE.op, low, scale, zero, -1, input_dtype, like=linear)
            restored = rw.emit(DEQUANTIZE.op, quantized, scale, zero, -1, like=linear)
            decoded = rw.emit(DEQUANTIZE.op, codes, weight_scale, weight_zero, 0, like=linear)
        linear.args = (restored, decoded) if bias is None else (restored, decoded, bias)
        if precision.kept:
            _add_kept(rw, linear, source, weight, precision.kept, name)


class Int8(_StaticCodes):
    """``int8``: affine codes where the target's kernels take them, else symmetric ones."""

    def affine(self, search: Search) -> bool:
        """Where codes have no sign."""
        return search.int8_activations == "uint8"

    def static(self, low: float, high: float, search: Search) -> Precision:
        """255 steps between the ends, or 127 either side of zero."""
        if not self.affine(search):
            scale = _scale(max(-low, high) / 127.0)
            return Precision(self.data.name, scale, 0, "int8", "int8")
        scale = _scale((high - low) / 255.0)
        return Precision(self.data.name, scale, round(-low / scale), "uint8", "int8")


class Fp8(_StaticCodes):
    """``fp8``: E4M3, symmetric."""

    def static(self, low: float, high: float, search: Search) -> Precision:
        """The larger end is the largest value of E4M3."""
        scale = _scale(max(-low, high) / FLOAT8_MAX)
        return Precision(self.data.name, scale, 0, self.data.input.torch, self.data.weight.torch)


def _scale(step: float) -> float:
    """Scales are stored and applied in fp32: choose among the values that exist there."""
    return float(usable(torch.tensor(step, dtype=torch.float32)))


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


def _round_trip(rows: Tensor, precision: Precision) -> Tensor:
    dtype: torch.dtype = getattr(torch, precision.input_dtype)
    scale = torch.tensor(precision.input_scale)
    zero = torch.tensor(precision.input_zero_point, dtype=torch.int32)
    codes = QUANTIZE.reference(rows, scale, zero, -1, dtype)
    return DEQUANTIZE.reference(codes, scale, zero, -1)  # type: ignore[no-any-return]
