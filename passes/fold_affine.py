"""fold-affine: constant multiplies and adds next to a linear become part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules, sweep
from ..optimizer.ir.operators import moves
from ..optimizer.ir.pattern import BINARY, argument, dtype_of, is_op, parameter_name, shape_of
from ..optimizer.ir.traits import Move
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
_UNFIT = "the constant doesn't follow the channels"


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Replaces ``linear(x)·s + t`` and ``linear(x·s + t)`` by one linear, s and t constant.

    Also where heads are squeezed, concatenated or stacked before they are calibrated: Platt
    scaling, a temperature, a bias per task.

    Exact because: s·(Wx + b) + t = (sW)x + (sb + t), and W(s·x + t) + b = (W·s)x + (Wt + b).
    Requires: CANONICAL.
    Misses when: the value between them has other users, s or t doesn't follow the channels, or it
    changes the shape or the dtype.
    """

    name: ClassVar[str] = "fold-affine"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rules until none does."""
        rw = ctx.rewriter(program)
        misses: list[Miss] = []

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            misses.append(miss)

        total = 0
        while applied := apply_rules(_RULES, rw, missed):
            total += applied
            misses.clear()
            sweep(program)  # what was folded away would still count as a user
        for miss in misses:
            ctx.missed(miss.reason, *miss.nodes)
        if total:
            ctx.applied(f"folded {total} constant multiplies and adds into linears")


def _constant(program_node: Any, channels: int) -> fx.Node | float | None:
    """A Python number, or a parameter that is a scalar or follows the last dimension."""
    if isinstance(program_node, (int, float)) and not isinstance(program_node, bool):
        return float(program_node)
    if parameter_name(program_node) is None:
        return None
    shape = shape_of(program_node)
    leading = all(size == 1 for size in shape[:-1])
    return program_node if leading and (not shape or shape[-1] in (1, channels)) else None


def _split(node: fx.Node, channels: int) -> tuple[fx.Node, fx.Node | float] | Miss | None:
    """The varying and the constant operand of a multiply or an add."""
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return None
    left, right = node.args
    for varying, other in ((left, right), (right, left)):
        if not isinstance(varying, fx.Node) or varying.op == "get_attr":
            continue
        constant = _constant(other, channels)
        if constant is not None:
            same = [str(s) for s in shape_of(varying)] == [str(s) for s in shape_of(node)]
            if not same or dtype_of(varying) != dtype_of(node):
                return Miss("the constant changes the shape or the dtype", (node,))
            return varying, constant
        if parameter_name(other) is not None:
            return Miss(_UNFIT, (node,))
    return None


def _values(rw: Rewriter, constant: fx.Node | float, channels: int) -> Tensor:
    if isinstance(constant, float):
        return torch.full((channels,), constant, dtype=torch.float64)
    value = rw.program.tensor(str(constant.target)).double().flatten()
    return value.expand(channels)


def _linear_parts(rw: Rewriter, linear: fx.Node) -> tuple[Tensor, Tensor, torch.dtype]:
    """Weight and bias in fp64, and the weight's own dtype."""
    weight = rw.program.tensor(str(linear.args[1].target))  # type: ignore[union-attr]
    bias = argument(linear, 2, "bias")
    wide = (
        torch.zeros(len(weight), dtype=torch.float64)
        if bias is None
        else rw.program.tensor(str(bias.target)).double()
    )
    return weight.double(), wide, weight.dtype


def _emit(
    rw: Rewriter,
    linear: fx.Node,
    source: Any,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    like: tuple[fx.Node, ...],
) -> fx.Node:
    base = str(linear.args[1].target).replace(".", "_").removesuffix("_affine")  # type: ignore[union-attr]
    return rw.emit(
        _aten.linear.default,
        source,
        rw.parameter(f"{base}_affine", weight.to(dtype)),
        rw.parameter(f"{base}_affine_bias", bias.to(dtype)),
        like=like,
    )


class _AfterLinear(Rule):
    """Replaces linear(x)·s or linear(x) + t by a linear."""

    roots = BINARY

    def match(self, node: fx.Node) -> Any:
        if is_op(node, _aten.sub.Tensor):
            return None
        rank = len(shape_of(node))
        channels = shape_of(node)[-1] if rank >= 2 else None
        if not isinstance(channels, int):
            return None
        if not any(is_plain_linear(operand) for operand in node.args):
            return None
        if is_op(node, _aten.div.Tensor) and not is_plain_linear(node.args[0]):
            return None
        parts = _split(node, channels)
        if parts is None or isinstance(parts, Miss):
            return parts
        linear, constant = parts
        if len(linear.users) > 1:
            return Miss("the linear before the constant has other users", (linear,))
        return linear, constant, channels

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        linear, constant, channels = found
        weight, bias, dtype = _linear_parts(rw, linear)
        value = _values(rw, constant, channels)
        if is_op(node, _aten.add.Tensor):
            bias = bias + value
        else:
            value = value.reciprocal() if is_op(node, _aten.div.Tensor) else value
            weight, bias = weight * value[:, None], bias * value
        return _emit(rw, linear, linear.args[0], weight, bias, dtype, (linear, node))


class _BeforeLinear(Rule):
    """Replaces linear(x·s) or linear(x + t) by a linear."""

    roots = (_aten.linear.default,)

    def match(self, node: fx.Node) -> Any:
        affine = node.args[0]
        if not is_plain_linear(node) or not is_op(affine, _aten.mul.Tensor, _aten.add.Tensor):
            return None
        assert isinstance(affine, fx.Node)
        channels = shape_of(affine)[-1]
        if not isinstance(channels, int):
            return None
        parts = _split(affine, channels)
        if parts is None or isinstance(parts, Miss):
            return parts
        if len(affine.users) > 1:
            return Miss("the value before the linear has other users", (affine,))
        return affine, parts[0], parts[1], channels

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        affine, source, constant, channels = found
        weight, bias, dtype = _linear_parts(rw, node)
        value = _values(rw, constant, channels)
        if is_op(affine, _aten.add.Tensor):
            bias = bias + weight @ value
        else:
            weight = weight * value[None, :]
        return _emit(rw, node, source, weight, bias, dtype, (node, affine))


@dataclass(frozen=True)
class _Head:
    """A plain linear, and the views between it and the constant, the last one first."""

    linear: fx.Node
    views: tuple[fx.Node, ...]


class _Calibration(Rule):
    """Replaces squeeze(linear(x))·s + t, and the same of several linears side by side."""

    roots = BINARY

    def match(self, node: fx.Node) -> Any:
        channels = shape_of(node)[-1] if len(shape_of(node)) == 2 else 1
        if not isinstance(channels, int):
            return None
        parts = _split(node, channels)
        if parts is None or isinstance(parts, Miss):
            return None  # told by the first rule
        source, constant = parts
        joined = is_op(source, _aten.cat.default, _aten.stack.default)
        if joined and (argument(source, 1, "dim", 0) not in (1, -1) or len(shape_of(source)) != 2):
            return None
        heads = [_head(part) for part in (source.args[0] if joined else [source])]  # type: ignore[union-attr]
        found = [head for head in heads if head is not None]
        if len(found) < len(heads) or not (joined or found[0].views):
            return None
        if is_op(node, _aten.div.Tensor, _aten.sub.Tensor) and node.args[0] is not source:
            return None
        if not joined and isinstance(constant, fx.Node) and constant.meta["val"].numel() > 1:
            return Miss(_UNFIT, (node,))
        between = [source, *(n for head in found for n in (head.linear, *head.views))]
        shared = tuple(n for n in dict.fromkeys(between) if len(n.users) > 1)
        if shared:
            return Miss("the linear before the constant has other users", shared)
        return source, tuple(found), constant

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        source, heads, constant = found
        joined = is_op(source, _aten.cat.default, _aten.stack.default)
        stacked = is_op(source, _aten.stack.default)
        widths = [1 if stacked or not joined else int(shape_of(h.linear)[1]) for h in heads]
        values = torch.split(_values(rw, constant, sum(widths)), widths)
        parts = [_folded(rw, node, head, v) for head, v in zip(heads, values, strict=True)]
        return rw.emit(source.target, parts, 1, like=node) if joined else parts[0]


def _head(value: Any) -> _Head | None:
    """The linear ``[B, N]`` behind views; as ``[B]`` it has one output."""
    views = []
    while moves(value, Move.SQUEEZE) or is_op(value, _aten.reshape.default):
        views.append(value)
        value = value.args[0]
    if not is_plain_linear(value) or len(shape_of(value)) != 2:
        return None
    return _Head(value, tuple(views)) if not views or shape_of(value)[1] == 1 else None


def _folded(rw: Rewriter, affine: fx.Node, head: _Head, value: Tensor) -> fx.Node:
    """The head with the constants ``[N]`` in its linear."""
    weight, bias, dtype = _linear_parts(rw, head.linear)
    if is_op(affine, _aten.add.Tensor, _aten.sub.Tensor):
        bias = bias + value if is_op(affine, _aten.add.Tensor) else bias - value
    else:
        value = value.reciprocal() if is_op(affine, _aten.div.Tensor) else value
        weight, bias = weight * value[:, None], bias * value
    made = _emit(rw, head.linear, head.linear.args[0], weight, bias, dtype, (head.linear, affine))
    for view in reversed(head.views):
        made = rw.emit(view.target, made, *view.args[1:], like=view)
    return made


_RULES = (_AfterLinear(), _BeforeLinear(), _Calibration())
