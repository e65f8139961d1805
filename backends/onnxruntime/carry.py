"""What carries NaN past codes (``optimizer/precision/carry.py``), as one product of ONNX Runtime's.

``score + sum(0 * x)`` is three operators, each of which takes a microsecond to call. A Gemm of x
and zeros that adds the score is one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def fuse_carry(model: ir.Model) -> dict[str, int]:
    """Rewrites a model in place.

    Returns:
        How many sums became products: ``carried-nan``.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        found = _carried(node)
        if found is None:
            continue
        score, x, width = found
        zeros = ir.tensor(np.zeros((width, 1), np.float32))
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", zeros)])
        product = ir.Node("", "Gemm", [x, constant.outputs[0], score])
        made, old = product.outputs[0], node.outputs[0]
        made.name, made.shape, made.type = old.name, old.shape, old.type
        constant.outputs[0].name = f"{old.name}_zeros"
        old.name = None
        graph.insert_before(node, [constant, product])
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        count += 1
    if count:
        RemoveUnusedNodesPass()(model)
    return {"carried-nan": count} if count else {}


def _carried(node: ir.Node) -> tuple[ir.Value, ir.Value, int] | None:
    """The score ``[B, 1]``, what is multiplied ``[B, width]``, and its width."""
    if node.op_type != "Add":
        return None
    for score, row in (node.inputs, tuple(reversed(node.inputs))):
        if score is None or row is None or _width(score) != 1:
            continue
        total = row.producer()
        if total is None or total.op_type != "ReduceSum" or not _is_of_rows(total):
            continue
        product = total.inputs[0].producer() if total.inputs[0] is not None else None
        if product is None or product.op_type != "Mul":
            continue
        x, by = product.inputs
        width = None if x is None else _width(x)
        zero = None if by is None else by.const_value
        if x is None or width is None or zero is None or zero.size != 1 or zero.numpy().any():
            continue
        return score, x, width
    return None


def _is_of_rows(total: ir.Node) -> bool:
    axes = None if len(total.inputs) < 2 or total.inputs[1] is None else total.inputs[1].const_value
    keeps = total.attributes.get("keepdims")
    along = axes is not None and axes.numpy().tolist() in ([1], [-1])
    return along and (keeps is None or keeps.as_int() == 1)


def _width(value: ir.Value) -> int | None:
    """Of a matrix of floats with a row each."""
    if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 2:
        return None
    width = value.shape[1]
    return width if isinstance(width, int) else None
