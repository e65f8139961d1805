"""Linears in MXFP8, in ONNX: blocked Q/DQ with E8M0 scales, which opset 24 has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import tape
from onnxscript import opset21
from onnxscript.values import Opset

from ...optimizer.ir.ops import MX_BLOCK, MXFP8_LINEAR
from .forms import DOMAIN, Form, in_place_of, multiplied, whole_blocks

QUANTIZE = "MXFP8Quantize"
#: The first whose Q/DQ have blocks with E8M0 scales, and whose Cast makes such.
_OPSET = 24
_CODES, _SCALES = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0
_FLOAT = int(ir.DataType.FLOAT)
op: Any = opset21


def _register() -> Any:
    """Makes the function known to onnx, which the exporter asks."""
    schema = onnx.defs.OpSchema
    onnx.defs.register_schema(
        schema(
            QUANTIZE,
            DOMAIN,
            1,
            inputs=[schema.FormalParameter("x", "tensor(float)")],
            outputs=[
                schema.FormalParameter("codes", "tensor(float8e4m3fn)"),
                schema.FormalParameter("scales", "tensor(float8e8m0)"),
            ],
        )
    )
    return Opset(DOMAIN, 1)


_FUNCTIONS: Any = _register()


class MxFp8(Form):
    """``mxfp8_linear``: what finds an input's scales is a function, all else Q/DQ and a product."""

    @property
    def translations(self) -> Mapping[Any, Callable[..., Any]]:
        """The reference."""
        return {MXFP8_LINEAR.op: _linear}

    def finish(self, model: ir.Model) -> None:
        """Defines the function, and names the opset."""
        quantizes = _quantizes(model.graph)
        if not quantizes:
            return
        function = _function()
        model.functions[function.identifier()] = function
        model.opset_imports.update({"": max(_OPSET, model.opset_imports[""]), DOMAIN: 1})
        for node in quantizes:
            node.outputs[0].type, node.outputs[1].type = map(ir.TensorType, (_CODES, _SCALES))
        for decode in model.graph:
            scales = decode.inputs[1] if decode.op_type == "DequantizeLinear" else None
            if scales is not None and scales.dtype is ir.DataType.UINT8:
                _as(scales, _SCALES)
            if scales is not None and scales.dtype is _SCALES:
                decode.attributes["output_dtype"] = ir.AttrInt64("output_dtype", _FLOAT)

    def emulate(self, graph: ir.Graph) -> int:
        """ONNX Runtime 1.32 has no DequantizeLinear with E8M0 scales: they are cast first."""
        count = 0
        for decode in list(graph):
            scales = decode.inputs[1] if decode.op_type == "DequantizeLinear" else None
            if scales is None or scales.dtype is not _SCALES:
                continue
            count += 1
            wide = ir.Node("", "Cast", [scales], [ir.AttrInt64("to", _FLOAT)])
            graph.insert_before(decode, wide)
            decode.replace_input_with(1, wide.outputs[0])
        return count

    def for_tensorrt(self, model: ir.Model) -> int:
        """Its own operators: the parser of 1.7.1 takes E8M0 as the bytes of one of them alone."""
        quantizes = _quantizes(model.graph)
        for node in quantizes:
            in_place_of(model.graph, node, "TRT_MXFP8DynamicQuantize", *_blocks(int(_CODES)))
        for decode in list(model.graph):
            scales = decode.inputs[1] if decode.op_type == "DequantizeLinear" else None
            if scales is None or scales.dtype is not _SCALES:
                continue
            if scales.const_value is not None:
                _as(scales, ir.DataType.UINT8)
            in_place_of(model.graph, decode, "TRT_MXFP8DequantizeLinear", *_blocks(_FLOAT))
        return len(quantizes)


def _linear(x: Any, codes: Any, scale: Any, bias: Any = None) -> Any:
    """The product of what rows and weight round to."""
    found, steps = _FUNCTIONS.MXFP8Quantize(whole_blocks(x, int(codes.shape[1])))
    rounded = op.DequantizeLinear(found, steps, axis=1, block_size=MX_BLOCK)
    weight = op.DequantizeLinear(codes, scale, axis=1, block_size=MX_BLOCK)
    return multiplied(x, rounded, weight, int(codes.shape[0]), bias)


def _quantizes(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if (node.domain, node.op_type) == (DOMAIN, QUANTIZE)]


def _function() -> ir.Function:
    """``x [B, K]`` float32 to codes ``[B, K]`` E4M3 and scales ``[B, K / 32]`` E8M0."""
    x, body = ir.Value(name="x"), tape.Tape()

    def integers(*values: int) -> ir.Value:
        return body.op("Constant", [], {"value_ints": list(values)})

    def number(value: float) -> ir.Value:
        return body.op("Constant", [], {"value_float": value})

    def made(name: str, *values: ir.Value, **attributes: Any) -> ir.Value:
        return body.op(name, list(values), attributes)

    blocks = made("Reshape", x, integers(0, -1, MX_BLOCK))
    peak = made("ReduceMax", made("Abs", blocks), integers(-1), keepdims=0)
    step = made("Max", made("Div", peak, number(448.0)), number(2.0**-126))
    # Zero times a block is NaN where it has NaN or infinity.
    none = made("ReduceSum", made("Mul", blocks, number(0.0)), integers(-1), keepdims=0)
    exact = made("Add", step, none)
    scales = made("Cast", exact, to=int(_SCALES), round_mode="up")
    wide = made("Cast", scales, to=_FLOAT)
    codes = made("QuantizeLinear", x, wide, axis=1, block_size=MX_BLOCK, output_dtype=int(_CODES))
    for number_, node in enumerate(body.nodes):
        node.outputs[0].name = f"value_{number_}"
    codes.name, scales.name = "codes", "scales"
    graph = ir.Graph([x], [codes, scales], nodes=body.nodes, opset_imports={"": _OPSET})
    return ir.Function(DOMAIN, QUANTIZE, graph=graph, attributes=[])


def _as(scales: ir.Value, dtype: ir.DataType) -> None:
    """The same bytes, called otherwise."""
    assert scales.const_value is not None
    found = scales.const_value.numpy().view(dtype.numpy())
    scales.const_value = ir.tensor(found, dtype, scales.name)
    scales.type = ir.TensorType(dtype)


def _blocks(output_dtype: int) -> tuple[ir.Attr, ...]:
    """Attributes of TensorRT's operators, over blocks of the last axis."""
    return (
        ir.AttrInt64("axis", -1),
        ir.AttrInt64("block_size", MX_BLOCK),
        ir.AttrInt64("output_dtype", output_dtype),
    )
