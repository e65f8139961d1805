"""FLOPs and bytes of a program, per node, and roofline time on a target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ..formats import LINEAR, UNPLACED
from ..ir.operators import lookup_of, traits_of
from ..ir.ops import DEQUANTIZE, QUANTIZE
from ..ir.pattern import is_op, size_at
from ..ir.program import Program
from ..ir.traits import Flops
from ..target import Target

_aten = torch.ops.aten
#: What linears in formats are, by operator, dtype of the codes and whether blocks have scales.
_WRITTEN = {
    (data.operator, data.weight.torch, data.block > 0): name for name, data in LINEAR.items()
}
_OPERATORS = frozenset(operator for operator, _, _ in _WRITTEN)


@dataclass(frozen=True)
class Cost:
    """What a node costs at one batch size.

    Attributes:
        flops: Multiplications and additions.
        nbytes: Bytes read and written, views excluded.
    """

    flops: float
    nbytes: float

    def seconds(self, target: Target, number_format: str) -> float:
        """Roofline time on the target: an estimate, not a measurement."""
        device = target.device
        compute = self.flops / device.peak(number_format)
        traffic = self.nbytes / (device.bandwidth * 1e9) if device.bandwidth else 0.0
        return max(compute, traffic)


def cost_of(node: fx.Node, batch: int) -> Cost:
    """The node's cost with every dynamic dimension at its multiple of ``batch``."""
    if node.op != "call_function" or not callable(node.target):
        return Cost(0.0, 0.0)
    flops = traits_of(node.target).flops
    if flops is Flops.FREE:
        return Cost(0.0, 0.0)
    outputs = list(_tensors(node.meta.get("val")))
    written = float(sum(_nbytes(value, batch) for value in outputs))
    elements = float(sum(_numel(value, batch) for value in outputs))
    if flops is Flops.CODED_LOOKUP:
        return Cost(0.0, written + _rows_of(node, batch))
    if flops is Flops.LOOKUP:
        return Cost(0.0, 2 * written)
    if _is_fused(node):
        return Cost(0.0, 0.0)
    inputs = [i for i in node.all_input_nodes if isinstance(i.meta.get("val"), Tensor)]
    read = sum(_read(i, batch) for i in inputs)
    return Cost(_flops(node, elements, batch), read + written)


def format_of(node: fx.Node) -> str:
    """The format a node computes in, by what it is: ``"fp32"`` unless it is a linear in another."""
    operator = str(node.target).rpartition(".")[0].rpartition(".")[2]
    if node.op != "call_function" or operator not in _OPERATORS:
        return UNPLACED
    weight, scale = node.args[1], node.args[2] if len(node.args) > 2 else None
    if is_op(node, _aten.linear.default):
        if not all(is_op(operand, DEQUANTIZE.op) for operand in node.args[:2]):
            return UNPLACED
        weight, scale = weight.args[:2]  # type: ignore[union-attr]
    codes = str(weight.meta["val"].dtype).removeprefix("torch.")  # type: ignore[union-attr]
    blocks = isinstance(scale, fx.Node) and scale.meta["val"].dim() > 1
    return _WRITTEN.get((operator, codes, blocks), UNPLACED)


def _is_fused(node: fx.Node) -> bool:
    """Whether kernels do it on the way: coding the input of a linear, widening looked-up rows."""
    if is_op(node, QUANTIZE.op):
        decoded = list(node.users)
        return all(is_op(user, DEQUANTIZE.op) for user in decoded) and all(
            is_op(reader, _aten.linear.default) for user in decoded for reader in user.users
        )
    if is_op(node, _aten._to_copy.default):
        return lookup_of(node.args[0]) is not None
    return False


def _read(source: fx.Node, batch: int) -> float:
    """Bytes of a value where it is read: codes are read as they are."""
    if is_op(source, DEQUANTIZE.op):
        source = source.args[0]  # type: ignore[assignment]
    return _nbytes(source.meta["val"], batch)


def _rows_of(node: fx.Node, batch: int) -> float:
    """Bytes of the coded rows that a lookup reads, with their scales and biases."""
    *parts, ids = (a.meta["val"] for a in node.args)  # type: ignore[union-attr]
    row = sum(prod(part.shape[1:]) * part.element_size() for part in parts)
    return _numel(ids, batch) * float(row)


def _flops(node: fx.Node, elements: float, batch: int) -> float:
    flops = traits_of(node.target).flops
    if flops is Flops.LINEAR:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        return 2.0 * elements * float(weight.meta["val"].shape[-1])
    if flops is Flops.PRODUCT:
        left = node.args[0]
        assert isinstance(left, fx.Node)
        return 2.0 * elements * size_at(left.meta["val"].shape[-1], batch)
    if flops is Flops.PAIRS:
        rows = node.args[0]
        assert isinstance(rows, fx.Node)
        return 2.0 * _numel(rows.meta["val"], batch) * float(rows.meta["val"].shape[1])
    return elements


def elements_of(node: fx.Node, batch: int) -> float:
    """How many numbers the node's value holds at one batch size."""
    return float(sum(_numel(value, batch) for value in _tensors(node.meta.get("val"))))


def nbytes_of(node: fx.Node, batch: int) -> float:
    """How many bytes the node's value, or the parameter it reads, takes at one batch size."""
    return float(sum(_nbytes(value, batch) for value in _tensors(node.meta.get("val"))))


def total(program: Program, batch: int) -> Cost:
    """The whole program's cost at one batch size."""
    costs = [cost_of(node, batch) for node in program.graph.nodes]
    return Cost(sum(c.flops for c in costs), sum(c.nbytes for c in costs))


def estimate(program: Program, target: Target, batch: int) -> float:
    """Roofline seconds of the whole program, each linear at the rate of the format it is in."""
    return sum(cost_of(n, batch).seconds(target, format_of(n)) for n in program.graph.nodes)


def size_of(program: Program) -> Size:
    """Nodes, parameters, bytes, and FLOPs per row."""
    nodes = sum(node.op == "call_function" for node in program.graph.nodes)
    parameters = sum(tensor.numel() for _, tensor in program.tensors())
    return Size(nodes, parameters, program.nbytes, total(program, 1).flops)


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _numel(value: Tensor, batch: int) -> float:
    return prod((size_at(size, batch) for size in value.shape), start=1.0)


def _nbytes(value: Tensor, batch: int) -> float:
    return _numel(value, batch) * value.element_size()


@dataclass(frozen=True)
class Size:
    """How big a program is."""

    nodes: int
    parameters: int
    nbytes: int
    flops: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)
