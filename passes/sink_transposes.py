"""sink-transposes: operators that work on any order of dimensions come before a transpose."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..optimizer.analysis.cost import elements_of
from ..optimizer.ir import Program, Rewriter, facts_of, set_precision, sweep
from ..optimizer.ir.pattern import BINARY, UNARY, argument, is_op, parameter_name, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
_TRANSPOSES = (_aten.transpose.int, _aten.permute.default)
_PRODUCTS = (_aten.matmul.default, _aten.bmm.default)
_LAST = frozenset({_aten.linear.default, _aten.layer_norm.default})


@dataclass(frozen=True)
class SinkTransposes(Pass):
    """Replaces ``f(x.transpose(i, j))`` by ``f(x).transpose(i, j)``, down to where it cancels.

    Past elementwise operators, splits and joins; a sum absorbs a transpose, and two in a row become
    one or none.

    Exact because: f computes every element from the same ones. It is declared rounding since a
    value has other strides then, and torch chooses its kernels by them.
    Pays because: transposes copy. What flatten-cin leaves in xDeepFM, one thread of ONNX Runtime,
    batch 1, 64, 512: 409, 12511, 114913 us without and 386, 12531, 113090 with it: 6 % at batch 1,
    nothing that can be measured beside larger products.
    Requires: CANONICAL.
    Misses when: the transposed value has other users.
    """

    name: ClassVar[str] = "sink-transposes"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, program: Program, ctx: PassContext) -> None:
        """Tries it on a copy, since a transpose that cancels with nothing had better stay."""
        trial = program.clone()
        if not _sink(Rewriter(trial, self.name)):
            return
        sweep(trial)
        if _copied(trial) >= _copied(program):
            ctx.missed("moving operators before transposes would leave as many of them")
            return
        sunk = _sink(ctx.rewriter(program))
        if sunk:
            ctx.applied(f"moved {sunk} operators before transposes, of which fewer are left")


def _copied(program: Program) -> float:
    """How many numbers the transposes copy at 64 rows, less what matrix products take as it is."""
    total = 0.0
    for node in program.graph.nodes:
        order = _order(node)
        if order is None or (_swaps_last(order) and all(is_op(u, *_PRODUCTS) for u in node.users)):
            continue
        total += elements_of(node, 64)
    return total


def _swaps_last(order: Sequence[int]) -> bool:
    return [*order[:-2], order[-1], order[-2]] == sorted(order)


def _order(node: Any) -> list[int] | None:
    """The order that a transpose gives the dimensions of its input."""
    if is_op(node, _aten.permute.default):
        dims = list(node.args[1])
        return [dim % len(dims) for dim in dims]
    if not is_op(node, _aten.transpose.int):
        return None
    order = list(range(len(shape_of(node))))
    first, second = (dim % len(order) for dim in node.args[1:3])
    order[first], order[second] = order[second], order[first]
    return order


def _alone(node: Any) -> list[int] | None:
    """The order of a transpose that nothing else reads."""
    order = _order(node)
    return order if order is not None and len(node.users) == 1 else None


def _sink(rw: Rewriter) -> int:
    sunk = 0
    for node in list(rw.program.graph.nodes):
        if node.op != "call_function" or node._erased:
            continue
        rule = next((r for r in _RULES if node.target in r.targets and r.fits(node)), None)
        if rule is None or not rw.site(node):
            continue
        with rw.before(node):
            rule.sink(rw, node)
        sunk += 1
    return sunk


class _Rule(ABC):
    """A kind of operator that may come before a transpose."""

    targets: frozenset[Any]

    @abstractmethod
    def fits(self, node: fx.Node) -> bool:
        """Whether the operator reads transposes, and works in any order."""

    @abstractmethod
    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        """Puts it before them."""


class _Unary(_Rule):
    targets = UNARY | _LAST

    def fits(self, node: fx.Node) -> bool:
        order = _alone(node.args[0])
        if order is None or node.target in UNARY:
            return order is not None
        if is_op(node, _aten.layer_norm.default) and len(node.args[1]) != 1:  # type: ignore[arg-type]
            return False
        return order[-1] == len(order) - 1  # it works along the last dimension

    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        source = node.args[0].args[0]  # type: ignore[union-attr]
        made = rw.emit(node.target, source, *node.args[1:], like=node, **node.kwargs)
        set_precision(made, facts_of(node).precision)
        _turn(rw, node, made, _order(node.args[0]))


class _Binary(_Rule):
    targets = frozenset(BINARY)

    def fits(self, node: fx.Node) -> bool:
        orders = [_alone(operand) for operand in node.args]
        known = [order for order in orders if order is not None]
        if not known or len(node.args) != 2 or node.kwargs:
            return False
        if any(order != known[0] for order in known) or len(shape_of(node)) != len(known[0]):
            return False
        others = [o for o, order in zip(node.args, orders, strict=True) if order is None]
        return all(isinstance(o, (int, float)) or parameter_name(o) for o in others)

    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        order = next(o for o in map(_order, node.args) if o is not None)
        operands = [self._turned_back(rw, operand, order) for operand in node.args]
        _turn(rw, node, rw.emit(node.target, *operands, like=node), order)

    def _turned_back(self, rw: Rewriter, operand: Any, order: list[int]) -> Any:
        name = parameter_name(operand)
        if name is None:
            return operand.args[0] if isinstance(operand, fx.Node) else operand
        value = rw.program.tensor(name)
        whole = value.reshape([1] * (len(order) - value.dim()) + list(value.shape))
        back = [order.index(dim) for dim in range(len(order))]
        return rw.parameter(f"{name.replace('.', '_')}_turned", whole.permute(back).contiguous())


class _Split(_Rule):
    targets = frozenset({_aten.split.Tensor, _aten.split_with_sizes.default})

    def fits(self, node: fx.Node) -> bool:
        return _alone(node.args[0]) is not None

    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        order = _order(node.args[0])
        assert order is not None
        source, dim = node.args[0].args[0], order[argument(node, 2, "dim", 0)]  # type: ignore[union-attr]
        made = rw.emit(node.target, source, node.args[1], dim, like=node)
        for piece in list(node.users):
            part = rw.emit(operator.getitem, made, piece.args[1], like=piece)
            _turn(rw, piece, part, order)


class _Slice(_Rule):
    targets = frozenset({_aten.slice.Tensor})

    def fits(self, node: fx.Node) -> bool:
        return _alone(node.args[0]) is not None and not node.kwargs

    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        order = _order(node.args[0])
        assert order is not None
        source, dim = node.args[0].args[0], order[argument(node, 1, "dim", 0)]  # type: ignore[union-attr]
        _turn(rw, node, rw.emit(node.target, source, dim, *node.args[2:], like=node), order)


class _Join(_Rule):
    targets = frozenset({_aten.cat.default})

    def fits(self, node: fx.Node) -> bool:
        orders = [_alone(part) for part in node.args[0]]  # type: ignore[union-attr]
        return orders[0] is not None and all(order == orders[0] for order in orders)

    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        parts: Any = node.args[0]
        order = _order(parts[0])
        assert order is not None
        dim = order[argument(node, 1, "dim", 0)]
        made = rw.emit(node.target, [part.args[0] for part in parts], dim, like=node)
        _turn(rw, node, made, order)


class _Sum(_Rule):
    targets = frozenset({_aten.sum.dim_IntList, _aten.mean.dim})

    def fits(self, node: fx.Node) -> bool:
        dims = argument(node, 1, "dim")
        return bool(dims) and len(node.args) == 2 and not node.kwargs and bool(_order(node.args[0]))

    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        order = _order(node.args[0])
        assert order is not None
        dims: Any = node.args[1]
        summed = [order[dim] for dim in dims]
        made = rw.emit(node.target, node.args[0].args[0], summed, like=node)  # type: ignore[union-attr]
        left = [dim for dim in order if dim not in summed]
        _turn(rw, node, made, [sorted(left).index(dim) for dim in left])


class _Twice(_Rule):
    targets = frozenset(_TRANSPOSES)

    def fits(self, node: fx.Node) -> bool:
        return _order(node.args[0]) is not None

    def sink(self, rw: Rewriter, node: fx.Node) -> None:
        first, second = _order(node.args[0]), _order(node)
        assert first is not None
        assert second is not None
        _turn(rw, node, node.args[0].args[0], [first[dim] for dim in second])  # type: ignore[union-attr]


def _turn(rw: Rewriter, node: fx.Node, made: Any, order: Sequence[int] | None) -> None:
    """Lets ``made``, in that order, take the place of ``node``."""
    assert order is not None
    rw.replace(node, rw.arrange(made, order, node))


_RULES: tuple[_Rule, ...] = (_Unary(), _Binary(), _Split(), _Slice(), _Join(), _Sum(), _Twice())
