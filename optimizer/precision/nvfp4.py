"""Linears in NVFP4: blocks of 16 along the inputs with a scale each, and one of the tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.nn import functional

from ..ir.facts import Precision
from ..ir.ops import FLOAT4_MAX, NV_BLOCK, NVFP4_LINEAR, nv_rounded, nv_scales
from ..ir.rewrite import Rewriter
from .codes import FLOAT8_MAX, Codes, usable
from .linear_format import LinearFormat, base_of
from .search import Search

#: E2M1's values, by the three bits of their size.
_SIZES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass(frozen=True)
class _Blocks(Codes):
    """Codes of blocks.

    Attributes:
        step: ``[]``, what the scales of blocks are in units of.
    """

    step: Tensor


class NvFp4(LinearFormat):
    """``nvfp4``: E2M1 codes, E4M3 scales; inputs find theirs while running, in static units."""

    def best(
        self, search: Search, scale: tuple[float, ...] = (), kept: tuple[int, ...] = ()
    ) -> tuple[Precision, float]:
        """The unit of the scales is what the largest input needs, measured or assumed."""
        if search.assumed is not None:
            peak = torch.tensor(search.assumed(self.data.name)).abs().max()
        else:
            peak = search.samples.abs().max()
        precision = replace(self.precision(), input_scale=float(_unit(peak.float())))
        coded = self.coded(search.weight, precision)
        return precision, search.error(self.output(search.rows, search.weight, precision, coded))

    def coded(self, weight: Tensor, precision: Precision) -> _Blocks:
        """Pairs of codes ``[N, K' / 2]`` of whole blocks, and scales ``[N, K' / 16]``."""
        blocks = functional.pad(weight, [0, -weight.shape[1] % NV_BLOCK])
        blocks = blocks.reshape(len(weight), -1, NV_BLOCK)
        step = _unit(weight.abs().max())
        scales = nv_scales(blocks, step)
        values = nv_rounded(blocks, scales.float() * step).flatten(1)
        codes = torch.bucketize(values.abs().contiguous(), _SIZES) + torch.where(values < 0.0, 8, 0)
        pairs = codes[:, 0::2] | (codes[:, 1::2] << 4)
        return _Blocks(pairs.to(torch.uint8), scales, torch.zeros(0), step)

    def output(self, rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
        """The operator's reference."""
        assert isinstance(coded, _Blocks)
        unit = torch.tensor(precision.input_scale)
        low: Tensor = NVFP4_LINEAR.reference(rows, coded.codes, coded.scale, coded.step, unit, None)
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
        parts = {
            "codes": coded.codes,
            "scale": coded.scale,
            "step": coded.step,
            "input_step": torch.tensor(precision.input_scale),
        }
        parameters = [rw.parameter(f"{name}_{part}", value) for part, value in parts.items()]
        with rw.before(linear):
            made = rw.emit(NVFP4_LINEAR.op, linear.args[0], *parameters, bias, like=linear)
        rw.replace(linear, made)


def _unit(peak: Tensor) -> Tensor:
    """The unit at which a block of the largest values has the largest scale."""
    return usable(peak / (FLOAT4_MAX * FLOAT8_MAX))
