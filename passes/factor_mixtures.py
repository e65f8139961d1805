"""factor-mixtures: a mixture of linear experts is one linear of their mixed inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import argument, dtype_of, is_op, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class FactorMixtures(Pass):
    """Replaces ``Σ g_e · x · (U_e h_e + b_e)`` by ``x · (U [g_1 h_1 … g_E h_E] + Σ g_e b_e)``.

    The mixture of low-rank cross layers of DCN V2 (2008.13535), with the factor x, and mixtures of
    linears without one. The experts' outputs, as wide as the model's input, are never made.

    Exact because: both are the same sums of the same products.
    Pays because: four passes over the input's width an expert become one over the rank. Three
    layers of four experts, 1027 inputs, rank 256, on one thread of ONNX Runtime at batch 512: 24 ms
    of stacking and 11 of adding and multiplying, of the model's 95.
    Requires: CANONICAL.
    Misses when: the experts have other users, or are narrower than what they read.
    """

    name: ClassVar[str] = "factor-mixtures"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rule."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        factored = apply_rules((_Mixture(),), rw, missed)
        if factored:
            ctx.applied(f"factored {factored} mixtures of linear experts")


@dataclass(frozen=True)
class _Found:
    """A mixture: its experts' linears, what multiplies each, and ``[B, E]`` weights' source."""

    linears: tuple[fx.Node, ...]
    factor: fx.Node | None
    weights: fx.Node


class _Mixture(Rule):
    """Replaces a product of stacked experts and their weights."""

    roots = (_aten.matmul.default, _aten.bmm.default)

    def match(self, node: fx.Node) -> Any:
        for stack, weights in (node.args, node.args[::-1]):
            if is_op(stack, _aten.stack.default) and isinstance(weights, fx.Node):
                return self._experts(node, stack, weights)
        return None

    def _experts(self, node: fx.Node, stack: Any, weights: fx.Node) -> Any:
        """Experts stacked as columns ``[B, W, E]`` before weights ``[B, E, 1]``, or as rows."""
        columns = node.args[0] is stack
        dim = argument(stack, 1, "dim", 0) % 3
        if len(shape_of(stack)) != 3 or len(shape_of(weights)) != 3 or weights.op == "get_attr":
            return None
        if dim != (2 if columns else 1) or shape_of(weights)[2 if columns else 1] != 1:
            return None
        parts: list[Any] = list(stack.args[0])
        factors, linears = [], []
        for part in parts:
            factor, linear = _factored(part)
            factors.append(factor)
            linears.append(linear)
        if len(parts) < 2 or None in linears or len(set(factors)) > 1:
            return None
        inner = sum(int(shape_of(linear.args[1])[1]) for linear in linears)
        if inner > len(parts) * int(shape_of(linears[0])[-1]):
            return Miss("its experts are narrower than what they read", (node,))
        if len(stack.users) > 1 or any(len(p.users) > 1 for p in (*parts, *linears)):
            return Miss("its experts have other users", (node,))
        return _Found(tuple(linears), factors[0], weights)

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        linears: Sequence[Any] = found.linears
        count = len(linears)
        inputs = [linear.args[0] for linear in linears]
        widths = [int(shape_of(source)[1]) for source in inputs]
        biases = [argument(linear, 2, "bias") for linear in linears]
        biased, alike = any(bias is not None for bias in biases), len(set(widths)) == 1
        if biased or not alike:
            flat = rw.emit(_aten.reshape.default, found.weights, [-1, count], like=node)
        if alike:
            weights = found.weights
            if shape_of(weights)[1] == 1:
                weights = rw.emit(_aten.reshape.default, weights, [-1, count, 1], like=node)
            stacked = rw.emit(_aten.stack.default, inputs, 1, like=linears)
            scaled = rw.emit(_aten.mul.Tensor, stacked, weights, like=node)
            mixed = rw.emit(_aten.reshape.default, scaled, [-1, count * widths[0]], like=node)
        else:
            shares = [
                rw.emit(_aten.slice.Tensor, flat, 1, expert, expert + 1, like=node)
                for expert in range(count)
            ]
            pairs = zip(inputs, shares, strict=True)
            parts = [rw.emit(_aten.mul.Tensor, one, share, like=node) for one, share in pairs]
            mixed = rw.emit(_aten.cat.default, parts, 1, like=node)
        matrices = [rw.program.tensor(str(linear.args[1].target)) for linear in linears]
        if biased:
            columns = [
                matrix.new_zeros(len(matrix))
                if bias is None
                else rw.program.tensor(str(bias.target))
                for bias, matrix in zip(biases, matrices, strict=True)
            ]
            matrices.append(torch.stack(columns, 1))
            mixed = rw.emit(_aten.cat.default, [mixed, flat], 1, like=node)
        name = str(linears[0].args[1].target).replace(".", "_")
        weight = rw.parameter(f"{name}_mixture", torch.cat(matrices, 1))
        made = rw.emit(_aten.linear.default, mixed, weight, like=(*linears, node))
        if found.factor is not None:
            made = rw.emit(_aten.mul.Tensor, found.factor, made, like=node)
        return rw.emit(_aten.unsqueeze.default, made, 1 if shape_of(node)[1] == 1 else 2, like=node)


def _factored(part: Any) -> tuple[fx.Node | None, Any]:
    """What an expert's linear is multiplied by, and the linear; None where there is no linear."""
    if _is_expert(part):
        return None, part
    if is_op(part, _aten.mul.Tensor) and len(part.args) == 2:
        for factor, linear in (part.args, part.args[::-1]):
            if _is_expert(linear) and isinstance(factor, fx.Node) and factor.op != "get_attr":
                same = [str(s) for s in shape_of(factor)] == [str(s) for s in shape_of(linear)]
                return (factor, linear) if same else (None, None)
    return None, None


def _is_expert(node: Any) -> bool:
    return is_plain_linear(node) and len(shape_of(node)) == 2 and dtype_of(node) == torch.float32
