"""Linears whose weights alone are coded: decoded as they are read, and multiplied in bf16."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..ir.facts import Precision
from ..ir.ops import CODED_LINEAR
from ..ir.rewrite import Rewriter
from .codes import BLOCK, Codes, quantize_weights_alone
from .linear_format import LinearFormat, base_of


class _CodedWeights(LinearFormat):
    """A format of weights alone."""

    def precision(self, scale: tuple[float, ...] = (), kept: tuple[int, ...] = ()) -> Precision:
        bits = self.data.weight.bits
        return Precision(
            self.data.name, input_dtype=self.data.input.torch, weight_dtype=f"int{bits}"
        )

    def coded(self, weight: Tensor, precision: Precision) -> Codes:
        codes, scale = quantize_weights_alone(weight, self.data.weight.bits)
        return Codes(codes, scale, torch.zeros(0))

    def output(self, rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
        decoded: Tensor = CODED_LINEAR.reference(rows, coded.codes, coded.scale, None)
        return decoded

    def put(
        self,
        rw: Rewriter,
        linear: fx.Node,
        weight: Tensor,
        bias: fx.Node | None,
        precision: Precision,
    ) -> None:
        coded, name = self.coded(weight, precision), base_of(linear)
        codes = rw.parameter(f"{name}_codes", coded.codes)
        scale = rw.parameter(f"{name}_scale", coded.scale)
        with rw.before(linear):
            made = rw.emit(CODED_LINEAR.op, linear.args[0], codes, scale, bias, like=linear)
        rw.replace(linear, made)


class Int8Weights(_CodedWeights):
    """``int8-weights``: a scale an output."""


class Int4Weights(_CodedWeights):
    """``int4-weights``: each 64 inputs have a scale, their range searched for the least error."""

    def fits(self, inputs: int) -> bool:
        """Whether inputs are whole blocks."""
        return inputs % BLOCK == 0
