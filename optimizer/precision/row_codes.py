"""Linears in INT8 whose input rows have a range each, found while running."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..ir.facts import Precision
from ..ir.ops import ROWWISE_LINEAR
from ..ir.rewrite import Rewriter
from .codes import Codes, quantize_weight
from .columns import column_scale, low_weight
from .linear_format import LinearFormat, base_of


class Int8Rows(LinearFormat):
    """``int8-rows``: 256 steps between a row's own least and largest value."""

    columns: ClassVar[bool] = True

    def tails(self, sizes: Tensor) -> Tensor:
        """A row's range is spoilt by its largest value: how often a column has it counts."""
        return sizes.pow(4).mean(0)

    def precision(self, scale: tuple[float, ...] = (), kept: tuple[int, ...] = ()) -> Precision:
        """Steps of an input row are counted from its least value."""
        return replace(super().precision(scale, kept), input_dtype="uint8")

    def coded(self, weight: Tensor, precision: Precision) -> Codes:
        """Symmetric codes, a scale an output."""
        return quantize_weight(low_weight(weight, precision), torch.int8)

    def output(self, rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
        """The operator's reference."""
        kept = list(precision.kept)
        scale = column_scale(precision, weight.shape[1])
        high = (torch.tensor(kept), weight[:, kept]) if kept else (None, None)
        by_row: Tensor = ROWWISE_LINEAR.reference(
            rows, coded.codes, coded.scale, None, scale, *high
        )
        return by_row

    def put(
        self,
        rw: Rewriter,
        linear: fx.Node,
        weight: Tensor,
        bias: fx.Node | None,
        precision: Precision,
    ) -> None:
        """Puts the operator in the linear's place."""
        name = base_of(linear)
        coded = self.coded(weight, precision)
        codes = rw.parameter(f"{name}_codes", coded.codes)
        scale = rw.parameter(f"{name}_scale", coded.scale)
        columns = column_scale(precision, weight.shape[1])
        extra: list[fx.Node | None] = [None, None, None]
        if columns is not None:
            extra[0] = rw.parameter(f"{name}_columns", columns)
        if precision.kept:
            kept = list(precision.kept)
            extra[1] = rw.parameter(f"{name}_kept", torch.tensor(kept))
            extra[2] = rw.parameter(f"{name}_kept_weight", weight[:, kept].contiguous())
        with rw.before(linear):
            source = linear.args[0]
            made = rw.emit(ROWWISE_LINEAR.op, source, codes, scale, bias, *extra, like=linear)
        rw.replace(linear, made)
