"""fold-batchnorm: inference BatchNorm is an affine map, and a linear before it absorbs that."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import argument, is_op, parameter_name, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
_NORM = _aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Replaces BatchNorm with running statistics by a scaled linear, or by one multiply and add.

    Exact because: with fixed statistics it is x·s + t per channel, s = γ/√(σ²+ε), t = β − μ·s; and
    (Wx + b)·s + t = (sW)x + (sb + t).
    Requires: CANONICAL.
    Misses when: the linear before it has other users; then it becomes a multiply and an add.
    """

    name: ClassVar[str] = "fold-batchnorm"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the two rules."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        folded = apply_rules((_IntoLinear(),), rw, missed)
        plain = apply_rules((_IntoAffine(),), rw, missed)
        if folded:
            ctx.applied(f"folded {folded} BatchNorms into the linears before them")
        if plain:
            ctx.applied(f"turned {plain} BatchNorms into one multiply and add")


def _norm_of(node: fx.Node) -> fx.Node | None:
    """The BatchNorm whose first result ``node`` is, if its statistics are parameters."""
    norm = node.args[0]
    if node.args[1] != 0 or not is_op(norm, _NORM):
        return None
    assert isinstance(norm, fx.Node)
    fixed = all(a is None or parameter_name(a) is not None for a in norm.args[1:5])
    return norm if fixed else None


def _affine(rw: Rewriter, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """The norm's s and t, computed in fp64."""
    gamma, beta, mean, variance = (
        None if a is None else rw.program.tensor(str(a.target)).double()  # type: ignore[union-attr]
        for a in norm.args[1:5]
    )
    assert mean is not None
    assert variance is not None
    epsilon = norm.args[6]
    assert isinstance(epsilon, float)
    scale = torch.rsqrt(variance + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    if beta is not None:
        shift = shift + beta
    return scale, shift


class _IntoLinear(Rule):
    """Replaces BatchNorm(linear(x)) by a linear."""

    roots = (operator.getitem,)

    def match(self, node: fx.Node) -> Any:
        norm = _norm_of(node)
        if norm is None or not is_plain_linear(norm.args[0]):
            return None
        linear = norm.args[0]
        assert isinstance(linear, fx.Node)
        if len(shape_of(linear)) != 2:
            return None
        if len(linear.users) > 1:
            return Miss("the linear before the BatchNorm has other users", (linear,))
        return norm, linear

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        norm, linear = found
        scale, shift = _affine(rw, norm)
        name = str(linear.args[1].target)
        weight = rw.program.tensor(name)
        bias = argument(linear, 2, "bias")
        old = rw.program.tensor(str(bias.target)).double() if bias is not None else 0.0
        new_weight = (weight.double() * scale[:, None]).to(weight.dtype)
        new_bias = (old * scale + shift).to(weight.dtype)
        base = name.replace(".", "_")
        return rw.emit(
            _aten.linear.default,
            linear.args[0],
            rw.parameter(f"{base}_folded", new_weight),
            rw.parameter(f"{base}_folded_bias", new_bias),
            like=(linear, norm),
        )


class _IntoAffine(Rule):
    """Replaces a BatchNorm that has no linear before it by a multiply and an add."""

    roots = (operator.getitem,)

    def match(self, node: fx.Node) -> Any:
        return _norm_of(node)

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        scale, shift = _affine(rw, found)
        rank = len(shape_of(node))
        shape = [1, -1] + [1] * (rank - 2)
        dtype = node.meta["val"].dtype
        base = f"{found.name}".lstrip("_")
        scale_node = rw.parameter(f"{base}_scale", scale.reshape(shape).to(dtype))
        shift_node = rw.parameter(f"{base}_shift", shift.reshape(shape).to(dtype))
        scaled = rw.emit(_aten.mul.Tensor, found.args[0], scale_node, like=found)
        return rw.emit(_aten.add.Tensor, scaled, shift_node, like=found)
