"""What number formats of linears are in ONNX, where one operator for another isn't enough.

A form writes standard ONNX. Where the opset has no operator for a step, such as finding the scales
of blocks while running, that is a function of the file, in `DOMAIN`, whose body is standard too.
A runtime that has words of its own for it, or lacks a kernel for the standard ones, gets those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import onnx_ir as ir
from onnxscript import opset21

#: The domain of the functions.
DOMAIN = "rankc.codes"
#: The domain of TensorRT's own operators.
TENSORRT = "trt"
# Its operators' types are those of tensors in a script, not of what an exporter hands over.
op: Any = opset21


class Form:
    """How operators of one number format are written; each does nothing unless it is said."""

    @property
    def translations(self) -> Mapping[Any, Callable[..., Any]]:
        """Dialect operators and their exporters' functions."""
        return {}

    def finish(self, model: ir.Model) -> None:
        """Gives an exported model what the exporter has no way to say: types, functions, opset."""

    def emulate(self, graph: ir.Graph) -> int:
        """Puts other words for what ONNX Runtime's CPU provider lacks; how often."""
        return 0

    def for_tensorrt(self, model: ir.Model) -> int:
        """Puts TensorRT's own operators where its parser needs them; how often."""
        return 0


#: Their classes, as ``module:Class``.
_FORMS = ("coded_weights:CodedWeights", "mxfp8:MxFp8", "nvfp4:NvFp4")


def forms() -> tuple[Form, ...]:
    """All of them."""
    found = []
    for place in _FORMS:
        module, _, attribute = place.partition(":")
        found.append(getattr(import_module(f".{module}", __package__), attribute)())
    return tuple(found)


def whole_blocks(x: Any, width: int) -> Any:
    """Rows of any rank ``[..., K]`` as a matrix ``[rows, width]``, zeros behind."""
    inputs = int(x.shape[-1])
    rows = x if len(x.shape) == 2 else op.Reshape(x, op.Constant(value_ints=[-1, inputs]))
    if width == inputs:
        return rows
    return op.Pad(rows, op.Constant(value_ints=[0, 0, 0, width - inputs]))


def multiplied(x: Any, rounded: Any, weight: Any, outputs: int, bias: Any) -> Any:
    """``[..., N]`` in the rank of ``x``, of ``[rows, K]`` and ``[N, K]``."""
    product = op.MatMul(rounded, op.Transpose(weight, perm=[1, 0]))
    if bias is not None:
        product = op.Add(product, bias)
    if len(x.shape) == 2:
        return product
    last = op.Constant(value_ints=[outputs])
    return op.Reshape(product, op.Concat(op.Shape(x, start=0, end=-1), last, axis=0))


def in_place_of(graph: ir.Graph, node: ir.Node, name: str, *attributes: ir.Attr) -> None:
    """An operator of TensorRT's in a node's place, with its inputs, outputs and origin."""
    new = ir.Node(
        TENSORRT,
        name,
        node.inputs,
        attributes,
        num_outputs=len(node.outputs),
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    for old, value in zip(node.outputs, new.outputs, strict=True):
        value.name, value.type, value.shape = old.name, old.type, old.shape
        old.name = None
        old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.insert_before(node, new)
    graph.remove(node, safe=True)


def in_words_of_tensorrt(model: ir.Model) -> None:
    """Lets every form put TensorRT's own operators; the functions they stand for go."""
    if sum(form.for_tensorrt(model) for form in forms()):
        model.functions.clear()
        model.opset_imports.pop(DOMAIN, None)
        model.opset_imports[TENSORRT] = 1
