"""Attention, however it is written: which rows meet which, and what is done to their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.pattern import argument, is_op, parameter_name, shape_of
from ..ir.program import Program
from .sites import is_plain_linear
from .views import BATCHES, Source, ViewTracer, arrangement

_aten = torch.ops.aten
_PRODUCTS = (_aten.matmul.default, _aten.bmm.default)
_SDPA = _aten.scaled_dot_product_attention.default
_SOFTMAX = (_aten.softmax.int, _aten._softmax.default)
#: A masked score is filled with no more than this, so that its weight is 0 in fp32.
_LOWEST = -1e4


@dataclass(frozen=True)
class Attention:
    """``softmax(scale · query keyᵀ, masked) value``.

    Attributes:
        output: The node that gives the result, ``[…, Tq, d]``.
        query: ``[…, Tq, d]``.
        key: ``[…, Tk, d]``, or with its last two dimensions exchanged.
        turned: Whether they are.
        value: ``[…, Tk, d]``.
        scale: What the scores are multiplied by.
        masks: What else is done to the scores, in order: `masked_fill`, or `add` of a mask.
    """

    output: fx.Node
    query: fx.Node
    key: fx.Node
    turned: bool
    value: fx.Node
    scale: float
    masks: tuple[fx.Node, ...]


def attentions(program: Program) -> Iterator[Attention]:
    """Every attention of the program, in graph order."""
    for node in list(program.graph.nodes):
        found = None
        if is_op(node, _SDPA):
            found = _whole(node)
        elif is_op(node, *_PRODUCTS):
            found = _spelled(node, program)
        if found is not None:
            yield found


def _whole(node: fx.Node) -> Attention | None:
    query, key, value = node.args[:3]
    masked = argument(node, 3, "attn_mask") is not None or argument(node, 5, "is_causal", False)
    if masked or argument(node, 4, "dropout_p", 0.0) or node.kwargs.get("enable_gqa"):
        return None
    scale = argument(node, 6, "scale")
    if scale is None:
        scale = 1.0 / math.sqrt(shape_of(query)[-1])
    return Attention(node, query, key, False, value, float(scale), ())  # type: ignore[arg-type]


def _spelled(node: fx.Node, program: Program) -> Attention | None:
    softmax, value = node.args[:2]
    if not is_op(softmax, *_SOFTMAX):
        return None
    assert isinstance(softmax, fx.Node)
    assert isinstance(value, fx.Node)
    if softmax.args[1] not in (-1, len(shape_of(softmax)) - 1) or len(softmax.users) > 1:
        return None
    scale = 1.0
    masks: list[fx.Node] = []
    scores: Any = softmax.args[0]
    while isinstance(scores, fx.Node) and len(scores.users) == 1:
        factor = _factor(scores, program)
        if factor is not None:
            scale *= factor
        elif _is_mask(scores) and scale == 1.0:  # a mask that is scaled again would be another
            masks.insert(0, scores)
        else:
            before = scores if masks else _unviewed(scores, program)
            if before is scores:
                break
            scores = before
            continue
        scores = scores.args[0]
    if not is_op(scores, *_PRODUCTS) or len(scores.users) > 1:
        return None
    query, key = scores.args[:2]
    assert isinstance(query, fx.Node)
    assert isinstance(key, fx.Node)
    return Attention(node, query, key, True, value, scale, tuple(masks))


def _unviewed(scores: fx.Node, program: Program) -> fx.Node:
    """The scores before views that only spell their dimensions otherwise, as einsum adds them."""
    views = ViewTracer(program)
    source = views.source(scores)
    if source is None or any(len(view.users) > 1 for view in views.behind(scores)):
        return scores
    order, rows = source.order, [str(size) for size in shape_of(scores)[-2:]]
    same = rows == [str(size) for size in shape_of(source.base)[-2:]]
    return source.base if same and order == tuple(range(len(order or ()))) else scores


def _factor(node: fx.Node, program: Program) -> float | None:
    """The number a node multiplies its first argument by."""
    if not is_op(node, _aten.mul.Tensor, _aten.div.Tensor):
        return None
    other = node.args[1]
    name = parameter_name(other)
    if name is not None and program.tensor(name).numel() == 1:
        other = program.tensor(name).item()
    if not isinstance(other, (int, float)):
        return None
    return float(other) if is_op(node, _aten.mul.Tensor) else 1.0 / other


def _is_mask(node: fx.Node) -> bool:
    if is_op(node, _aten.masked_fill.Scalar):
        return float(node.args[2]) <= _LOWEST  # type: ignore[arg-type]
    return is_op(node, _aten.add.Tensor) and isinstance(node.args[1], fx.Node) and not node.kwargs


@dataclass(frozen=True)
class Heads:
    """The heads that a linear's output was cut into.

    Attributes:
        rows: What the linear reads: ``[B, T, K]``, or ``[B, K]`` where T is 1.
        linear: The linear.
        columns: Per head, the ``[d]`` outputs of the linear that are its.
        places: At each of `BATCHES`, the batch and the head of every leading position.
    """

    rows: fx.Node
    linear: fx.Node
    columns: tuple[Tensor, ...]
    places: tuple[tuple[tuple[int, int], ...], ...]


def heads_of(views: ViewTracer, node: fx.Node, *, turned: bool = False) -> Heads | None:
    """The heads of a query, key or value ``[…, T, d]``; None if it isn't made of a linear's."""
    source = views.source(node)
    if source is None or not is_plain_linear(source.base) or source.numbers[0].dim() < 3:
        return None
    linear = source.base
    rows, positions = _rows_of(views, linear.args[0])
    if rows is None:
        return None
    length = int(shape_of(rows)[1]) if len(shape_of(rows)) == 3 else 1
    width = int(shape_of(linear)[-1])
    found = []
    for at, numbers in enumerate(source.numbers):
        numbers = numbers.transpose(-1, -2) if turned else numbers
        cut = _cut(numbers.flatten(0, -3), width, positions[at], length)
        if cut is None:
            return None
        found.append(cut)
    (columns, first), (others, second) = found
    if len(columns) != len(others) or not all(map(torch.equal, columns, others)):
        return None
    return Heads(rows, linear, columns, (first, second))


def _rows_of(views: ViewTracer, node: Any) -> tuple[fx.Node | None, tuple[Tensor, ...]]:
    """A value ``[B, T, K]`` or ``[B, K]`` with the rows of ``node``, and where each is in it."""
    source = views.source(node)
    if source is None:
        return None, ()
    width = source.sizes[0][-1]
    whole = source.is_whole
    for rows in (source.base, node) if whole else (node,):
        shape = shape_of(rows)
        if len(shape) not in (2, 3) or isinstance(shape[0], int) or shape[-1] != width:
            continue
        numbers = source.numbers if rows is source.base else source.map(_in_place)
        places = tuple(n.reshape(-1, width) for n in numbers)
        if all(torch.equal(p, p[:, :1] + torch.arange(width)) for p in places):
            return rows, tuple(p[:, 0] // width for p in places)
    return None, ()


def _in_place(numbers: Tensor, batch: int) -> Tensor:
    return torch.arange(numbers.numel()).view(numbers.shape)


def _cut(
    numbers: Tensor, width: int, positions: Tensor, length: int
) -> tuple[tuple[Tensor, ...], tuple[tuple[int, int], ...]] | None:
    """Columns per head, and the batch and head of every leading position.

    Args:
        numbers: ``[M, T, d]`` elements of the linear.
        width: The linear's outputs.
        positions: Where each of the linear's rows is among ``[B, T]``.
        length: T.
    """
    if numbers.shape[1] != length:
        return None
    rows, columns = positions[numbers // width], numbers % width
    batches = rows[:, 0, 0] // length
    expected = batches[:, None] * length + torch.arange(length)
    if not torch.equal(rows, expected[..., None] + 0 * rows):
        return None
    if not torch.equal(columns, columns[:, :1] + 0 * columns):
        return None
    heads: list[list[Tensor]] = [[] for _ in range(int(batches.max()) + 1)]
    places = []
    for batch, own in zip(batches.tolist(), columns[:, 0], strict=True):
        places.append((batch, len(heads[batch])))
        heads[batch].append(own)
    first = heads[0]
    for other in heads[1:]:
        if len(other) != len(first) or not all(map(torch.equal, other, first)):
            return None
    return tuple(first), tuple(places)


def side_by_side(end: Source, heads: Heads, length: int, depth: int) -> tuple[int, ...] | None:
    """How a view of an attention's output is made of its heads side by side.

    Args:
        end: The view.
        heads: The queries' heads, in the order of the output's leading positions.
        length: Tq.
        depth: d.

    Returns:
        How to permute ``[B, Tq, heads · d]`` before a reshape; None if that doesn't give it.
    """
    count = len(heads.columns)
    found = []
    for numbers, places in zip(end.numbers, heads.places, strict=True):
        batches, head = torch.tensor(places)[numbers // (length * depth)].unbind(-1)
        row = batches * length + numbers // depth % length
        found.append((row * count + head) * depth + numbers % depth)
    return arrangement(found, [(batch, length, count * depth) for batch in BATCHES])
