"""Interactions that are left as they are written, since no form of theirs is cheaper.

What a pass rewrites it reports itself. These it would be silent about: the sum-square identity of a
factorization machine, cross layers with matrices, and gates over fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from ..ir.operators import moves
from ..ir.pattern import UNARY, is_op, parameter_name, shape_of
from ..ir.program import Program
from .sites import is_plain_linear
from .views import MOVES

_aten = torch.ops.aten
_SUMS = (_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default)


def sum_square_identities(program: Program) -> list[fx.Node]:
    """The differences ``(Σ x)² - Σ x²`` of factorization machines (Rendle, 2010)."""
    found = program.graph.find_nodes(op="call_function", target=_aten.sub.Tensor)
    return [node for node in found if _is_identity(node)]


def _is_identity(node: fx.Node) -> bool:
    left, right = (_summed_square(side) for side in node.args[:2])
    if left is None or right is None:
        return False
    return left[0] is right[0] and left[1] == right[1] and (left[2], right[2]) == (True, False)


def _summed_square(node: Any) -> tuple[Any, list[int], bool] | None:
    """What is squared and summed, over which dimensions, and whether it is summed first."""
    inner = _squared(node)
    first = inner is not None
    total = inner if first else node
    if not is_op(total, _aten.sum.dim_IntList):
        return None
    rank = len(shape_of(total.args[0]))
    dims = [dim % rank for dim in total.args[1]]
    source = total.args[0] if first else _squared(total.args[0])
    return None if source is None else (source, dims, first)


def _squared(node: Any) -> Any:
    """What a value is the square of."""
    if is_op(node, _aten.pow.Tensor_Scalar) and node.args[1] == 2:
        return node.args[0]
    if is_op(node, _aten.mul.Tensor) and node.args[0] is node.args[1]:
        return node.args[0]
    return None


def matrix_crosses(program: Program) -> list[fx.Node]:
    """The products ``x0 · (W x + b)`` of cross layers of DCN V2 (2008.13535), W of any rank."""
    found = program.graph.find_nodes(op="call_function", target=_aten.mul.Tensor)
    return [node for node in found if _is_cross(node)]


def _is_cross(node: fx.Node) -> bool:
    """Whether x0 times linears of x is added to x, which is x0 or came of such layers."""
    sums = {term for add in _sums_over(node) for term in _terms(add)}
    for left, right in (node.args, node.args[::-1]):
        if not isinstance(left, fx.Node) or _sizes(left) != _sizes(node):
            continue
        sources = {linear.args[0] for linear in _inside(right)}
        if any(x is left or _has_layer(x, left) for x in sources & sums):
            return True
    return False


def _has_layer(x: Any, first: fx.Node) -> bool:
    return any(is_op(term, _aten.mul.Tensor) and first in term.args for term in _terms(x))


def _inside(node: Any) -> Iterator[Any]:
    """The linears a value is made of by biases and further linears, the one behind it first."""
    if is_op(node, _aten.add.Tensor):
        sides = [side for side in node.args if parameter_name(side) is None]
        if len(sides) == 1:
            yield from _inside(sides[0])
    elif is_plain_linear(node):
        # One output is a cross layer with a vector, which collapse-crosses knows.
        if shape_of(node)[-1] != 1:
            yield node
        yield from _inside(node.args[0])


def _sums_over(node: fx.Node) -> Iterator[fx.Node]:
    """The sums a value is a term of."""
    for user in node.users:
        if is_op(user, _aten.add.Tensor):
            yield user
            yield from _sums_over(user)


def _terms(node: Any) -> Iterator[Any]:
    if is_op(node, _aten.add.Tensor):
        yield node
        for term in node.args:
            yield from _terms(term)
    else:
        yield node


def field_gates(program: Program) -> list[fx.Node]:
    """The products of rows ``[B, n, d]`` and a net of their sums or means, as in SENet."""
    found = program.graph.find_nodes(op="call_function", target=_aten.mul.Tensor)
    return [node for node in found if _is_gated(node)]


def _is_gated(node: fx.Node) -> bool:
    for rows, gate in (node.args, node.args[::-1]):
        if not isinstance(rows, fx.Node) or not isinstance(gate, fx.Node):
            continue
        if len(_sizes(rows)) == 3 and _sizes(rows) == _sizes(node) and _sizes(gate)[-1] == "1":
            linears, pooled = _net(gate)
            if linears and is_op(pooled, *_SUMS) and pooled.args[0] is rows:
                return True
    return False


def _net(node: Any) -> tuple[int, Any]:
    """How many linears of one input a value is made of, and the input."""
    linears = 0
    while isinstance(node, fx.Node):
        if is_plain_linear(node):
            linears += 1
        elif node.target not in UNARY and not moves(node, MOVES):
            break
        if not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    return linears, node


def _sizes(node: fx.Node) -> list[str]:
    return [str(size) for size in shape_of(node)]
