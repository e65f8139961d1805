"""What is known of a graph's values: sizes, constants, and what makes them."""

from __future__ import annotations

import onnx_ir as ir

#: What gives the same numbers other dimensions.
VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten"})
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
#: Constants of more elements are no sizes, places or pairs.
_MANY = 65536


def dims(value: ir.Value | None) -> list[int]:
    """The sizes of a value; -1 where one isn't known, none at all if its rank isn't."""
    shape = None if value is None else value.shape
    return [] if shape is None else [size if isinstance(size, int) else -1 for size in shape]


def rank(value: ir.Value | None) -> int:
    """The number of dimensions; -1 if it isn't known."""
    return -1 if value is None or value.shape is None else value.shape.rank()


def is_table(value: ir.Value, dtype: ir.DataType) -> bool:
    """Whether a value is a constant matrix."""
    constant = value.const_value
    return constant is not None and constant.dtype == dtype and len(constant.shape) == 2


def integers(value: ir.Value | None) -> list[int] | None:
    """The elements of a constant of integers; None if it is something else."""
    constant = None if value is None else value.const_value
    if constant is None or constant.size > _MANY or not constant.dtype.is_integer():
        return None
    listed: list[int] = constant.numpy().reshape(-1).tolist()
    return listed


def number(value: ir.Value) -> float | None:
    """A constant of one element."""
    constant = value.const_value
    if constant is None or constant.size != 1 or constant.dtype != ir.DataType.FLOAT:
        return None
    return float(constant.numpy().item())


def within(start: int, end: int, size: int) -> tuple[int, int] | None:
    """The bounds of a range of places, counted from the front; None if it is empty."""
    first = start + size if start < 0 else start
    last = end + size if end < 0 else min(end, size)
    return (first, last) if 0 <= first < last else None


def one_place(place: int, source: ir.Value) -> tuple[int, int]:
    """The bounds of one place of the second dimension."""
    first = place + dims(source)[1] if place < 0 else place
    return first, first + 1


def joins_columns(node: ir.Node, value: ir.Value) -> bool:
    """Whether a concatenation puts one row's parts behind another's."""
    axis = node.attributes.get_int("axis", 0)
    return axis == 1 or (axis == -1 and rank(value) == 2)


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """What makes a value, if it is this operator of ONNX's own."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", op_type) else None


def first_of(node: ir.Node | None) -> ir.Value | None:
    """The first input of an operator that may not be there."""
    return None if node is None else node.inputs[0]


def before(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """The first input of the operator that makes a value, if it is that one."""
    node = made_by(value, op_type)
    return None if node is None else node.inputs[0]


def fill(value: ir.Value | None) -> float | None:
    """What a value is filled with."""
    filler = before(value, "Expand")
    constant = None if filler is None else filler.const_value
    return None if constant is None or constant.size != 1 else float(constant.numpy().item())


def unchecked(value: ir.Value) -> ir.Value:
    """Offsets as given, of those that are refused where they don't cut a list (`onnx/bags.py`).

    The operator that reads the bags does so itself.
    """
    node = made_by(value, "Add")
    found = None if node is None else made_by(node.inputs[1], "Gather")
    if node is None or found is None:
        return value
    falls = made_by(before(before(found.inputs[1], "ReduceMax"), "Cast"), "Less")
    chain = None if falls is None else made_by(before(falls.inputs[0], "Slice"), "Concat")
    offsets = first_input(node)
    return offsets if chain is not None and offsets in chain.inputs else value


def first_input(node: ir.Node) -> ir.Value:
    """The first input of an operator that always has one."""
    value = node.inputs[0]
    assert value is not None, "the first input of these operators isn't optional"
    return value
