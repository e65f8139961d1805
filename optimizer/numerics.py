"""Whether a pass kept its promise about the numbers, on real rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .ir.program import Program
from .passbase import Exactness

#: Rounding error that is always allowed, relative to the largest output: 32 steps of fp32.
ROUNDING_FLOOR = 32 * torch.finfo(torch.float32).eps

#: How many times the original's own error is allowed. The largest error over a few hundred rows is
#: a random draw for both programs: held to 1, a correct fold of BatchNorm failed in 5 of 10 seeds.
ROUNDING_SLACK = 2.0

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


def broken_promise(
    exactness: Exactness,
    moved: Divergence,
    error: Divergence | None,
    original_error: Divergence | None,
) -> str | None:
    """Why a change isn't what the pass promised, or None.

    Args:
        exactness: The promise.
        moved: Outputs after against outputs before the pass.
        error: Outputs after against the fp64 truth; for ROUNDING.
        original_error: The captured program's outputs against the fp64 truth; for ROUNDING.
    """
    if exactness is Exactness.EXACT and not moved.bit_equal:
        return (
            f"it is declared exact, but outputs moved by up to {moved.max_abs:.3g} "
            f"({moved.relative:.3g} of the largest output)"
        )
    if exactness is Exactness.ROUNDING:
        assert error is not None
        assert original_error is not None
        allowed = max(ROUNDING_SLACK * original_error.relative, ROUNDING_FLOOR)
        if not error.relative <= allowed:
            return (
                f"it is declared rounding, but its error against fp64 is {error.relative:.3g} of "
                f"the largest output; {allowed:.3g} is allowed (the original's own is "
                f"{original_error.relative:.3g})"
            )
    return None


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
