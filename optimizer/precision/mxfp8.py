"""Linears in MXFP8: blocks of 32 along the inputs, each with a power of two as its scale."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional

from ..ir.facts import Precision
from ..ir.ops import MX_BLOCK, MXFP8_LINEAR, mx_codes, mx_scales
from ..ir.rewrite import Rewriter
from .codes import Codes
from .linear_format import LinearFormat, base_of


class MxFp8(LinearFormat):
    """``mxfp8``: E4M3 codes, E8M0 scales; inputs find theirs while running, block by block."""

    def coded(self, weight: Tensor, precision: Precision) -> Codes:
        """Codes ``[N, K']`` of whole blocks, and scales ``[N, K' / 32]``, the bytes of E8M0."""
        blocks = functional.pad(weight, [0, -weight.shape[1] % MX_BLOCK])
        blocks = blocks.reshape(len(weight), -1, MX_BLOCK)
        scales = mx_scales(blocks)
        codes = mx_codes(blocks, scales).flatten(1)
        return Codes(codes, scales.to(torch.float8_e8m0fnu).view(torch.uint8), torch.zeros(0))

    def output(self, rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
        """The operator's reference."""
        low: Tensor = MXFP8_LINEAR.reference(rows, coded.codes, coded.scale, None)
        return low

    def put(
        self,
        rw: Rewriter,
        linear: fx.Node,
        weight: Tensor,
        bias: fx.Node | None,
        precision: Precision,
    ) -> None:
        """Puts the operator in the linear's place."""
        coded, name = self.coded(weight, precision), base_of(linear)
        codes = rw.parameter(f"{name}_codes", coded.codes)
        scale = rw.parameter(f"{name}_scale", coded.scale)
        with rw.before(linear):
            made = rw.emit(MXFP8_LINEAR.op, linear.args[0], codes, scale, bias, like=linear)
        rw.replace(linear, made)
