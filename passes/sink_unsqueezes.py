"""sink-unsqueezes: elementwise operators come before a dimension of size 1 is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import BINARY, UNARY, is_op, parameter_name, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class SinkUnsqueezes(Pass):
    """Replaces ``f(x.unsqueeze(-1))`` by ``f(x).unsqueeze(-1)``, and drops what is squeezed again.

    Models that are written over columns ``[B, n, 1]``, as DCN's cross layers often are, become
    models over rows, whose linears and activations stand side by side.

    Exact because: f computes every element from the same ones.
    Requires: CANONICAL.
    Misses when: never; a value that isn't unsqueezed is left alone.
    """

    name: ClassVar[str] = "sink-unsqueezes"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rules; what sinks is met again further down."""
        rw = ctx.rewriter(program)
        sunk = apply_rules((_Elementwise(), _Squeezed()), rw, _ignore)
        if sunk:
            ctx.applied(f"moved {sunk} operators before dimensions of size 1")


def _ignore(rule: Rule, node: fx.Node, miss: Miss) -> None:
    """These rules have no near misses worth telling."""


def _added(node: Any) -> int | None:
    """The dimension that an unsqueeze adds."""
    if not is_op(node, _aten.unsqueeze.default):
        return None
    return int(node.args[1]) % len(shape_of(node))


class _Elementwise(Rule):
    """Replaces an elementwise operator of unsqueezed values by an unsqueezed one."""

    roots = (*UNARY, *BINARY)

    def match(self, node: fx.Node) -> Any:
        operands = node.args[:2] if node.target in BINARY else node.args[:1]
        if node.target in BINARY and (len(node.args) != 2 or node.kwargs):
            return None
        dims = {_added(operand) for operand in operands} - {None}
        rank = len(shape_of(node))
        if len(dims) != 1:
            return None
        (dim,) = dims
        assert dim is not None
        fits = all(_fits(operand, dim, rank) for operand in operands)
        # Only a last dimension is worth it: sums over another would be over another number.
        return dim if fits and dim == rank - 1 else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        count = 2 if node.target in BINARY else 1
        operands = [_without(rw, operand, found, node) for operand in node.args[:count]]
        made = rw.emit(node.target, *operands, *node.args[count:], like=node, **node.kwargs)
        return rw.emit(_aten.unsqueeze.default, made, found, like=node)


def _fits(operand: Any, dim: int, rank: int) -> bool:
    """Whether an operand has the dimension added, or does without it."""
    if isinstance(operand, (int, float)):
        return True
    if _added(operand) == dim:
        return len(shape_of(operand)) == rank
    if parameter_name(operand) is None:
        return False
    shape = shape_of(operand)
    return len(shape) == 0 or shape[-1] == 1


def _without(rw: Rewriter, operand: Any, dim: int, node: fx.Node) -> Any:
    if _added(operand) == dim:
        return operand.args[0]
    name = parameter_name(operand)
    if name is None or len(shape_of(operand)) == 0:
        return operand
    value = rw.program.tensor(name).squeeze(-1).contiguous()
    return rw.parameter(f"{name.replace('.', '_')}_row", value)


class _Squeezed(Rule):
    """Replaces squeeze(unsqueeze(x, d), d) by x."""

    roots = (_aten.squeeze.dims,)

    def match(self, node: fx.Node) -> Any:
        source, dims = node.args
        if _added(source) is None:
            return None
        assert isinstance(source, fx.Node)
        rank = len(shape_of(source))
        squeezed = [dim % rank for dim in dims]  # type: ignore[union-attr, operator]
        return source.args[0] if squeezed == [_added(source)] else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        rw.replace(node, found)
        return None
