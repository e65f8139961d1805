"""Linears in the 16-bit formats: weight and input rounded, the product in the format."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..ir.facts import Precision
from ..ir.ops import HALF_LINEAR
from ..ir.rewrite import Rewriter
from .codes import Codes
from .linear_format import LinearFormat, base_of


class _Half(LinearFormat):
    """A 16-bit format."""

    def coded(self, weight: Tensor, precision: Precision) -> Codes:
        half = weight.to(getattr(torch, self.data.weight.torch))
        return Codes(half, torch.ones(len(weight)), torch.zeros(0))

    def output(self, rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
        half: Tensor = HALF_LINEAR.reference(rows, coded.codes, None)
        return half

    def put(
        self,
        rw: Rewriter,
        linear: fx.Node,
        weight: Tensor,
        bias: fx.Node | None,
        precision: Precision,
    ) -> None:
        half = rw.parameter(f"{base_of(linear)}_half", self.coded(weight, precision).codes)
        with rw.before(linear):
            made = rw.emit(HALF_LINEAR.op, linear.args[0], half, bias, like=linear)
        rw.replace(linear, made)


class Bf16(_Half):
    """``bf16``: the exponents of fp32, eight bits of precision."""


class Fp16(_Half):
    """``fp16``: eleven bits of precision, up to 65,504."""
