"""A model for a GPU's runtime in the words of ONNX Runtime's CPU kernels."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from .forms import forms
from .tables import is_table

_HALF = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


def write_emulated(path: Path, emulated: Path) -> bool:
    """Writes the model with what the CPU kernels lack put in other words, if there is such.

    Coded tables are looked up first and decoded then: ONNX Runtime decodes a whole table for every
    call otherwise. Each row is decoded alike either way, so the scores are the same in every bit.
    Products in a 16-bit format are computed in fp32 from the same rounded values, and rounded: a
    GPU's tensor cores add up in fp32 as well.

    Returns:
        Whether a file was written.
    """
    model = ir.load(path)
    changed = (
        _gather_before_decoding(model.graph)
        + _decode_in_float(model.graph)
        + _multiply_in_float(model.graph)
        + sum(form.emulate(model.graph) for form in forms())
    )
    if changed:
        ir.save(model, emulated)
    return changed > 0


def _gather_before_decoding(graph: ir.Graph) -> int:
    count = 0
    for decode in list(graph):
        table = decode.inputs[0] if decode.inputs else None
        if decode.op_type != "DequantizeLinear" or table is None or not is_table(table):
            continue
        count += 1
        for lookup, _ in list(decode.outputs[0].uses()):
            _look_up_first(graph, decode, lookup)
        graph.remove(decode, safe=True)
    return count


def _look_up_first(graph: ir.Graph, decode: ir.Node, lookup: ir.Node) -> None:
    codes, scale, ids = decode.inputs[0], decode.inputs[1], lookup.inputs[1]
    last = ir.Value(
        name=f"{lookup.name}_axis", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1])
    )
    last.const_value = ir.tensor([-1], ir.DataType.INT64, last.name)
    graph.register_initializer(last)
    rows = ir.Node("", "Gather", [codes, ids])
    steps = ir.Node("", "Gather", [scale, ids])
    column = ir.Node("", "Unsqueeze", [steps.outputs[0], last])
    to = int(ir.DataType.FLOAT)
    cast = ir.Node("", "Cast", [rows.outputs[0]], attributes=[ir.AttrInt64("to", to)])
    product = ir.Node("", "Mul", [cast.outputs[0], column.outputs[0]])
    graph.insert_before(lookup, [rows, steps, column, cast, product])
    ir.convenience.replace_all_uses_with(lookup.outputs[0], product.outputs[0])
    graph.remove(lookup, safe=True)


def _decode_in_float(graph: ir.Graph) -> int:
    """Weights decoded to a 16-bit format are decoded to fp32, and rounded."""
    count = 0
    for decode in list(graph):
        scale = decode.inputs[1] if decode.op_type == "DequantizeLinear" else None
        if scale is None or scale.dtype not in _HALF:
            continue
        count += 1
        wide = _cast(scale, ir.DataType.FLOAT)
        graph.insert_before(decode, wide)
        decode.replace_input_with(1, wide.outputs[0])
        _round_to(graph, decode, scale.dtype)
    return count


def _multiply_in_float(graph: ir.Graph) -> int:
    count = 0
    for product in list(graph):
        if product.op_type not in ("MatMul", "Gemm"):
            continue
        kinds = {value.dtype for value in product.inputs if value is not None}
        (kind, *others) = kinds
        if others or kind not in _HALF:
            continue
        count += 1
        for index, value in enumerate(product.inputs):
            if value is not None:
                wide = _cast(value, ir.DataType.FLOAT)
                graph.insert_before(product, wide)
                product.replace_input_with(index, wide.outputs[0])
        _round_to(graph, product, kind)
    return count


def _round_to(graph: ir.Graph, node: ir.Node, kind: ir.DataType) -> None:
    """What the node made in a format it makes in fp32, and then it is rounded."""
    made = node.outputs[0]
    rounded = _cast(made, kind)
    made.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(node, rounded)
    ir.convenience.replace_all_uses_with(made, rounded.outputs[0])
    rounded.replace_input_with(0, made)


def _cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))])
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
    return node
