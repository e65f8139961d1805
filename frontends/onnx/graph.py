"""An ONNX graph as a torch module: each node becomes the torch calls that mean the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from ...optimizer.errors import CaptureError
from .call import Call, Known, Value, describe, kind_of, read_tensor
from .layers import LAYERS
from .math import MATH
from .moves import MOVES
from .sizes import fold

OPERATORS: dict[str, Callable[[Call], Any]] = {**LAYERS, **MATH, **MOVES}
#: Attributes and modules of the file's tensors are below this name.
STORE = "stored"
#: Where a node's origin travels while torch traces.
ORIGIN = "rankc_onnx_origin"
#: Tensors of at most this many integers may be sizes, and are known while capturing.
_SIZES = 64
_REMEDIES = {
    "Loop": "an EmbeddingBag or a Python loop was written as a Loop; look ids up with Embedding "
    "and pool them with a masked sum before exporting, or capture the torch model itself",
    "Scan": "a recurrence was written as a Scan; capture the torch model itself",
    "If": "a branch on a tensor's values; export with the branch decided, or use Where",
    "NonZero": "the number of its results depends on the data; use a mask and Where",
}


class OnnxGraph(nn.Module):
    """Runs an ONNX graph with torch; takes its inputs in order, returns its outputs as a tuple."""

    def __init__(self, model: ir.Model) -> None:
        """Reads the file's tensors, each once; the graph's own are let go."""
        super().__init__()
        self.graph = model.graph
        self.opsets = dict(model.opset_imports)
        self.known: dict[ir.Value, Known] = {}
        self.bias_of: dict[ir.Node, ir.Value] = {}
        self.absorbed: dict[ir.Node, int] = {}
        self.places: dict[ir.Value, str] = {}
        self.flipped: dict[ir.Value, str] = {}
        check_operators(self.graph)
        setattr(self, STORE, nn.Module())
        for value, stored in _stored(self.graph):
            self._store(value, read_tensor(stored))
            value.const_value = None
        for node in self.graph:
            self._plan_bias(node)

    def _store(self, value: ir.Value, tensor: Tensor) -> None:
        if tensor.dtype is torch.float32 and tensor.dim() == 0:
            self.known[value] = tensor.numpy().copy()
        whole = tensor.dtype in (torch.int64, torch.int32, torch.bool)
        if whole and tensor.dim() <= 1 and tensor.numel() <= _SIZES:
            self.known[value] = tensor.numpy().copy()
        uses = list(value.uses())
        products = [use for use in uses if _is_right_factor(*use)]
        name = value.name or "tensor"
        if tensor.dim() == 2 and products:
            turned = name if len(products) == len(uses) else f"{name}_transposed"
            self.flipped[value] = self._register(turned, tensor.t().contiguous())
            if len(products) == len(uses):
                return
        self.places[value] = self._register(name, tensor)

    def _register(self, name: str, tensor: Tensor) -> str:
        """Stores a tensor under its own name, made to fit Python; returns the path."""
        parts = [part for part in re.sub(r"[^\w.]", "_", name).split(".") if part] or ["tensor"]
        holder: nn.Module = getattr(self, STORE)
        path = []
        for part in parts[:-1]:
            while hasattr(holder, part) and not isinstance(getattr(holder, part), nn.Module):
                part += "_"
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
            path.append(part)
        last = parts[-1]
        while hasattr(holder, last):
            last += "_"
        holder.register_buffer(last, tensor)
        return ".".join([STORE, *path, last])

    def _plan_bias(self, node: ir.Node) -> None:
        """Finds an Add of a stored vector that follows a product, which is then a linear."""
        if node.op_type != "Add" or node.domain:
            return
        for index in (0, 1):
            product, bias = node.inputs[index], node.inputs[1 - index]
            made_by = product.producer() if product is not None else None
            if made_by is None or made_by.op_type != "MatMul" or bias not in self.places:
                continue
            weight = made_by.inputs[1]
            width = self._width(weight)
            vector = self._tensor(self.places[bias])
            alone = product is not None and len(product.uses()) == 1
            if alone and product not in self.graph.outputs and vector.shape == (width,):
                assert bias is not None
                self.bias_of[made_by] = bias
                self.absorbed[node] = index
                return

    def _width(self, weight: ir.Value | None) -> int | None:
        if weight in self.flipped:
            return int(self._tensor(self.flipped[weight]).shape[0])
        plain = _untransposed(weight)
        place = self.places.get(plain) if plain is not None else None
        return int(self._tensor(place).shape[0]) if place is not None else None

    def _tensor(self, place: str) -> Tensor:
        return self.get_buffer(place)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Computes the graph's outputs."""
        values: dict[ir.Value, Value] = dict(zip(self.graph.inputs, inputs, strict=True))
        weights = {value: self._tensor(place) for value, place in self.places.items()}
        turned = {value: self._tensor(place) for value, place in self.flipped.items()}
        values.update({value: tensor.t() for value, tensor in turned.items()})
        values.update(weights)
        values.update(self.known)
        for node in self.graph:
            with fx.traceback.annotate({ORIGIN: origin_of(node)}):
                self._run(node, values, weights, turned)
        results = []
        for index, output in enumerate(self.graph.outputs):
            value = values[output]
            tensor = weights.get(output, value)
            if not isinstance(tensor, Tensor):
                raise CaptureError(
                    f"output {output.name!r} (number {index}) of the file is a constant or a size, "
                    "not a score per row."
                )
            results.append(tensor)
        return tuple(results)

    def _run(
        self,
        node: ir.Node,
        values: dict[ir.Value, Value],
        weights: Mapping[ir.Value, Tensor],
        turned: Mapping[ir.Value, Tensor],
    ) -> None:
        if node.op_type == "Constant" and node.outputs[0] in values:
            return
        if node in self.absorbed:
            product = node.inputs[self.absorbed[node]]
            assert product is not None
            values[node.outputs[0]] = values[product]
            return
        bias = self.bias_of.get(node)
        plain = {index: _untransposed(value) for index, value in enumerate(node.inputs)}
        call = Call(
            node=node,
            inputs=[None if value is None else values[value] for value in node.inputs],
            weights=weights,
            transposed=turned,
            bias=None if bias is None else weights[bias],
            version=self.opsets.get(node.domain, 21),
            untransposed={
                index: _as_tensor_of(values[value], weights.get(value))
                for index, value in plain.items()
                if value is not None
            },
        )
        made: Any = fold(call)
        if made is None:
            made = _computed(call)
        several = made if isinstance(made, tuple) else (made,)
        values.update(zip(node.outputs, several, strict=False))


def _computed(call: Call) -> Any:
    try:
        return OPERATORS[kind_of(call.node)](call)
    except CaptureError:
        raise
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        raise CaptureError(
            f"ONNX node {describe(call.node)} can't be captured: {type(error).__name__}: {first}"
        ) from error


def _as_tensor_of(value: Value, weight: Tensor | None) -> Tensor:
    if weight is not None:
        return weight
    assert isinstance(value, Tensor)
    return value


def check_operators(graph: ir.Graph) -> None:
    """Raises unless every operator is known.

    Raises:
        CaptureError: The first node that isn't, and how many nodes of which kinds there are.
    """
    unknown = [node for node in graph if kind_of(node) not in OPERATORS]
    if not unknown:
        return
    kinds = Counter(kind_of(node) for node in unknown)
    counts = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
    remedy = next((_REMEDIES[kind] for kind in kinds if kind in _REMEDIES), None)
    remedy = remedy or "export the model without it, or capture the torch model itself"
    raise CaptureError(
        f"{len(unknown)} of {len(graph)} ONNX nodes can't be captured: {counts}. The first is "
        f"{describe(unknown[0])}. What to change: {remedy}."
    )


def origin_of(node: ir.Node) -> str:
    """The module of the user's that the node stems from, as far as the file tells."""
    told = node.metadata_props.get("rankc.origin")
    if told:
        return str(told)
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    if len(scopes) > 1:
        return str(scopes[-2])
    for value in node.inputs:
        name = (value.name or "") if value is not None and value.is_initializer() else ""
        if "." in name:
            return name.rpartition(".")[0]
    # Older exporters name nodes by their path: /top/top.0/Gemm.
    return (node.name or "").strip("/").rpartition("/")[0].rpartition("/")[2]


def _stored(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every tensor in the file, with the value that holds it."""
    for value in graph.initializers.values():
        if value.const_value is None:
            raise CaptureError(f"tensor {value.name!r} of the file has no data.")
        yield value, value.const_value
    for node in graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.outputs[0], node.attributes["value"].as_tensor()


def _is_right_factor(node: ir.Node, index: int) -> bool:
    """Whether an input is a product's second factor, to be stored as a linear's weight."""
    if index != 1 or node.domain:
        return False
    transposed = node.attributes.get("transB")
    plain = transposed is None or transposed.as_int() == 0
    if node.op_type == "Gemm":
        scaled = any(
            name in node.attributes and node.attributes[name].as_float() != 1.0
            for name in ("alpha", "beta")
        )
        offset = node.inputs[2] if len(node.inputs) > 2 else None
        vector = offset is None or (offset.shape is not None and len(offset.shape) == 1)
        return plain and not scaled and vector
    return node.op_type == "MatMul"


def _untransposed(value: ir.Value | None) -> ir.Value | None:
    """What a value is the transpose of: its last two dimensions swapped, or a GatherND's order."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return None
    return node.inputs[0]


def as_arrays(feeds: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors as ONNX Runtime takes them."""
    return {name: value.numpy() for name, value in feeds.items()}
