"""Ids that are beyond their table are refused by the file itself, whatever runs it.

ONNX's Gather counts negative ids from the end, and in a table that is stacked on others an id
beyond its own finds a neighbour's row. What is beyond becomes a number that no table has a row for,
whatever is added to it on the way: the Gather that reads it raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import opset21

from ...optimizer.ir import Feature, Signature
from ...optimizer.ir.ops import BOUNDED, WRAPPED

# Its operators' types are those of tensors in a script, not of what an exporter hands over.
op: Any = opset21
#: What no table has a row for; starts of tables are added to it without a wrap. A float is cast.
_NOWHERE: dict[ir.DataType, int] = {
    ir.DataType.INT64: 2**62,
    ir.DataType.INT32: 2**30,
    ir.DataType.FLOAT: 2**62,
    ir.DataType.DOUBLE: 2**62,
}


def _bounded(ids: Any, rows: Sequence[int], axis: int, alone: bool) -> Any:
    """Ids beyond their table become a row that is nowhere; `alone`, they are looked up here."""
    dtype = ids.dtype or ir.DataType.INT64
    highest = np.array([size - 1 if size else np.iinfo(dtype.numpy()).max for size in rows])
    lowest = np.array([0 if size else np.iinfo(dtype.numpy()).min for size in rows])
    shape = [1] * len(ids.shape)
    if len(rows) > 1:
        shape[axis] = len(rows)
    else:
        shape = []
    known = op.And(
        op.GreaterOrEqual(ids, _constant(lowest.reshape(shape), dtype)),
        op.LessOrEqual(ids, _constant(highest.reshape(shape), dtype)),
    )
    if not alone:
        return op.Where(known, ids, _constant(np.array(_NOWHERE[dtype]), dtype))
    zero, one = (_constant(np.array(value), ir.DataType.INT64) for value in (0, 1))
    place = op.Where(known, zero, one)
    found = op.Gather(_constant(np.zeros(1), dtype), place, axis=0)
    return op.Add(ids, found)


def _wrapped(ids: Any, rows: int) -> Any:
    """Negative ids counted from the end."""
    dtype = ids.dtype or ir.DataType.INT64
    zero, size = (_constant(np.array(value), dtype) for value in (0, rows))
    return op.Where(op.Less(ids, zero), op.Add(ids, size), ids)


def _constant(values: Any, dtype: ir.DataType) -> Any:
    return op.Constant(value=onnx.numpy_helper.from_array(values.astype(dtype.numpy())))


#: Their ONNX forms.
TRANSLATIONS: dict[Any, Any] = {BOUNDED.op: _bounded, WRAPPED.op: _wrapped}


def bound_inputs(model: ir.Model, signature: Signature) -> None:
    """Bounds every input that is looked up as it is, by the signature's limits, in place."""
    for value in model.graph.inputs:
        feature = next((f for f in signature if f.name == value.name), None)
        users = list(value.uses())
        if feature is None or not any(feature.cardinalities) or not users:
            continue
        if value.dtype not in _NOWHERE or value.dtype is None:
            continue
        if all(_refuses(user, index, feature) for user, index in users):
            continue
        made = _nodes(model.graph, value, feature, value.dtype)
        model.graph.insert_before(_first(model.graph), made)
        for user, index in users:
            user.replace_input_with(index, made[-1].outputs[0])


def _refuses(user: ir.Node, index: int, feature: Feature) -> bool:
    """Whether what reads a feature is a lookup that takes no other ids by itself."""
    table = user.inputs[0].const_value if user.inputs[0] is not None else None
    if user.op_type != "Gather" or index != 1 or user.attributes.get_int("axis", 0) != 0:
        return False
    if table is None:
        return False
    rows = int(table.shape.numpy()[0])
    return feature.cardinalities == (rows,) and feature.least == (-rows,)


def count_by_gather(model: ir.Model) -> None:
    """Lookups of ids that were counted from the table's end count them themselves, in place."""
    for node in model.graph:
        table = node.inputs[0].const_value if node.op_type == "Gather" and node.inputs[0] else None
        chosen = node.inputs[1].producer() if table is not None and node.inputs[1] else None
        if table is None or chosen is None or node.attributes.get_int("axis", 0) != 0:
            continue
        ids = _counted(chosen, int(table.shape.numpy()[0]))
        if ids is not None:
            node.replace_input_with(1, ids)
    RemoveUnusedNodesPass()(model)


def _counted(node: ir.Node, rows: int) -> ir.Value | None:
    """The ids of which negative ones are counted from the end of so many rows (`_wrapped`)."""
    if node.op_type != "Where":
        return None
    negative, added, ids = node.inputs
    test, add = (None if one is None else one.producer() for one in (negative, added))
    if test is None or add is None or (test.op_type, add.op_type) != ("Less", "Add"):
        return None
    same = test.inputs[0] is ids and add.inputs[0] is ids
    return ids if same and _is(test.inputs[1], 0) and _is(add.inputs[1], rows) else None


def _is(value: ir.Value | None, number: int) -> bool:
    constant = None if value is None else value.const_value
    return constant is not None and constant.size == 1 and int(constant.numpy().item()) == number


def _first(graph: ir.Graph) -> ir.Node:
    return next(iter(graph))


def _nodes(graph: ir.Graph, value: ir.Value, feature: Feature, dtype: ir.DataType) -> list[ir.Node]:
    """What stands between an input and all that reads it; the last one's result is the input."""
    limits = list(zip(feature.least, feature.cardinalities, strict=True))
    shape = [1] * len(feature.shape)
    if len(limits) > 1:
        shape[feature.axis] = len(limits)
    else:
        shape = []
    if dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        # Cut towards zero; what isn't an id is compared with NaN, which nothing is beyond.
        below = np.array([low - 1 if high else np.nan for low, high in limits])
        above = np.array([high or np.nan for _, high in limits])
        first, second = ("LessOrEqual", below), ("GreaterOrEqual", above)
        both, is_bad = "Or", True
    else:
        ends = np.iinfo(dtype.numpy())
        below = np.array([low if high else ends.min for low, high in limits])
        above = np.array([high - 1 if high else ends.max for _, high in limits])
        first, second = ("GreaterOrEqual", below), ("LessOrEqual", above)
        both, is_bad = "And", False
    nodes: list[ir.Node] = []

    def constant(name: str, values: Any) -> ir.Value:
        array = np.asarray(values).astype(dtype.numpy())
        tensor = ir.tensor(array, dtype, name=f"{value.name}_{name}")
        made = ir.Value(
            name=tensor.name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(dtype),
            const_value=tensor,
        )
        graph.register_initializer(made)
        return made

    def computed(name: str, kind: str, *inputs: ir.Value, boolean: bool = True) -> ir.Value:
        node = ir.Node("", kind, list(inputs))
        made = node.outputs[0]
        made.name, made.shape = f"{value.name}_{name}", value.shape
        made.dtype = ir.DataType.BOOL if boolean else dtype
        nodes.append(node)
        return made

    one = computed("low", first[0], value, constant("least", first[1].reshape(shape)))
    other = computed("high", second[0], value, constant("most", second[1].reshape(shape)))
    known = computed("known", both, one, other)
    nowhere = constant("nowhere", _NOWHERE[dtype])
    chosen = (nowhere, value) if is_bad else (value, nowhere)
    computed("bounded", "Where", known, *chosen, boolean=False)
    return nodes
