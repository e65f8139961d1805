"""Quantized and large tables in the forms TensorRT and ONNX Runtime each take."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from ...optimizer.ir import Program, Rewriter, sweep
from ...optimizer.ir.ops import DEQUANTIZE, ROWWISE_EMBEDDING

_aten = torch.ops.aten
#: Tables of at least this many bytes are inputs of the engine: it holds no copy of them, and
#: building takes no memory for them.
TABLE_BYTES = 64 * 2**20


def decode_tables_first(program: Program) -> Program:
    """The program with row-wise tables as a dequantize of the whole table that is then looked up.

    TensorRT makes one kernel of it that reads the rows asked for, in int8. It takes neither
    constants in codes that are looked up first, nor uint8 codes: ``s·q + b`` becomes
    ``s·(q − 128) + (b + 128·s)``.
    """
    nodes = list(program.graph.find_nodes(op="call_function", target=ROWWISE_EMBEDDING.op))
    if not nodes:
        return program
    decoded = program.clone()
    rw = Rewriter(decoded, "tensorrt")
    made: dict[str, tuple[fx.Node, fx.Node]] = {}
    for node in list(decoded.graph.find_nodes(op="call_function", target=ROWWISE_EMBEDDING.op)):
        codes, ids = node.args[0], node.args[3]
        assert isinstance(codes, fx.Node)
        with rw.before(node):
            if str(codes.target) not in made:
                made[str(codes.target)] = _decoded(rw, node)
            table, bias = made[str(codes.target)]
            rows = rw.emit(_aten.embedding.default, table, ids, like=node)
            base = rw.emit(_aten.embedding.default, bias, ids, like=node)
            new = rw.emit(_aten.add.Tensor, rows, base, like=node)
        rw.replace(node, new)
    sweep(decoded)
    return decoded


def _decoded(rw: Rewriter, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The dequantized table of a lookup, and the bias of each row."""
    codes, scale, bias = (rw.program.tensor(str(arg.target)) for arg in node.args[:3])  # type: ignore[union-attr]
    name = str(node.args[0].target)  # type: ignore[union-attr]
    # Flipping the top bit of uint8 is subtracting 128 and reading it as int8.
    signed = rw.parameter(f"{name}_signed", torch.bitwise_xor(codes, 128).view(torch.int8))
    step = rw.parameter(f"{name}_step", scale.flatten())
    zero = rw.parameter(f"{name}_zero", torch.zeros(len(codes), dtype=torch.int8))
    base = rw.parameter(f"{name}_base", bias + 128.0 * scale)
    return rw.emit(DEQUANTIZE.op, signed, step, zero, 0, like=node), base


def tables_as_inputs(model: ir.Model) -> tuple[str, ...]:
    """Makes large tables inputs of the graph; their names."""
    graph = model.graph
    large = [
        value
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.nbytes >= TABLE_BYTES
        and is_table(value)
    ]
    for value in large:
        assert value.name is not None
        assert value.const_value is not None
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape([int(size) for size in value.const_value.shape.numpy()])
        del graph.initializers[value.name]
        value.const_value = None
        graph.inputs.append(value)
    return tuple(str(value.name) for value in large)


def is_table(value: ir.Value) -> bool:
    """Whether a weight is only looked up, in codes or not."""
    readers = list(value.uses())
    return bool(readers) and all(
        index == 0
        and (
            node.op_type == "Gather"
            or (node.op_type == "DequantizeLinear" and is_table(node.outputs[0]))
        )
        for node, index in readers
    )
