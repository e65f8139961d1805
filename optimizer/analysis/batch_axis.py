"""Where the rows of a batch are in every value of a graph, as far as they can be followed.

A value that holds a row each at index 0, 1, … of one dimension, in blocks of ``inner``, computes
every row by itself; what the same operators give for fewer rows is those rows. Where a value mixes
rows, or moves them where they can't be followed, it is *lost*, and so is what depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import traits_of
from ..ir.program import Program
from ..ir.torchapi import OpOverload
from ..ir.traits import Move, OnRows

_aten = torch.ops.aten


@dataclass(frozen=True)
class Place:
    """Where the rows are.

    Attributes:
        axis: The dimension.
        inner: How many neighbours along it belong to one row.
    """

    axis: int
    inner: int = 1

    def moved(self, by: int) -> Place:
        """The same, ``by`` dimensions further back."""
        return replace(self, axis=self.axis + by)


#: As captured: row after row along the first dimension.
FIRST = Place(0)


@dataclass(frozen=True)
class Lost:
    """Rows that couldn't be followed.

    Attributes:
        reason: Why, in a few words.
        node: At which node first.
    """

    reason: str
    node: fx.Node


#: What is known of a value: where its rows are, that it holds none, or that they were lost. Of an
#: operator with several results, one of these per result.
Found = Place | None | Lost | tuple["Found", ...]


class _Mixed(Exception):  # noqa: N818 - it is a finding, not an error
    """Why an operator's rows can't be followed."""


def row_places(program: Program) -> dict[fx.Node, Found]:
    """For every node where its rows are.

    Inputs of one row for all candidates hold no rows: they are the same for each.
    """
    symbol = batch_symbol(program)
    found: dict[fx.Node, Found] = {}
    follow = _Follow(found, symbol)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            found[node] = FIRST if symbol and _sizes(node)[:1] == [symbol] else None
        elif node.op == "call_function":
            lost = next((f for n in node.all_input_nodes if isinstance(f := found[n], Lost)), None)
            found[node] = lost or follow(node)
        else:
            found[node] = None
    return found


def batch_symbol(program: Program) -> str:
    """How the number of rows is written in shapes; empty where no input has rows."""
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        if value.dim() and not isinstance(value.shape[0], int):
            return str(value.shape[0])
    return ""


def _sizes(node: fx.Node) -> list[str]:
    return [str(size) for size in node.meta["val"].shape]


class _Follow:
    """Follows rows through one operator after another."""

    def __init__(self, found: dict[fx.Node, Found], symbol: str) -> None:
        self._found = found
        self._symbol = symbol

    def __call__(self, node: fx.Node) -> Found:
        value = node.meta["val"]
        if not isinstance(value, (Tensor, tuple, list)):
            return None  # a size
        traits = traits_of(node.target)
        rule = _MOVED.get(traits.move) if traits.rows is OnRows.MOVED else _RULES.get(traits.rows)
        held = [self._found[n] for n in node.all_input_nodes]
        if not any(isinstance(f, (Place, tuple)) for f in held) and not self._grows(value):
            return None  # it holds no rows and makes none
        if rule is None:
            return Lost("it isn't known to keep rows apart", node)
        try:
            return rule(node, self)
        except _Mixed as mixed:
            return Lost(str(mixed), node)

    def of(self, node: Any) -> Place | None:
        """Where the rows of an operand are."""
        found = self._found.get(node) if isinstance(node, fx.Node) else None
        assert not isinstance(found, (Lost, tuple))
        return found

    def several(self, node: Any) -> tuple[Found, ...]:
        """Where the rows of each result of an operand are."""
        found = self._found[node]
        assert isinstance(found, tuple)
        return found

    def batch_axis(self, value: Tensor) -> int | None:
        """The dimension that is as long as there are rows."""
        axes = [axis for axis, size in enumerate(value.shape) if str(size) == self._symbol]
        return axes[0] if len(axes) == 1 else None

    def inner(self, size: Any) -> int | None:
        """How many entries a row has along a dimension; None if it isn't a whole number."""
        if isinstance(size, int) or not self._symbol:
            return None
        for symbol in size.node.expr.free_symbols:
            ratio = size.node.expr / symbol
            if str(symbol) == self._symbol and ratio.is_Integer:
                return int(ratio)
        return None

    def _grows(self, value: Any) -> bool:
        parts = value if isinstance(value, (tuple, list)) else (value,)
        return any(
            not isinstance(size, int) for v in parts if isinstance(v, Tensor) for size in v.shape
        )


Rule = Callable[[fx.Node, _Follow], Found]


def argument(node: fx.Node, name: str) -> Any:
    """An argument by the name it has in the operator's schema, its default where it isn't given."""
    assert isinstance(node.target, OpOverload)
    for index, one in enumerate(node.target._schema.arguments):
        if one.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, one.default_value if one.has_default_value() else None)
    return None


def rank_of(node: Any) -> int:
    """How many dimensions a node's value has."""
    return int(node.meta["val"].dim())


def _tensors(values: Any) -> Iterator[fx.Node]:
    """The nodes among an operator's arguments that hold tensors."""
    if isinstance(values, fx.Node):
        if isinstance(values.meta.get("val"), Tensor):
            yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Mixed(otherwise)


def _agreed(nodes: Sequence[fx.Node], rank: int, follow: _Follow) -> Place:
    """The one place of operands that are broadcast to ``rank`` dimensions."""
    places = {p.moved(rank - rank_of(n)) for n in nodes if (p := follow.of(n)) is not None}
    _require(len(places) == 1, "it combines rows with other rows")
    (place,) = places
    for node in nodes:
        axis = place.axis - (rank - rank_of(node))
        if follow.of(node) is None and axis >= 0:
            size = node.meta["val"].shape[axis]
            _require(isinstance(size, int) and size == 1, "it has an entry per row of its own")
    return place


def _pointwise(node: fx.Node, follow: _Follow) -> Place:
    operands = list(_tensors((node.args, tuple(node.kwargs.values()))))
    return _agreed(operands, rank_of(node), follow)


def _same(node: fx.Node, follow: _Follow) -> Found:
    return follow.of(node.args[0])


def _dims(node: fx.Node, name: str = "dim") -> list[int]:
    """The dimensions an operator works along, counted from the front; all where none is given."""
    rank = rank_of(node.args[0])
    given = argument(node, name)
    if given is None or given == []:
        return list(range(rank))
    return [d % max(rank, 1) for d in (given if isinstance(given, (list, tuple)) else [given])]


def _along(node: fx.Node, follow: _Follow) -> Found:
    """Reductions, softmaxes, scans and sorts: along dimensions other than the rows'."""
    place = follow.of(node.args[0])
    assert place is not None
    dims = _dims(node)
    _require(place.axis not in dims, "it works across rows")
    value = node.meta["val"]
    values = value if isinstance(value, (tuple, list)) else (value,)
    gone = sum(d < place.axis for d in dims)
    shifts = [-gone if v.dim() < rank_of(node.args[0]) else 0 for v in values]
    moved = tuple(place.moved(shift) for shift in shifts)
    return moved if isinstance(value, (tuple, list)) else moved[0]


def _reshape(node: fx.Node, follow: _Follow) -> Place:
    source, value = node.args[0], node.meta["val"]
    place = follow.of(source)
    assert place is not None
    assert isinstance(source, fx.Node)
    before = source.meta["val"].shape[: place.axis]
    dynamic = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
    _require(len(dynamic) == 1, "its sizes depend on the batch in two dimensions")
    axis = dynamic[0]
    inner = follow.inner(value.shape[axis])
    fits = inner is not None and all(isinstance(s, int) for s in before)
    _require(fits and prod(before) == prod(value.shape[:axis]), "it moves rows among others")
    assert inner is not None
    return Place(axis, inner)


def _transpose(node: fx.Node, follow: _Follow) -> Place:
    place = follow.of(node.args[0])
    assert place is not None
    if node.target is _aten.permute.default:
        return replace(place, axis=_dims(node, "dims").index(place.axis))
    rank = rank_of(node.args[0])
    swapped: tuple[Any, ...] = (0, 1) if node.target is _aten.t.default else node.args[1:3]
    left, right = (dim % rank for dim in swapped)
    return replace(place, axis={left: right, right: left}.get(place.axis, place.axis))


def _unsqueeze(node: fx.Node, follow: _Follow) -> Place:
    place = follow.of(node.args[0])
    assert place is not None
    dim = argument(node, "dim") % rank_of(node)
    return place.moved(1 if dim <= place.axis else 0)


def squeezed(node: fx.Node) -> list[int]:
    """The dimensions a squeeze removes."""
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    return [d for d in _dims(node) if isinstance(shape[d], int) and shape[d] == 1]


def _squeeze(node: fx.Node, follow: _Follow) -> Place:
    place = follow.of(node.args[0])
    assert place is not None
    return place.moved(-sum(d < place.axis for d in squeezed(node)))


def _select(node: fx.Node, follow: _Follow) -> Place:
    """One entry, or several, of another dimension than the rows'."""
    place = follow.of(node.args[0])
    _require(place is not None, "it picks by row")
    assert place is not None
    others = [n for n in node.all_input_nodes if n is not node.args[0]]
    _require(all(follow.of(n) is None for n in others), "it picks by row")
    (dim,) = _dims(node)
    _require(dim != place.axis, "it picks rows")
    gone = rank_of(node) < rank_of(node.args[0]) and dim < place.axis
    return place.moved(-1 if gone else 0)


def _gather(node: fx.Node, follow: _Follow) -> Place:
    (dim,) = _dims(node)
    place = _agreed(list(_tensors(node.args)), rank_of(node), follow)
    _require(dim != place.axis, "it picks rows")
    return place


def _index(node: fx.Node, follow: _Follow) -> Place:
    source, indices = node.args[0], node.args[1]
    assert isinstance(indices, (list, tuple))
    place = follow.of(source)
    first = place == FIRST and len(indices) > 0 and indices[0] is None
    constant = all(follow.of(index) is None for index in indices)
    _require(first and constant, "it picks rows")
    assert place is not None
    return place


def _cat(node: fx.Node, follow: _Follow) -> Place:
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    places = {follow.of(part) for part in parts}
    _require(len(places) == 1, "it joins values with rows and without")
    (place,) = places
    assert place is not None
    stacks = node.target is _aten.stack.default
    dim = int(argument(node, "dim")) % rank_of(node)
    if stacks:
        return place.moved(1 if dim <= place.axis else 0)
    _require(dim != place.axis, "it joins rows to other rows")
    return place


def _split(node: fx.Node, follow: _Follow) -> tuple[Found, ...]:
    place = follow.of(node.args[0])
    assert place is not None
    (dim,) = _dims(node)
    _require(dim != place.axis, "it splits the rows")
    gone = node.target is _aten.unbind.int and dim < place.axis
    return (place.moved(-1 if gone else 0),) * len(node.meta["val"])


def _getitem(node: fx.Node, follow: _Follow) -> Found:
    index: Any = node.args[1]
    found: Found = follow.several(node.args[0])[index]
    return found


def _expand(node: fx.Node, follow: _Follow) -> Place:
    place = follow.of(node.args[0])
    if place is not None:
        return place.moved(rank_of(node) - rank_of(node.args[0]))
    return _made(node, follow)


def _made(node: fx.Node, follow: _Follow) -> Place:
    """What is made as long as there are rows, all of them alike."""
    axis = follow.batch_axis(node.meta["val"])
    _require(axis is not None, "its size depends on the batch")
    assert axis is not None
    return Place(axis)


def _linear(node: fx.Node, follow: _Follow) -> Place:
    place = follow.of(node.args[0])
    others = [n for n in node.all_input_nodes if n is not node.args[0]]
    apart = place is not None and all(follow.of(n) is None for n in others)
    _require(apart, "its weight depends on the row")
    assert place is not None
    _require(place.axis < rank_of(node.args[0]) - 1, "it sums over rows")
    return place


def _embedding(node: fx.Node, follow: _Follow) -> Found:
    tables = 1 if node.target is _aten.embedding.default else 3
    _require(all(follow.of(n) is None for n in node.args[:tables]), "its table depends on the row")
    return follow.of(node.args[tables])


def _matmul(node: fx.Node, follow: _Follow) -> Place:
    """Rows in a dimension both operands are batched by, or in the left one's rows."""
    left, right = (n for n in node.args[-2:])
    ranks = rank_of(left), rank_of(right)
    _require(ranks[0] >= 2, "its left operand is a vector")
    place = follow.of(left)
    if ranks[1] == 1:
        _require(follow.of(right) is None and place is not None, "it sums over rows")
        assert place is not None
        _require(place.axis < ranks[0] - 1, "it sums over rows")
        return place
    rank = max(ranks)
    if follow.of(right) is None:
        assert place is not None
        moved = place.moved(rank - ranks[0])
        _require(moved.axis < rank - 1, "it sums over rows")
        if moved.axis < rank - 2:
            _agreed([left, right], rank, follow)  # type: ignore[list-item]
        return moved
    agreed = _agreed([left, right], rank, follow)  # type: ignore[list-item]
    _require(agreed.axis < rank - 2, "it multiplies rows with other rows")
    return agreed


def _addmm(node: fx.Node, follow: _Follow) -> Place:
    place = _matmul(node, follow)
    _require(follow.of(node.args[0]) is None, "it combines rows with other rows")
    return place


def _attention(node: fx.Node, follow: _Follow) -> Place:
    operands = list(_tensors(node.args[:3]))
    mask = argument(node, "attn_mask")
    place = _agreed(operands, rank_of(node), follow)
    if isinstance(mask, fx.Node):
        place = _agreed([*operands, mask], rank_of(node), follow)
    _require(place.axis < rank_of(node) - 2, "it attends to other rows")
    return place


def _norm(node: fx.Node, follow: _Follow) -> Found:
    place = _linear(node, follow)
    count = len(argument(node, "normalized_shape"))
    _require(place.axis < rank_of(node.args[0]) - count, "it normalizes across rows")
    value = node.meta["val"]
    return (place,) * len(value) if isinstance(value, (tuple, list)) else place


def _by_first(node: fx.Node, follow: _Follow) -> Found:
    """Operators that take the rows along the first dimension, and parameters besides."""
    place = follow.of(node.args[0])
    others = [n for n in node.all_input_nodes if n is not node.args[0]]
    apart = place is not None and place.axis == 0 and all(follow.of(n) is None for n in others)
    _require(apart, "it mixes rows")
    value = node.meta["val"]
    return (place,) * len(value) if isinstance(value, (tuple, list)) else place


def _pad(node: fx.Node, follow: _Follow) -> Found:
    place = follow.of(node.args[0])
    assert place is not None
    padded = len(node.args[1]) // 2  # type: ignore[arg-type]
    _require(place.axis < rank_of(node) - padded, "it adds rows")
    return place


def _matrices(node: fx.Node, follow: _Follow) -> Found:
    place = follow.of(node.args[0])
    assert place is not None
    _require(place.axis < rank_of(node) - 2, "it picks by row")
    return place


def _recurrent(node: fx.Node, follow: _Follow) -> tuple[Found, ...]:
    """GRU and LSTM over whole sequences; the states have the rows in their second dimension."""
    states = node.args[1]
    states = states if isinstance(states, (list, tuple)) else [states]
    first = 0 if argument(node, "batch_first") else 1
    place = follow.of(node.args[0])
    known = place == Place(first) and all(follow.of(s) in (Place(1), None) for s in states)
    _require(known, "its sequence or its states mix rows")
    return (place, *(Place(1) for _ in states))


def _broadcast(node: fx.Node, follow: _Follow) -> Place:
    return FIRST


_RULES: dict[OnRows, Rule] = {
    OnRows.APART: _pointwise,
    OnRows.SAME: _same,
    OnRows.ALONG: _along,
    OnRows.LINEAR: _linear,
    OnRows.PRODUCT: _matmul,
    OnRows.ADDED_PRODUCT: _addmm,
    OnRows.LOOKUP: _embedding,
    OnRows.GATHER: _gather,
    OnRows.INDEX: _index,
    OnRows.ATTENTION: _attention,
    OnRows.NORM: _norm,
    OnRows.FIRST: _by_first,
    OnRows.RECURRENT: _recurrent,
    OnRows.PAD: _pad,
    OnRows.MATRICES: _matrices,
    OnRows.MADE: _made,
    OnRows.BROADCAST: _broadcast,
}
_MOVED: dict[Move, Rule] = {
    Move.COPY: _same,
    Move.CAST: _same,
    Move.RESHAPE: _reshape,
    Move.UNSQUEEZE: _unsqueeze,
    Move.SQUEEZE: _squeeze,
    Move.TRANSPOSE: _transpose,
    Move.EXPAND: _expand,
    Move.SELECT: _select,
    Move.SLICE: _select,
    Move.PICK: _select,
    Move.SPLIT: _split,
    Move.ITEM: _getitem,
    Move.JOIN: _cat,
}
