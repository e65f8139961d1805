"""FLOPs and bytes of a program, per node, and roofline time on a target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ..ir.facts import facts_of
from ..ir.pattern import size_at
from ..ir.program import Program
from ..report import Size
from ..target import Target

_aten = torch.ops.aten
_LOOKUPS = (
    _aten.embedding.default,
    torch.ops.rankc.rowwise_embedding.default,
    torch.ops.rankc.rowwise_embedding4.default,
)
_LINEARS = (
    _aten.linear.default,
    torch.ops.rankc.rowwise_linear.default,
    torch.ops.rankc.half_linear.default,
    torch.ops.rankc.coded_linear.default,
)
_INTERACTION = torch.ops.rankc.dot_interaction.default
_PRODUCTS = (
    _aten.bmm.default,
    _aten.mm.default,
    _aten.matmul.default,
    torch.ops.rankc.request_matmul.default,
)
#: Views; and codes decoded, which kernels of low formats read as they are.
_FREE = frozenset(
    {
        _aten.view.default,
        _aten.reshape.default,
        _aten.unsqueeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.transpose.int,
        _aten.permute.default,
        _aten.expand.default,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.unbind.int,
        _aten.sym_size.int,
        torch.ops.rankc.dequantize.default,
    }
)


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
    if node.op != "call_function" or node.target in _FREE or not callable(node.target):
        return Cost(0.0, 0.0)
    outputs = list(_tensors(node.meta.get("val")))
    written = float(sum(_nbytes(value, batch) for value in outputs))
    elements = float(sum(_numel(value, batch) for value in outputs))
    if node.target in _LOOKUPS:
        return Cost(0.0, 2 * written)
    inputs = [i for i in node.all_input_nodes if isinstance(i.meta.get("val"), Tensor)]
    read = float(sum(_nbytes(i.meta["val"], batch) for i in inputs))
    return Cost(_flops(node, elements, batch), read + written)


def _flops(node: fx.Node, elements: float, batch: int) -> float:
    if node.target in _LINEARS:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        return 2.0 * elements * float(weight.meta["val"].shape[-1])
    if node.target in _PRODUCTS:
        left = node.args[0]
        assert isinstance(left, fx.Node)
        return 2.0 * elements * size_at(left.meta["val"].shape[-1], batch)
    if node.target is _INTERACTION:
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
    """Roofline seconds of the whole program, each linear at the rate of its placed format."""
    seconds = 0.0
    for node in program.graph.nodes:
        precision = facts_of(node).precision
        number_format = precision.format if precision else "fp32"
        seconds += cost_of(node, batch).seconds(target, number_format)
    return seconds


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
