"""What the rows of a graph's values are made of: rows of tables, bags, dense features, products.

A value ``[B, ...]`` is traced to the vectors that lie one after the other in a row of it, through
views, slices, concatenations, sums and weights, down to tables, ids and dense values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import onnx_ir as ir

from .ids import Column, columns_of
from .values import (
    VIEWS,
    before,
    dims,
    fill,
    first_input,
    first_of,
    integers,
    is_table,
    joins_columns,
    made_by,
    number,
    one_place,
    rank,
    unchecked,
    within,
)


@dataclass(frozen=True)
class Vector:
    """A vector a row: a piece of a dense value, or the weighted sum of some rows of a table.

    Attributes:
        source: The dense value ``[B, width]`` or ``[B, n, width]``, or the table ``[R, width]``.
        width: Of the vector.
        index: Which piece of the dense value it is.
        ids: Which rows of the table, neighbouring columns of one matrix; empty for a dense value.
        scales: ``[R, 2]`` scale and bias of each row, if the table holds codes: float32 for codes
            of 8 bits, float16 for codes of 4 bits.
        weights: Of each id, neighbouring columns as well, or empty.
        factor: Of the sum.
        divisor: ``[B, 1]``, what the sum is divided by.
        offsets: ``[B]`` or ``[B + 1]``, where each row's ids begin in a list of ids, which is the
            one column of ``ids``; None where each row of the matrix has its own.
        has_end: Whether the last of the offsets is where the last row's ids end.
    """

    source: ir.Value
    width: int
    index: int = 0
    ids: tuple[Column, ...] = ()
    scales: ir.Value | None = None
    weights: tuple[Column, ...] = ()
    factor: float = 1.0
    divisor: ir.Value | None = None
    offsets: ir.Value | None = None
    has_end: bool = False

    @property
    def is_lookup(self) -> bool:
        """Whether it comes from a table."""
        return bool(self.ids)

    @property
    def read(self) -> tuple[ir.Value | None, ...]:
        """The values that are read to make it."""
        columns = (one.matrix for one in (*self.ids, *self.weights))
        return self.source, self.scales, self.divisor, self.offsets, *columns

    def continued_by(self, other: Vector) -> bool:
        """Whether the other is the next piece, or the bag of the next columns, of the same."""
        same = replace(other, index=self.index, ids=self.ids, weights=self.weights) == self
        if not same or not self.is_lookup or not other.is_lookup:
            return same and not other.is_lookup and other.index == self.index + 1
        if (
            self.offsets
            or not self.ids[-1].precedes(other.ids[0])
            or bool(self.weights) != bool(other.weights)
        ):
            return False
        return not self.weights or self.weights[-1].precedes(other.weights[0])


@dataclass(frozen=True)
class Products:
    """Products of pairs of vectors of one width: dot products, or elementwise ones."""

    vectors: tuple[Vector, ...]
    pairs: tuple[tuple[int, int], ...]
    elementwise: bool = False

    @property
    def width(self) -> int:
        """How many numbers they are."""
        return len(self.pairs) * (self.vectors[0].width if self.elementwise else 1)


Row = tuple[Vector | Products, ...]


def vectors_of(row: Row) -> Iterator[Vector]:
    """All vectors that are read to make a row."""
    for part in row:
        if isinstance(part, Products):
            yield from part.vectors
        else:
            yield part


class Tracer:
    """Traces values, each once.

    Args:
        opaque: Lookups whose rows are made once; to what uses them they are dense values.

    Attributes:
        lookups: The rows of values that are nothing but rows of a table.
    """

    def __init__(self, opaque: frozenset[ir.Value] = frozenset()) -> None:
        self.lookups: dict[ir.Value, tuple[Vector, ...]] = {}
        self._opaque = opaque
        self._known: dict[ir.Value, Row | None] = {}

    def row(self, value: ir.Value) -> Row | None:
        """The parts of a row of a value that is used, in order; None if it isn't made of such."""
        return None if value in self._opaque else self.made(value)

    def made(self, value: ir.Value) -> Row | None:
        """The parts of a row of a value, opaque or not."""
        if value not in self._known:
            node = value.producer()
            make = None if node is None or node.domain else _MAKERS.get(node.op_type)
            if value.dtype != ir.DataType.FLOAT and make not in _MOVERS:
                make = None
            assert node is not None or make is None
            found = None if node is None or make is None else make(self, node, value)
            self._known[value] = found if found is not None and _fits(found, value) else None
        return self._known[value]

    def _gather(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Rows of a table, or one place of the second dimension."""
        data, ids = node.inputs
        assert data is not None
        tables = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        if node.attributes.get_int("axis", 0) == 0 and any(is_table(data, one) for one in tables):
            return self._lookup(value, data, None, ids)
        place = integers(ids)
        if node.attributes.get_int("axis", 0) != 1 or place is None or rank(ids) != 0:
            return None
        return self._cut(data, *one_place(place[0], data))

    def _lookup(
        self, value: ir.Value, table: ir.Value, scales: ir.Value | None, ids: ir.Value | None
    ) -> Row | None:
        columns = None if ids is None else columns_of(ids, dims(table)[0])
        if columns is None:
            return None
        width = dims(table)[1]
        if scales is not None and scales.dtype == ir.DataType.FLOAT16:
            width *= 2  # two codes a byte
        row = tuple(Vector(table, width, ids=(one,), scales=scales) for one in columns)
        if value.dtype == ir.DataType.FLOAT:
            self.lookups[value] = row
        return row

    def _cast(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Rows of a table of halves, wherever they were moved before."""
        source = first_input(node)
        row = self.row(source) if source.dtype == ir.DataType.FLOAT16 else None
        vectors = None if row is None else _lookups(row)
        if vectors:
            self.lookups[value] = tuple(vectors)
        return row

    def _add(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Rows of a table of codes, if its ids aren't flattened."""
        found = _rowwise4(node)
        if found is not None:
            return self._lookup(value, *found)
        found = _rowwise(node)
        return None if found is None or _unflattened(found[2]) else self._lookup(value, *found)

    def _view(self, node: ir.Node, value: ir.Value) -> Row | None:
        """The same parts in other dimensions; or rows of a table of codes, whose ids were flat."""
        source = first_input(node)
        node_before = source.producer()
        if node_before is None or node_before.op_type != "Add":
            return self.row(source)
        found = _rowwise(node_before)
        flat = None if found is None else _unflattened(found[2])
        if found is None or flat is None:
            return self.row(source)
        return self._lookup(value, found[0], found[1], flat)

    def _slice(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Some places of the second dimension."""
        bounds = [integers(one) for one in node.inputs[1:]]
        if len(bounds) < 3 or any(bound is None or len(bound) != 1 for bound in bounds):
            return None
        start, end, axis, *step = (bound[0] for bound in bounds if bound is not None)
        return self._cut(first_input(node), start, end) if axis == 1 and step in ([], [1]) else None

    def _cut(self, source: ir.Value, start: int, end: int) -> Row | None:
        row, sizes = self.row(source), dims(source)
        if row is None or len(sizes) < 2:
            return None
        bounds = within(start, end, sizes[1])
        if bounds is None:
            return None
        ends = [0]
        for part in row:
            ends.append(ends[-1] + part.width)
        first, last = (bound * prod(sizes[2:]) for bound in bounds)
        if first not in ends or last not in ends:
            return None
        return row[ends.index(first) : ends.index(last)]

    def _concat(self, node: ir.Node, value: ir.Value) -> Row | None:
        """The parts of all inputs; an input that isn't made of such is a dense value."""
        if not joins_columns(node, value) or rank(value) > 3:
            return None
        parts: list[Vector | Products] = []
        for source in node.inputs:
            assert source is not None
            row = self.row(source)
            if row is None or (_has_products(row) and _has_products(parts)):
                row = _dense(source)
            if row is None:
                return None
            parts += row
        return tuple(parts)

    def _reduce(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Sums or means of neighbouring vectors: bags."""
        source = first_input(node)
        axes = integers(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            axes = list(node.attributes.get_ints("axes", ()))
        row, sizes = self.row(source), dims(source)
        if row is None or len(axes) != 1 or not sizes:
            return None
        size = _bag_size(row, sizes, axes[0] % len(sizes))
        if size is None:
            return None
        bags: list[Vector] = []
        for start in range(0, len(row), size):
            bag = _bag(row[start : start + size])
            if bag is None:
                return None
            bags.append(bag)
        return _scaled(bags, 1.0 if node.op_type == "ReduceSum" else 1.0 / size)

    def _multiply(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Pairs of vectors, lookups times a constant, or each times a weight of its own."""
        picked = [self._picked(one) for one in node.inputs]
        if all(picked) and [dims(one) for one in node.inputs] == [dims(value)] * 2:
            vectors = tuple(dict.fromkeys(one for row in picked for one in row))
            places = {one: place for place, one in enumerate(vectors)}
            left, right = ([places[one] for one in row] for row in picked)
            return (Products(vectors, tuple(zip(left, right, strict=True)), elementwise=True),)
        for source, other in (node.inputs, node.inputs[::-1]):
            assert source is not None
            assert other is not None
            row, constant = self.row(source), number(other)
            if row is None:
                continue
            return _weighted(row, source, other) if constant is None else _scaled(row, constant)
        return None

    def _picked(self, value: ir.Value | None) -> tuple[Vector, ...]:
        """The vectors that a list of places picks; empty if none does."""
        node = made_by(value, "Gather")
        places = None if node is None else integers(node.inputs[1])
        if node is None or places is None or rank(node.inputs[1]) != 1 or rank(value) != 3:
            return ()
        vectors = self._vectors(first_input(node))
        if node.attributes.get_int("axis", 0) != 1 or not vectors:
            return ()
        return tuple(vectors[place] for place in places)

    def _vectors(self, source: ir.Value) -> tuple[Vector, ...]:
        """The vectors that ``[B, n, width]`` is made of, n of them; empty if they lie otherwise."""
        row, sizes = self.row(source) or _dense(source) or (), dims(source)
        vectors = tuple(part for part in row if isinstance(part, Vector))
        lie_so = len(sizes) == 3 and all(one.width == sizes[2] for one in vectors)
        return vectors if lie_so and len(vectors) == len(row) else ()

    def _divide(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Lookups over a constant, or all over one number a row."""
        source, other = node.inputs
        assert source is not None
        assert other is not None
        row, constant = self.row(source), number(other)
        if row is None or constant is not None:
            return None if row is None or not constant else _scaled(row, 1.0 / constant)
        vectors = _lookups(row)
        single = other.dtype == ir.DataType.FLOAT and dims(other)[1:] == [1] * (rank(source) - 1)
        free = all(one.divisor is None for one in vectors or ())
        if vectors is None or not single or not free or other.const_value is not None:
            return None
        return tuple(replace(one, divisor=other) for one in vectors)

    def _scatter(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Rows added up by bags that offsets cut from a list."""
        found = _bags_by_offsets(node)
        vectors = None if found is None else _lookups(self.row(found[0]) or ())
        if found is None or not vectors or len(vectors) != 1:
            return None
        (vector,) = vectors
        if len(vector.ids) != 1 or vector.divisor is not None or rank(vector.ids[0].matrix) != 1:
            return None
        return (replace(vector, offsets=found[1], has_end=found[2]),)

    def _transpose(self, node: ir.Node, value: ir.Value) -> Row | None:
        """Dot products of pairs."""
        found = _dot_interaction(node)
        if found is None:
            return None
        source, pairs = found
        vectors = self._vectors(source)
        if not vectors:
            return None
        return (Products(vectors, pairs),)


#: What only moves rows, and so may come before a table's halves become floats.
_MOVERS = (Tracer._concat, Tracer._gather, Tracer._slice, Tracer._view)
#: What makes vectors, by operator.
_MAKERS: dict[str, Callable[[Tracer, ir.Node, ir.Value], Row | None]] = {
    "Add": Tracer._add,
    "Cast": Tracer._cast,
    "Concat": Tracer._concat,
    "Div": Tracer._divide,
    "Gather": Tracer._gather,
    "Mul": Tracer._multiply,
    "ReduceMean": Tracer._reduce,
    "ReduceSum": Tracer._reduce,
    "ScatterND": Tracer._scatter,
    "Slice": Tracer._slice,
    "Transpose": Tracer._transpose,
    **dict.fromkeys(VIEWS, Tracer._view),
}


def _fits(row: Row, value: ir.Value) -> bool:
    """Whether the value holds just the parts of a row, for as many rows as before."""
    sizes = dims(value)
    known = bool(sizes) and min(sizes[1:], default=1) > 0
    if not known or prod(sizes[1:]) != sum(part.width for part in row):
        return False
    return all(_has_rows_of(one, value) for one in vectors_of(row))


def _has_rows_of(vector: Vector, value: ir.Value) -> bool:
    """Whether all that is read for a vector has a row for each row of the value.

    A request's user has one, which ONNX broadcasts to all candidates and the operator doesn't.
    """
    ids = () if vector.offsets is not None else vector.ids
    read = [one.matrix for one in (*ids, *vector.weights)]
    read += [] if vector.divisor is None else [vector.divisor]
    read += [] if vector.is_lookup else [vector.source]
    return all((dims(one)[0] == 1) == (dims(value)[0] == 1) for one in read)


def _has_products(parts: Sequence[Vector | Products]) -> bool:
    return any(isinstance(part, Products) for part in parts)


def _lookups(row: Sequence[Vector | Products]) -> list[Vector] | None:
    """The parts, if all of them are lookups."""
    vectors = [part for part in row if isinstance(part, Vector) and part.is_lookup]
    return vectors if len(vectors) == len(row) else None


def _dense(value: ir.Value) -> Row | None:
    sizes = dims(value)
    if value.dtype != ir.DataType.FLOAT or len(sizes) not in (2, 3) or min(sizes[1:]) < 1:
        return None
    if value.const_value is not None:
        return None
    count = sizes[1] if len(sizes) == 3 else 1
    return tuple(Vector(value, sizes[-1], index) for index in range(count))


def _bag_size(row: Row, sizes: Sequence[int], axis: int) -> int | None:
    """How many neighbouring vectors the reduction of an axis adds up."""
    if len(sizes) > 2 and axis == len(sizes) - 2 and all(p.width == sizes[-1] for p in row):
        return sizes[axis]
    if len(sizes) == 2 and axis == 1 and all(part.width == 1 for part in row):
        return sizes[axis]
    return None


def _bag(parts: Row) -> Vector | None:
    """The sum of lookups of neighbouring columns in one table."""
    vectors = _lookups(parts)
    if vectors is None or not all(a.continued_by(b) for a, b in pairwise(vectors)):
        return None
    return replace(
        vectors[0],
        ids=tuple(one for vector in vectors for one in vector.ids),
        weights=tuple(one for vector in vectors for one in vector.weights),
    )


def _scaled(row: Sequence[Vector | Products], factor: float) -> Row | None:
    vectors = _lookups(row)
    if vectors is None:
        return None
    return tuple(replace(one, factor=one.factor * factor) for one in vectors)


def _weighted(row: Row, source: ir.Value, weights: ir.Value) -> Row | None:
    """Single rows ``[B, ..., D]`` times weights ``[B, ..., 1]``."""
    places = dims(source)[1:-1]
    if weights.dtype != ir.DataType.FLOAT or weights.const_value is not None:
        return None
    if dims(weights)[1:] != [*places, 1] or len(row) != prod(places):
        return None
    vectors = _lookups(row)
    if vectors is None or any(len(one.ids) != 1 or one.weights or one.offsets for one in vectors):
        return None
    columns = [Column(weights, index) for index in range(len(row))]
    return tuple(replace(part, weights=(one,)) for part, one in zip(vectors, columns, strict=True))


# --- forms ----------------------------------------------------------------------------------------


def _rowwise(add: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """The codes, scales and ids of a row-wise table, in the form that `ort_fusions` writes."""
    dequantize = made_by(add.inputs[0], "DequantizeLinear")
    split = made_by(add.inputs[1], "Split")
    if dequantize is None or split is None or len(dequantize.inputs) != 2:
        return None
    gather, both = made_by(dequantize.inputs[0], "Gather"), made_by(split.inputs[0], "Gather")
    column = made_by(dequantize.inputs[1], "Reshape")
    if gather is None or both is None or column is None:
        return None
    if column.inputs[0] is not split.outputs[0] or add.inputs[1] is not split.outputs[1]:
        return None
    (codes, ids), (scales, others) = gather.inputs, both.inputs
    assert codes is not None
    assert scales is not None
    by_row = all(one.attributes.get_int("axis", 0) == 0 for one in (gather, both))
    tables = is_table(codes, ir.DataType.UINT8) and is_table(scales, ir.DataType.FLOAT)
    if not by_row or ids is None or ids is not others or not tables or dims(scales)[1] != 2:
        return None
    return codes, scales, ids


def _rowwise4(add: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """The same for a table of 4-bit codes."""
    scaled, split = made_by(add.inputs[0], "Mul"), made_by(add.inputs[1], "Split")
    halves = None if scaled is None else before(before(scaled.inputs[0], "Cast"), "Reshape")
    joined, both = made_by(halves, "Concat"), before(before(first_of(split), "Cast"), "Gather")
    if scaled is None or split is None or joined is None or both is None:
        return None
    if [scaled.inputs[1], add.inputs[1]] != list(split.outputs):
        return None
    low, high = (before(one, "Unsqueeze") for one in (*joined.inputs, None, None)[:2])
    masked, shifted = made_by(low, "BitwiseAnd"), made_by(high, "BitShift")
    scales = made_by(before(first_of(split), "Cast"), "Gather")
    if masked is None or shifted is None or scales is None:
        return None
    gather = made_by(masked.inputs[0], "Gather")
    if gather is None or masked.inputs[0] is not shifted.inputs[0]:
        return None
    halved = integers(masked.inputs[1]) == [15] and integers(shifted.inputs[1]) == [4]
    right = shifted.attributes.get_string("direction", "") == "RIGHT"
    (codes, ids), others = gather.inputs, scales.inputs[1]
    assert codes is not None
    by_row = all(one.attributes.get_int("axis", 0) == 0 for one in (gather, scales))
    tables = is_table(codes, ir.DataType.UINT8) and is_table(both, ir.DataType.FLOAT16)
    if not (halved and right and by_row and tables) or ids is None or ids is not others:
        return None
    return codes, both, ids


def _unflattened(ids: ir.Value) -> ir.Value | None:
    """The ids before they were made one long list; None if they weren't."""
    node = made_by(ids, "Reshape")
    return first_input(node) if node is not None and integers(node.inputs[1]) == [-1] else None


def _dot_interaction(last: ir.Node) -> tuple[ir.Value, tuple[tuple[int, int], ...]] | None:
    """The vectors ``[B, n, d]`` and the pairs of the dialect's dot interaction, as exported."""
    pick = made_by(last.inputs[0], "GatherND")
    turn = None if pick is None else made_by(pick.inputs[0], "Transpose")
    product = None if turn is None else made_by(turn.inputs[0], "MatMul")
    turned = None if product is None else made_by(product.inputs[1], "Transpose")
    if pick is None or turn is None or product is None or turned is None:
        return None
    perms = [tuple(node.attributes.get_ints("perm", ())) for node in (last, turn, turned)]
    places = integers(pick.inputs[1])
    vectors = product.inputs[0]
    if perms != [(1, 0), (1, 2, 0), (0, 2, 1)] or turned.inputs[0] is not vectors:
        return None
    if vectors is None or places is None or dims(pick.inputs[1])[1:] != [2]:
        return None
    return vectors, tuple(zip(places[::2], places[1::2], strict=True))


def _bags_by_offsets(add: ir.Node) -> tuple[ir.Value, ir.Value, bool] | None:
    """The rows, the offsets, and whether these have an end, as `lower-embedding-bag` adds up.

    How many bags began up to each row, less one, is the bag that the row is added to.
    """
    zeros, bag, rows = add.inputs
    bag = before(bag, "Unsqueeze")
    begun = before(before(bag, "Sub"), "Slice")
    marks = made_by(before(begun, "CumSum"), "ScatterND")
    if rows is None or marks is None or bag is None or begun is None:
        return None
    adds = all(node.attributes.get_string("reduction", "") == "add" for node in (add, marks))
    less_one, cut = (value.producer() for value in (bag, before(bag, "Sub")) if value is not None)
    assert less_one is not None
    assert cut is not None
    settings = [integers(less_one.inputs[1]), *(integers(one) for one in cut.inputs[1:4])]
    empty = fill(zeros) == 0 and fill(marks.inputs[0]) == 0 and fill(marks.inputs[2]) == 1
    starts = before(marks.inputs[1], "Unsqueeze")
    if not adds or not empty or settings != [[1], [0], [-1], [0]] or starts is None:
        return None
    whole = made_by(starts, "Slice")
    if whole is None:
        return rows, unchecked(starts), False
    all_but_last = [integers(one) for one in whole.inputs[1:4]] == [[0], [-1], [0]]
    return (rows, unchecked(first_input(whole)), True) if all_but_last else None
