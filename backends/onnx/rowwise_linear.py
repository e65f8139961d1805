"""The ONNX operator ``rankc.RowwiseLinear``, and what it is in standard operators.

`to_onnx` writes a row-wise quantized linear as one node, so that nothing has to be recognised
again. A backend then puts the standard operators in its place, or makes them the body of a function
of that name, which a native operator can stand for.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import tape
from onnxscript.values import Opset

from ...optimizer.precision.codes import SMALLEST_STEP

DOMAIN, NAME = "rankc", "RowwiseLinear"
_FLOAT, _INT8, _INT64 = "tensor(float)", "tensor(int8)", "tensor(int64)"
_INPUTS = (
    ("x", _FLOAT, True),
    ("codes", _INT8, True),
    ("scale", _FLOAT, True),
    ("bias", _FLOAT, False),
    ("column_scale", _FLOAT, False),
    ("kept", _INT64, False),
    ("kept_weight", _FLOAT, False),
)
_X, _CODES, _SCALE, _BIAS, _COLUMNS, _KEPT, _KEPT_WEIGHT = range(len(_INPUTS))


def _register() -> Any:
    """Makes the operator known to onnx, which the exporter asks."""
    schema = onnx.defs.OpSchema
    option = schema.FormalParameterOption
    onnx.defs.register_schema(
        schema(
            NAME,
            DOMAIN,
            1,
            inputs=[
                schema.FormalParameter(
                    name, kind, param_option=option.Single if needed else option.Optional
                )
                for name, kind, needed in _INPUTS
            ],
            outputs=[schema.FormalParameter("y", _FLOAT)],
        )
    )
    return Opset(DOMAIN, 1)


_OPSET = _register()


def rowwise_linear(
    x: Any,
    codes: Any,
    scale: Any,
    bias: Any = None,
    column_scale: Any = None,
    kept: Any = None,
    kept_weight: Any = None,
) -> Any:
    """The exporter's translation of ``rankc.rowwise_linear``."""
    return _OPSET.RowwiseLinear(x, codes, scale, bias, column_scale, kept, kept_weight)


def inline_rowwise(model: ir.Model) -> int:
    """Puts standard operators in place of the row-wise linears; returns how many there were."""
    nodes = _nodes(model)
    for node in nodes:
        body = tape.Tape()
        made = _standard(body, _padded(node))
        for new in body.nodes:
            new.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, body.nodes)
        _replace(model.graph, node, node.outputs[0], made)
    model.opset_imports.pop(DOMAIN, None)
    return len(nodes)


def outline_rowwise(model: ir.Model) -> int:
    """Makes each a function with that body, a ReLU behind it included; returns how many."""
    nodes = _nodes(model)
    for count, node in enumerate(nodes):
        last = _relu_behind(node) or node
        relu = last is not node
        there = [index for index, value in enumerate(_padded(node)) if value is not None]
        attributes = [
            ir.AttrInt64("bias", int(_BIAS in there)),
            ir.AttrInt64("columns", int(_COLUMNS in there)),
            ir.AttrInt64("kept", int(_KEPT in there)),
            ir.AttrInt64("relu", int(relu)),
        ]
        overload = str(count)
        call = ir.Node(
            DOMAIN,
            NAME,
            [node.inputs[index] for index in there],
            attributes,
            overload=overload,
            outputs=[ir.Value(name=last.outputs[0].name)],
            metadata_props=dict(node.metadata_props),
        )
        call.outputs[0].shape, call.outputs[0].type = last.outputs[0].shape, last.outputs[0].type
        function = _function(node, there, relu, overload, attributes, model.opset_imports[""])
        model.functions[function.identifier()] = function
        model.graph.insert_before(node, call)
        _replace(model.graph, last, last.outputs[0], call.outputs[0])
        if relu:
            model.graph.remove(node, safe=True)
    if nodes:
        model.opset_imports[DOMAIN] = 1
        model.ir_version = max(model.ir_version, 10)  # the first with functions of one name
    return len(nodes)


def _nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NAME)]


def _padded(node: ir.Node) -> list[ir.Value | None]:
    return [*node.inputs, *[None] * (len(_INPUTS) - len(node.inputs))]


def _replace(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Puts a value in place of a node's, under its name, and removes the node."""
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _relu_behind(node: ir.Node) -> ir.Node | None:
    """The ReLU that alone uses a node's value."""
    (value,) = node.outputs
    users = [use.node for use in value.uses()]
    if value.is_graph_output() or len(users) != 1 or users[0].op_type != "Relu":
        return None
    return users[0]


def _function(
    node: ir.Node,
    there: list[int],
    relu: bool,
    overload: str,
    attributes: list[ir.Attr],
    opset: int,
) -> ir.Function:
    inputs: list[ir.Value | None] = [None] * len(_INPUTS)
    for index in there:
        inputs[index] = ir.Value(name=_INPUTS[index][0])
    body = tape.Tape()
    made = _standard(body, inputs)
    if relu:
        made = body.op("Relu", [made])
    for number, new in enumerate(body.nodes):
        new.outputs[0].name = f"value_{number}"
    made.name = "y"
    given = [value for value in inputs if value is not None]
    graph = ir.Graph(given, [made], nodes=body.nodes, opset_imports={"": opset})
    declared = [ir.Attr(one.name, one.type, None) for one in attributes]
    return ir.Function(DOMAIN, NAME, overload, graph=graph, attributes=declared)


def _standard(body: tape.Tape, inputs: list[ir.Value | None]) -> ir.Value:
    """The reference of ``rankc.rowwise_linear``, the product in integers: the codes stay INT8."""
    x, codes, scale, bias, columns, kept, kept_weight = inputs

    def integers(*values: int) -> ir.Value:
        return body.op("Constant", [], {"value_ints": list(values)})

    def number(value: float) -> ir.Value:
        return body.op("Constant", [], {"value_float": value})

    def op(name: str, *values: ir.Value | None, **attributes: Any) -> ir.Value:
        return body.op(name, list(values), attributes)

    scaled = x if columns is None else op("Mul", x, columns)
    low = op("ReduceMin", scaled, integers(-1), keepdims=1)
    span = op("Sub", op("ReduceMax", scaled, integers(-1), keepdims=1), low)
    step = op("Div", span, number(255.0))
    inverse = op("Div", number(1.0), op("Max", step, number(SMALLEST_STEP)))
    rounded = op("Round", op("Mul", op("Sub", scaled, low), inverse))
    steps = op("Cast", rounded, to=int(ir.DataType.UINT8))
    weight = op("Transpose", codes, perm=[1, 0])
    product = op("Cast", op("MatMulInteger", steps, weight), to=int(ir.DataType.FLOAT))
    sums = op("ReduceSum", op("Cast", weight, to=int(ir.DataType.FLOAT)), integers(0), keepdims=0)
    # A cast gives some code for NaN. Zero times a row is NaN where the row has NaN or infinity.
    none = op("ReduceSum", op("Mul", scaled, number(0.0)), integers(-1), keepdims=1)
    shift = op("Mul", op("Add", low, none), sums)
    result = op("Mul", op("Add", op("Mul", product, step), shift), scale)
    if kept is not None:
        picked = op("Gather", x, kept, axis=-1)
        high = op("MatMul", picked, op("Transpose", kept_weight, perm=[1, 0]))
        result = op("Add", result, high)
    return result if bias is None else op("Add", result, bias)
