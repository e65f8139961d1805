"""Offsets that don't cut a list of ids are refused by the file itself, whatever runs it.

A bag reads the ids from where its row begins to where the next one does. Offsets that fall, begin
elsewhere than at 0, or go beyond the ids would give a row the ids of others, and no runtime looks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript import opset21

from ...optimizer.ir.ops import RISING
from ..native.values import unchecked

# Its operators' types are those of tensors in a script, not of what an exporter hands over.
op: Any = opset21
#: What the node is called that a runtime names when it refuses.
NAME = "offsets_dont_rise_from_0_to_the_number_of_ids"


def _rising(offsets: Any, values: Any, ends: bool) -> Any:
    """The offsets plus a 0 that can't be looked up where they don't rise from 0 to the end.

    In one comparison: of the first offset, 0, all offsets, and the number of values none is
    above the next; where the last offset is an end, the number isn't above it either.
    """
    dtype = offsets.dtype or ir.DataType.INT64
    zero, one, last = (_constant([place], ir.DataType.INT64) for place in (0, 1, 2**31 - 1))
    less_one = _constant([-1], ir.DataType.INT64)
    count = op.Cast(op.Shape(values, start=0, end=1), to=int(dtype))
    chain = [op.Slice(offsets, zero, one, zero), _constant([0], dtype), offsets, count]
    if ends:
        chain.append(op.Slice(offsets, less_one, last, zero))
    bounds = op.Concat(*chain, axis=0)
    falls = op.Less(op.Slice(bounds, one, last, zero), op.Slice(bounds, zero, less_one, zero))
    place = op.ReduceMax(op.Cast(falls, to=int(ir.DataType.INT64)), keepdims=0)
    return op.Add(offsets, op.Gather(_constant([0], dtype), place, axis=0))


def _constant(values: list[int], dtype: ir.DataType) -> Any:
    return op.Constant(value=onnx.numpy_helper.from_array(np.array(values, dtype.numpy())))


#: Its ONNX form.
TRANSLATIONS: dict[Any, Any] = {RISING.op: _rising}


def name_refusals(model: ir.Model) -> None:
    """Gives the nodes that refuse offsets a name that says why, in place."""
    for node in model.graph:
        made = node.outputs[0]
        if node.op_type != "Add" or unchecked(made) is made:
            continue
        (refuses,) = (one.producer() for one in node.inputs[1:] if one is not None)
        assert refuses is not None
        refuses.name = f"{NAME}_{made.name}"
