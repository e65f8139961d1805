"""NaN in, NaN out, where a static range would make a number of it.

A code has no NaN: a row that isn't finite is rounded to codes of finite values, and its score looks
like any other. In floating point it would be NaN, so something must carry that past the codes. Zero
times a value is zero, or NaN where the value is NaN or infinite; that is added to the scores.

What is multiplied isn't what is quantized, which may be wide, but where it comes from: values that
a row's NaN must pass, such as the dense features, followed back through operators that keep NaN.
Lookups of tables and integers have none. Where an operator between the codes and the scores may
drop NaN (a `where`), it is added right behind the linear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx

from ..ir.operators import of_node
from ..ir.ops import DEQUANTIZE, QUANTIZE
from ..ir.pattern import is_op
from ..ir.rewrite import Rewriter
from ..ir.traits import NotFinite, OnRows

_aten = torch.ops.aten


def _nan_in(node: fx.Node) -> NotFinite:
    """What a node does to what isn't finite."""
    traits = of_node(node)
    return NotFinite.DROPPED if traits is None else traits.not_finite


def _looks_up(node: fx.Node) -> bool:
    traits = of_node(node)
    return traits is not None and traits.rows is OnRows.LOOKUP


@dataclass(frozen=True)
class _Origin:
    """Where what isn't finite in a value's row comes from.

    Attributes:
        nodes: Values, one of which isn't finite then.
        everywhere: Whether all of the row isn't finite then.
        behind: Where a single value has it from, if it makes none itself.
    """

    nodes: frozenset[fx.Node] = frozenset()
    everywhere: bool = True
    behind: frozenset[fx.Node] = frozenset()


def carry_nan(rw: Rewriter) -> int:
    """Lets rows that aren't finite score NaN in spite of static ranges.

    Returns:
        How many linears of static ranges there are that such a row may reach.
    """
    known: dict[fx.Node, _Origin] = {}
    for node in rw.program.graph.nodes:
        known[node] = _found(node, known)
    far: dict[int, set[fx.Node]] = {}
    count = 0
    for node in list(rw.program.graph.nodes):
        if node.target is not QUANTIZE.op:
            continue
        origin = _origin(node.args[0], known)
        if not origin.nodes:
            continue
        for linear in _readers(node):
            count += 1
            reached = _scores_behind(linear)
            if reached is None or not _same_rows(rw, origin.nodes, reached):
                _add_here(rw, linear, node.args[0])
                continue
            for place in reached:
                far.setdefault(place, set()).update(origin.nodes)
    for place, nodes in far.items():
        needed = {n for n in nodes if not known[n].behind or not known[n].behind <= nodes - {n}}
        _add_to_score(rw, place, needed)
    return count


def _readers(quantized: fx.Node) -> list[fx.Node]:
    """What computes with a quantized value: linears behind its decoding."""
    return [
        reader
        for user in quantized.users
        for reader in (user.users if user.target is DEQUANTIZE.op else (user,))
    ]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _origin(value: object, known: dict[fx.Node, _Origin]) -> _Origin:
    """Where NaN or infinity in a value's row may come from; nowhere, for what has none."""
    return known[value] if isinstance(value, fx.Node) else _Origin()


def _found(node: fx.Node, known: dict[fx.Node, _Origin]) -> _Origin:
    itself = _Origin(frozenset({node}), everywhere=False)
    if node.op == "placeholder":
        return itself if _is_float(node) else _Origin()
    if node.op != "call_function":
        return _Origin()
    if node.target is DEQUANTIZE.op or node.target is QUANTIZE.op:
        return _origin(node.args[0], known)
    if not _is_float(node) or _looks_up(node):
        return _Origin()
    does = _nan_in(node)
    if does is NotFinite.SPREAD:
        return _Origin(_origin(node.args[0], known).nodes)
    if does is NotFinite.MOVED:
        return _origin(node.args[0], known)
    if does in (NotFinite.PARTED, NotFinite.BOUNDED):
        before = _origin(node.args[0], known)
        return before if before.everywhere else replace(itself, behind=before.nodes)
    if does in (NotFinite.KEPT, NotFinite.MIXED):
        inputs = [_origin(one, known) for one in node.all_input_nodes]
        nodes = frozenset[fx.Node]().union(*(one.nodes for one in inputs))
        all_of_it = len(inputs) == 1 and inputs[0].everywhere
        return _Origin(nodes, everywhere=all_of_it or not nodes)
    return itself


def _scores_behind(linear: fx.Node) -> set[int] | None:
    """Which outputs a row of NaN behind a linear reaches; None if it may be dropped on the way."""
    reached: set[int] = set()
    pending, seen = [linear], {linear}
    while pending:
        node = pending.pop()
        for user in node.users:
            if user.op == "output":
                reached |= {i for i, one in enumerate(user.args[0]) if one is node}  # type: ignore[arg-type]
            elif _nan_in(user) is NotFinite.DROPPED and not is_op(user, QUANTIZE.op, DEQUANTIZE.op):
                return None
            elif user not in seen:
                seen.add(user)
                pending.append(user)
    return reached


def _same_rows(rw: Rewriter, nodes: Iterable[fx.Node], places: Iterable[int]) -> bool:
    """Whether values and outputs have a row each for the same rows of a batch."""
    scores = [_score(rw, place) for place in places]
    return len({str(one.meta["val"].shape[0]) for one in (*nodes, *scores)}) == 1


def _score(rw: Rewriter, place: int) -> fx.Node:
    (output,) = rw.program.graph.find_nodes(op="output")
    score = output.args[0][place]
    assert isinstance(score, fx.Node)
    return score


def _add_here(rw: Rewriter, linear: fx.Node, quantized: object) -> None:
    """Adds zero times what is quantized to a linear's result, row by row."""
    assert isinstance(quantized, fx.Node)
    users = list(linear.users)
    with rw.before(linear.next):
        none = rw.emit(_aten.mul.Tensor, quantized, 0.0, like=linear)
        row = rw.emit(_aten.sum.dim_IntList, none, [-1], True, like=linear)
        total = rw.emit(_aten.add.Tensor, linear, row, like=linear)
    for user in users:
        user.replace_input_with(linear, total)


def _add_to_score(rw: Rewriter, place: int, nodes: Iterable[fx.Node]) -> None:
    """Adds zero times some values to an output, where it still has few shapes to fit."""
    order = {node: index for index, node in enumerate(rw.program.graph.nodes)}
    score = _score(rw, place)
    while _nan_in(score) in (NotFinite.MOVED, NotFinite.BOUNDED):
        before = score.args[0]
        if len(score.users) != 1 or not isinstance(before, fx.Node):
            break
        if before.op != "call_function" or before.meta["val"].dim() != 2:
            break
        score = before
    users, rank = list(score.users), score.meta["val"].dim()
    with rw.before(score.next):
        total = score
        for node in sorted(nodes, key=order.__getitem__):
            row = rw.emit(_aten.mul.Tensor, node, 0.0, like=score)
            inner = list(range(1, node.meta["val"].dim()))
            if inner:
                row = rw.emit(_aten.sum.dim_IntList, row, inner, len(inner) == rank - 1, like=score)
            if row.meta["val"].dim() != rank:
                row = rw.emit(_aten.reshape.default, row, [-1, *[1] * (rank - 1)], like=score)
            total = rw.emit(_aten.add.Tensor, total, row, like=score)
    for user in users:
        user.replace_input_with(score, total)
