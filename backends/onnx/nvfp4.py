"""Linears in NVFP4, in ONNX: blocked Q/DQ of float4e2m1, which opset 23 has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import tape
from onnxscript import opset21
from onnxscript.values import Opset

from ...optimizer.ir.ops import FLOAT4_MAX, NV_BLOCK, NVFP4_LINEAR
from .forms import DOMAIN, Form, in_place_of, multiplied, whole_blocks

QUANTIZE = "NVFP4Quantize"
#: The first with float4e2m1 in Q/DQ.
_OPSET = 23
_CODES, _SCALES = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
_FLOAT = int(ir.DataType.FLOAT)
#: E2M1's values by their code.
_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
op: Any = opset21


def _register() -> Any:
    """Makes the function known to onnx, which the exporter asks."""
    schema = onnx.defs.OpSchema
    onnx.defs.register_schema(
        schema(
            QUANTIZE,
            DOMAIN,
            1,
            inputs=[
                schema.FormalParameter("x", "tensor(float)"),
                schema.FormalParameter("step", "tensor(float)"),
            ],
            outputs=[
                schema.FormalParameter("codes", "tensor(float4e2m1)"),
                schema.FormalParameter("scales", "tensor(float8e4m3fn)"),
            ],
        )
    )
    return Opset(DOMAIN, 1)


_FUNCTIONS: Any = _register()


class NvFp4(Form):
    """``nvfp4_linear``: what finds an input's scales is a function, all else Q/DQ and a product."""

    @property
    def translations(self) -> Mapping[Any, Callable[..., Any]]:
        """The reference."""
        return {NVFP4_LINEAR.op: _linear}

    def finish(self, model: ir.Model) -> None:
        """Defines the function, names the opset, and makes pairs of codes what they are."""
        quantizes = _quantizes(model.graph)
        if not quantizes:
            return
        function = _function()
        model.functions[function.identifier()] = function
        model.opset_imports.update({"": max(_OPSET, model.opset_imports[""]), DOMAIN: 1})
        for node in quantizes:
            node.outputs[0].type, node.outputs[1].type = map(ir.TensorType, (_CODES, _SCALES))
        for decode in model.graph:
            codes = decode.inputs[0] if decode.op_type == "DequantizeLinear" else None
            if codes is None or codes.const_value is None or codes.dtype is not ir.DataType.UINT8:
                continue
            pairs = codes.const_value.numpy()
            halves = np.stack([pairs & 15, pairs >> 4], -1).reshape(len(pairs), -1)
            codes.const_value = ir.tensor(halves.view(_CODES.numpy()), _CODES, codes.name)
            codes.type, codes.shape = ir.TensorType(_CODES), ir.Shape(halves.shape)

    def emulate(self, graph: ir.Graph) -> int:
        """ONNX Runtime 1.32 has no kernel that reads or makes float4e2m1: values stand for codes.

        Codes of weights are read as bytes, of which each holds two, and looked up.
        """
        count = 0
        for decode in list(graph):
            codes = decode.inputs[0] if decode.op_type == "DequantizeLinear" else None
            if codes is None or codes.dtype is not _CODES:
                continue
            count += 1
            body = tape.Tape()
            values = _halves(body, graph, codes) if codes.const_value is not None else codes
            made = _by_blocks(body, "Mul", values, decode.inputs[1])
            graph.insert_before(decode, body.nodes)
            ir.convenience.replace_all_uses_with(decode.outputs[0], made)
            graph.remove(decode, safe=True)
        for node in _quantizes(graph):
            body = tape.Tape()
            x, step = node.inputs
            scales, steps = _scales(body, x, step)
            values = _rounded(body, _by_blocks(body, "Div", x, steps))
            graph.insert_before(node, body.nodes)
            for old, new in zip(node.outputs, (values, scales), strict=True):
                ir.convenience.replace_all_uses_with(old, new)
            graph.remove(node, safe=True)
        return count

    def for_tensorrt(self, model: ir.Model) -> int:
        """Its own operator that finds scales; Q/DQ of float4e2m1 it takes as they are."""
        attributes = (
            ir.AttrInt64("axis", -1),
            ir.AttrInt64("block_size", NV_BLOCK),
            ir.AttrInt64("scale_type", int(_SCALES)),
        )
        quantizes = _quantizes(model.graph)
        for node in quantizes:
            in_place_of(model.graph, node, "TRT_FP4DynamicQuantize", *attributes)
        return len(quantizes)


def _linear(x: Any, codes: Any, scale: Any, step: Any, input_step: Any, bias: Any = None) -> Any:
    """The product of what rows and weight round to."""
    rows = whole_blocks(x, 2 * int(codes.shape[1]))
    found, scales = _FUNCTIONS.NVFP4Quantize(rows, input_step)
    steps = op.DequantizeLinear(scales, input_step)
    rounded = op.DequantizeLinear(found, steps, axis=1, block_size=NV_BLOCK)
    own = op.DequantizeLinear(scale, step)
    weight = op.DequantizeLinear(codes, own, axis=1, block_size=NV_BLOCK)
    return multiplied(x, rounded, weight, int(codes.shape[0]), bias)


def _quantizes(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if (node.domain, node.op_type) == (DOMAIN, QUANTIZE)]


def _function() -> ir.Function:
    """``x [B, K]``, ``step []`` to codes ``[B, K]`` E2M1 and scales ``[B, K / 16]`` E4M3."""
    x, step, body = ir.Value(name="x"), ir.Value(name="step"), tape.Tape()
    scales, steps = _scales(body, x, step)
    attributes = {"axis": 1, "block_size": NV_BLOCK, "output_dtype": int(_CODES)}
    codes = body.op("QuantizeLinear", [x, steps], attributes)
    for number, node in enumerate(body.nodes):
        node.outputs[0].name = f"value_{number}"
    codes.name, scales.name = "codes", "scales"
    graph = ir.Graph([x, step], [codes, scales], nodes=body.nodes, opset_imports={"": _OPSET})
    return ir.Function(DOMAIN, QUANTIZE, graph=graph, attributes=[])


def _constant(body: tape.Tape, *values: int) -> ir.Value:
    return body.op("Constant", [], {"value_ints": list(values)})


def _number(body: tape.Tape, value: float) -> ir.Value:
    return body.op("Constant", [], {"value_float": value})


def _scales(
    body: tape.Tape, x: ir.Value | None, step: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """The scales ``[B, K / 16]`` E4M3, and what values are divided by: steps, 1 for those of 0."""
    blocks = body.op("Reshape", [x, _constant(body, 0, -1, NV_BLOCK)])
    peak = body.op("ReduceMax", [body.op("Abs", [blocks]), _constant(body, -1)], {"keepdims": 0})
    exact = body.op("Div", [body.op("Div", [peak, _number(body, FLOAT4_MAX)]), step])
    least = body.op("Min", [exact, _number(body, 448.0)])
    # Zero times a block is NaN where it has NaN or infinity.
    zeros = body.op("Mul", [blocks, _number(body, 0.0)])
    none = body.op("ReduceSum", [zeros, _constant(body, -1)], {"keepdims": 0})
    scales = body.op("Cast", [body.op("Add", [least, none])], {"to": int(_SCALES)})
    steps = body.op("Mul", [body.op("Cast", [scales], {"to": _FLOAT}), step])
    zero = body.op("Equal", [steps, _number(body, 0.0)])
    return scales, body.op("Where", [zero, _number(body, 1.0), steps])


def _by_blocks(
    body: tape.Tape, name: str, values: ir.Value | None, scales: ir.Value | None
) -> ir.Value:
    """Values ``[B, K]`` by scales ``[B, K / 16]``."""
    blocks = body.op("Reshape", [values, _constant(body, 0, -1, NV_BLOCK)])
    each = body.op("Unsqueeze", [scales, _constant(body, -1)])
    return body.op("Reshape", [body.op(name, [blocks, each]), _constant(body, 0, -1)])


def _rounded(body: tape.Tape, units: ir.Value) -> ir.Value:
    """Values rounded to E2M1, ties to even: steps are a half below 2, one below 4, and two."""

    def made(name: str, *values: ir.Value) -> ir.Value:
        return body.op(name, list(values))

    two, four = _number(body, 2.0), _number(body, 4.0)
    size = made("Min", made("Abs", units), _number(body, FLOAT4_MAX))
    halves = made("Div", made("Round", made("Mul", size, two)), two)
    twos = made("Mul", made("Round", made("Div", size, two)), two)
    low = made("Where", made("Less", size, two), halves, made("Round", size))
    return made("Mul", made("Where", made("Less", size, four), low, twos), made("Sign", units))


def _halves(body: tape.Tape, graph: ir.Graph, codes: ir.Value) -> ir.Value:
    """The values ``[N, K]`` of codes, whose bytes are read as they are stored."""
    stored = codes.const_value
    assert stored is not None
    outputs, inputs = stored.shape.numpy()
    name, shape = str(codes.name), ir.Shape([outputs, inputs // 2])
    if isinstance(stored, ir.ExternalTensor):
        place = stored.location, stored.offset, stored.length
        pairs: Any = ir.ExternalTensor(
            *place, ir.DataType.UINT8, shape=shape, name=name, base_dir=stored.base_dir
        )
    else:
        found = np.frombuffer(stored.tobytes(), np.uint8)
        pairs = ir.tensor(found.reshape(outputs, inputs // 2), ir.DataType.UINT8, name)
    codes.const_value, codes.type, codes.shape = pairs, ir.TensorType(ir.DataType.UINT8), shape
    wide = body.op("Cast", [codes], {"to": int(ir.DataType.INT32)})
    sixteen = body.op("Constant", [], {"value": ir.tensor(np.array(16, np.int32))})
    high = body.op("Div", [wide, sixteen])
    low = body.op("Sub", [wide, body.op("Mul", [high, sixteen])])
    last = _constant(body, -1)
    parts = [body.op("Unsqueeze", [half, last]) for half in (low, high)]
    both = body.op("Concat", parts, {"axis": -1})
    places = body.op("Reshape", [both, _constant(body, 0, -1)])
    return body.op("Gather", [body.op("Constant", [], {"value_floats": _VALUES}), places])
