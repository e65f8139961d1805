"""Which columns of which inputs ids are, through views, selections, joins, shifts and bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from .values import (
    INTEGERS,
    VIEWS,
    dims,
    first_input,
    integers,
    joins_columns,
    made_by,
    one_place,
    rank,
    within,
)

#: What ids become that are beyond their table, and what is as good as no bound.
_NOWHERE = ([2**62], [2**30])
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Column:
    """A column of a matrix with a row for each row of the batch, and what is added to it.

    Attributes:
        matrix: ``[B, ...]`` ids.
        index: Of the column.
        shift: What is added to its ids.
        limit: Its ids are below it before that, and not negative; 0 where only the table bounds it.
        wraps: Whether they may be negative down to -limit, and count from the end then.
        open: Whether they may be, and nothing has counted them yet.
    """

    matrix: ir.Value
    index: int
    shift: int = 0
    limit: int = 0
    wraps: bool = False
    open: bool = False

    def precedes(self, other: Column) -> bool:
        """Whether the other is the next column of the same matrix."""
        return other.matrix is self.matrix and other.index == self.index + 1


def columns_of(ids: ir.Value, rows: int) -> tuple[Column, ...] | None:
    """The columns that ids ``[B, ...]`` are, through views, selections, joins and bounds.

    Args:
        ids: What is looked up.
        rows: Of the table, from whose end the lookup counts negative ids.
    """
    found = _columns_of(ids)
    if found is None:
        return None
    return _from_the_end(found, [one.limit if not one.open else rows for one in found]) or (
        _own_columns(ids)
    )


def _columns_of(ids: ir.Value) -> tuple[Column, ...] | None:
    sizes = dims(ids)
    if not sizes or min(sizes[1:], default=1) < 1 or ids.dtype not in INTEGERS:
        return None
    node = ids.producer()
    make = None if node is None or node.domain else _COLUMN_MAKERS.get(node.op_type)
    found = None if node is None or make is None else make(node, ids)
    if found is not None and len(found) == prod(sizes[1:]):
        return found
    return None if ids.const_value is not None else _own_columns(ids)


def _own_columns(ids: ir.Value) -> tuple[Column, ...]:
    return tuple(Column(ids, index) for index in range(prod(dims(ids)[1:])))


_Columns = tuple[Column, ...] | None


def _same_columns(node: ir.Node, ids: ir.Value) -> _Columns:
    return _columns_of(first_input(node))


def _joined_columns(node: ir.Node, ids: ir.Value) -> _Columns:
    parts = [None if one is None else _columns_of(one) for one in node.inputs]
    if not joins_columns(node, ids) or None in parts:
        return None
    return tuple(one for part in parts for one in part or ())


def _shifted_columns(node: ir.Node, ids: ir.Value) -> _Columns:
    columns, shifts = _columns_of(first_input(node)), integers(node.inputs[1])
    if columns is None or shifts is None or rank(first_input(node)) != rank(ids):
        return None
    if len(shifts) not in (1, len(columns)) or rank(node.inputs[1]) > 1 < rank(ids) - 1:
        return None
    if len(shifts) == 1:
        shifts = shifts * len(columns)
    return tuple(replace(c, shift=c.shift + by) for c, by in zip(columns, shifts, strict=True))


def _selected_columns(node: ir.Node, ids: ir.Value) -> _Columns:
    columns, sizes = _columns_of(first_input(node)), dims(first_input(node))
    rest = [integers(one) for one in node.inputs[1:]]
    if columns is None or len(sizes) < 2 or any(one is None or len(one) != 1 for one in rest):
        return None
    places = [one[0] for one in rest if one is not None]
    if node.op_type == "Slice":
        bounds = within(places[0], places[1], sizes[1]) if places[2:] in ([1], [1, 1]) else None
    else:
        single = node.attributes.get_int("axis", 0) == 1 and rank(node.inputs[1]) == 0
        bounds = one_place(places[0], first_input(node)) if single else None
    if bounds is None:
        return None
    size = prod(sizes[2:])
    return columns[bounds[0] * size : bounds[1] * size]


def _chosen_columns(node: ir.Node, ids: ir.Value) -> _Columns:
    return _bounded_columns(node, ids) or _wrapped_columns(node)


def _wrapped_columns(node: ir.Node) -> _Columns:
    """Negative ids that are counted from the end; the operator does so itself."""
    negative, counted, source = node.inputs
    test, add = made_by(negative, "Less"), made_by(counted, "Add")
    if source is None or test is None or add is None or integers(test.inputs[1]) != [0]:
        return None
    columns, rows = _columns_of(source), _by_column(add.inputs[1], dims(source)[1:])
    if test.inputs[0] is not source or add.inputs[0] is not source:
        return None
    if columns is None or rows is None:
        return None
    return _from_the_end(columns, rows)


def _from_the_end(columns: tuple[Column, ...], rows: list[int]) -> _Columns:
    counted = []
    for column, size in zip(columns, rows, strict=True):
        if column.open and (column.shift or column.limit != size):
            return None
        if not column.open and size and not column.limit:
            return None  # it may be negative, and nothing says how far
        counted.append(replace(column, wraps=True, open=False) if column.open else column)
    return tuple(counted)


def _bounded_columns(node: ir.Node, ids: ir.Value) -> _Columns:
    """Ids that are refused from a limit on (`bounds.py`); the operator does so itself."""
    known, source, nowhere = node.inputs
    both = made_by(known, "And")
    tests = [] if both is None else [*map(made_by, both.inputs, ("GreaterOrEqual", "LessOrEqual"))]
    columns = None if source is None else _columns_of(source)
    if columns is None or not tests or integers(nowhere) not in _NOWHERE:
        return None
    ends = []
    for test in tests:
        if test is None or test.inputs[0] is not source:
            return None
        ends.append(_by_column(test.inputs[1], dims(source)[1:]))
    least, most = ends
    if least is None or most is None or any(one.shift or one.limit for one in columns):
        return None
    bounded = []
    for column, low, high in zip(columns, least, most, strict=True):
        free = low < 0 and high >= _NO_LIMIT
        if not free and (low not in (0, -high - 1) or high < 0):
            return None
        limited = replace(column, limit=high + 1, open=low < 0)
        bounded.append(column if free else limited)
    return tuple(bounded)


def _by_column(value: ir.Value | None, sizes: list[int]) -> list[int] | None:
    """A constant's numbers, one for each column of ids of these sizes."""
    numbers, shape = integers(value), dims(value)
    if numbers is None or (len(shape) > len(sizes) and shape[0] != 1):
        return None
    array = np.array(numbers).reshape(shape[-len(sizes) :] if sizes else ())
    return [int(one) for one in np.broadcast_to(array, sizes).flatten()]


_COLUMN_MAKERS: dict[str, Callable[[ir.Node, ir.Value], _Columns]] = {
    "Add": _shifted_columns,
    "Cast": _same_columns,
    "Concat": _joined_columns,
    "Gather": _selected_columns,
    "Slice": _selected_columns,
    "Where": _chosen_columns,
    **dict.fromkeys(VIEWS, _same_columns),
}
