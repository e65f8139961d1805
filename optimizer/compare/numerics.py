"""Whether a pass kept its promise about the numbers, on real rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.program import Program

#: Parameters above this many bytes aren't widened to fp64; what is read from them is.
_WIDEN_LIMIT = 64 * 2**20


@dataclass(frozen=True)
class Divergence:
    """How far outputs moved.

    Attributes:
        max_abs: The largest absolute difference over all outputs and rows.
        relative: That difference over the largest absolute output.
        bit_equal: Whether every bit is the same.
    """

    max_abs: float
    relative: float
    bit_equal: bool

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(vars(self))


def divergence(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Divergence:
    """The difference of two sets of outputs over the outputs, and first columns, they share."""
    largest, scale, equal = 0.0, 0.0, True
    for name in before.keys() & after.keys():
        left, right = before[name], after[name]
        if left.dim() == right.dim() == 2:
            shared = min(left.shape[1], right.shape[1])
            left, right = left[:, :shared], right[:, :shared]
        if left.shape != right.shape:
            return Divergence(float("inf"), float("inf"), bit_equal=False)
        equal = equal and _same_bits(left, right)
        if left.numel() == 0:
            continue
        wide, other = left.double(), right.double()
        same = (wide == other) | (wide.isnan() & other.isnan())
        difference = (wide - other).abs().masked_fill(same, 0.0).max().item()
        largest = max(largest, difference if difference == difference else float("inf"))
        scale = max(scale, wide.abs().nan_to_num(0.0, posinf=0.0).max().item())
    return Divergence(largest, largest / scale if scale else largest, equal)


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in dtype and in every bit: 0.0 isn't -0.0, and a NaN equals itself."""
    if left.dtype != right.dtype:
        return False
    bits = (value.contiguous().flatten().view(torch.uint8) for value in (left, right))
    return torch.equal(*bits)


def truth(program: Program, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs in fp64, without copying large tables."""
    with torch.no_grad():
        values = _Wide(program.module).run(*map(_wide, program.ordered(rows)))
    return dict(zip(program.signature.outputs, values, strict=True))


def _wide(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point() and value.element_size() >= 4
    return value.double() if is_float else value


class _Wide(fx.Interpreter):
    """Runs a graph with every floating-point value in fp64."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        small = not isinstance(value, Tensor) or value.nbytes <= _WIDEN_LIMIT
        return _wide(value) if small else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args = _widened_dtypes(args)
        kwargs = {key: _widened_dtypes(value) for key, value in kwargs.items()}
        try:
            result = super().call_function(target, args, kwargs)
        except RuntimeError:
            # A large table kept in fp32 met fp64 operands (weighted bags): compute in fp32.
            result = super().call_function(target, _narrow(args), _narrow(kwargs))
        if isinstance(result, (tuple, list)):
            return type(result)(_wide(item) for item in result)
        return _wide(result)


def _widened_dtypes(value: Any) -> Any:
    if value is torch.float32:
        return torch.float64
    if isinstance(value, (list, tuple)):
        return type(value)(_widened_dtypes(item) for item in value)
    return value


def _narrow(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype is torch.float64:
        return value.float()
    if value is torch.float64:
        return torch.float32
    if isinstance(value, (list, tuple)):
        return type(value)(_narrow(item) for item in value)
    if isinstance(value, dict):
        return {key: _narrow(item) for key, item in value.items()}
    return value
