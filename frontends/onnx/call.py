"""One ONNX node as the function that translates it sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ...optimizer.errors import CaptureError

#: Sizes and other values known while capturing; those that depend on the batch are symbols in an
#: array of objects, so that chains of Shape, Gather, Concat and Reshape cost no nodes.
Known = np.ndarray[Any, Any]
Value = Tensor | Known

#: Formats numpy has no number for, kept as bits of another type.
_BITS = {
    ir.DataType.BFLOAT16: (np.uint16, torch.bfloat16),
    ir.DataType.FLOAT8E4M3FN: (np.uint8, torch.float8_e4m3fn),
    ir.DataType.FLOAT8E5M2: (np.uint8, torch.float8_e5m2),
}
#: torch's names of ONNX's element types, by the numbers a Cast carries.
DTYPES: dict[int, torch.dtype] = {
    int(ir.DataType.FLOAT): torch.float32,
    int(ir.DataType.DOUBLE): torch.float64,
    int(ir.DataType.FLOAT16): torch.float16,
    int(ir.DataType.BFLOAT16): torch.bfloat16,
    int(ir.DataType.INT8): torch.int8,
    int(ir.DataType.INT16): torch.int16,
    int(ir.DataType.INT32): torch.int32,
    int(ir.DataType.INT64): torch.int64,
    int(ir.DataType.UINT8): torch.uint8,
    int(ir.DataType.BOOL): torch.bool,
    int(ir.DataType.FLOAT8E4M3FN): torch.float8_e4m3fn,
    int(ir.DataType.FLOAT8E5M2): torch.float8_e5m2,
}


@dataclass
class Call:
    """A node with the values it reads.

    Attributes:
        node: The node.
        inputs: Its inputs' values; None where an optional one is left out.
        weights: Tensors of the file by the value that holds them.
        transposed: Matrices of the file that products read, as ``[outputs, inputs]``.
        bias: What an Add that follows adds to this product, taken over by it.
        version: The opset of the node's domain.
        untransposed: The tensor an input is the plain transpose of, by the input's position.
    """

    node: ir.Node
    inputs: Sequence[Value | None]
    weights: Mapping[ir.Value, Tensor]
    transposed: Mapping[ir.Value, Tensor]
    bias: Tensor | None
    version: int
    untransposed: Mapping[int, Tensor]

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute's value."""
        found = self.node.attributes.get(name)
        if found is None:
            return default
        if found.type is ir.AttributeType.INT:
            return found.as_int()
        if found.type is ir.AttributeType.FLOAT:
            return found.as_float()
        if found.type is ir.AttributeType.STRING:
            return found.as_string()
        if found.type is ir.AttributeType.INTS:
            return list(found.as_ints())
        return found.value

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> Tensor:
        """An input as a tensor."""
        value = self.inputs[index]
        source = self.node.inputs[index]
        if source is not None and source in self.weights:
            return self.weights[source]
        if value is None:
            self.refuse(f"its input {index} is missing")
        return as_tensor(value)

    def operand(self, index: int) -> Any:
        """An input as a number if it is a known single one, else as a tensor."""
        value = self.inputs[index]
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return value.item()
        return self.tensor(index)

    def known(self, index: int) -> Known:
        """An input whose value is known while capturing."""
        value = self.inputs[index]
        if isinstance(value, np.ndarray):
            return value
        source = self.node.inputs[index]
        name = source.name if source is not None else ""
        return self.refuse(f"its input {index} ({name}) is computed from the features' values")

    def numbers(self, index: int, attribute: str = "") -> list[Any] | None:
        """A list of numbers or symbols, from an input or, in old opsets, an attribute."""
        if self.has(index):
            return list(self.known(index).reshape(-1).tolist())
        found = self.attr(attribute) if attribute else None
        return None if found is None else list(found)

    def refuse(self, why: str) -> NoReturn:
        """Raises that this node has no form here."""
        raise CaptureError(f"ONNX node {describe(self.node)} can't be captured: {why}.")


def describe(node: ir.Node) -> str:
    """``'node_name' (Gemm)``."""
    return f"{node.name or node.outputs[0].name!r} ({kind_of(node)})"


def kind_of(node: ir.Node) -> str:
    """The operator, with its domain unless it is ONNX's own."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def as_tensor(value: Value) -> Tensor:
    """A known value as a tensor of the graph."""
    if isinstance(value, Tensor):
        return value
    if value.dtype != object:
        return torch.tensor(value.tolist(), dtype=torch.from_numpy(np.empty(0, value.dtype)).dtype)
    sizes = [torch.full((), size, dtype=torch.int64) for size in value.reshape(-1).tolist()]
    return torch.stack(sizes).reshape(value.shape)


def read_tensor(stored: ir.TensorProtocol) -> Tensor:
    """A tensor of the file: read, and copied once, now."""
    array = stored.numpy()
    if stored.dtype in _BITS:
        carrier, dtype = _BITS[stored.dtype]
        return torch.from_numpy(np.array(array).view(carrier)).view(dtype)
    if array.dtype.kind not in "fiub":
        raise CaptureError(
            f"tensor {stored.name!r} of the file holds {stored.dtype}, which can't be captured."
        )
    if int(stored.dtype) not in DTYPES:  # four-bit codes and wide unsigned ones
        array = array.astype(np.int64 if array.dtype.itemsize > 1 else np.int8)
    return torch.from_numpy(np.array(array))
