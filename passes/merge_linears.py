"""merge-linears: linears over one input as one wider linear."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Program, Rewriter, facts_of, set_precision, site_of
from ..optimizer.ir.pattern import argument, dtype_of, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class MergeLinears(Pass):
    """Replaces narrow linears over one input by one wider linear, split into their columns.

    Method: horizontal fusion: gates of a mixture of experts, heads, projections of one value.
    Exact because: every column is the same product. Kernels may sum a wider product in another
    order.
    Pays because: ONNX Runtime's kernels fill ``tile`` columns at a time, so 3 gates of 4 columns
    cost as much as 48. One thread, K = 480, batch 1, 64, 512: 3 times 4 columns 1.10, 1.66, 1.98
    times as fast merged; 3 times 24 1.04, 1.13, 1.15. Where no tile is saved the split only costs:
    8 times 64 columns 1.06, 1.00, 0.97, and 8 times 256 with their ReLUs 1.07, 0.99, 0.94; nor does
    one tile of 245 pay (MaskNet's masks, 5 times 780 columns: the model 0.92 times as fast at 512).
    So only linears with a tile that isn't full are merged, and only if that saves ``min_saved`` of
    their tiles.
    Requires: CANONICAL.
    Misses when: there are fewer than ``min_group``, too few tiles are saved, the formats placed on
    them differ, a weight is read elsewhere too, or K is less than ``min_inputs``.
    """

    name: ClassVar[str] = "merge-linears"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    min_group: int = 2
    min_inputs: int = 32
    tile: int = 16
    min_saved: float = 0.05

    def run(self, program: Program, ctx: PassContext) -> None:
        """Merges in graph order."""
        rw = ctx.rewriter(program)
        siblings: dict[object, list[fx.Node]] = {}
        for node in program.graph.find_nodes(op="call_function", target=_aten.linear.default):
            if is_plain_linear(node):
                siblings.setdefault((node.args[0], dtype_of(node)), []).append(node)
        read = _readers(program)
        for linears in siblings.values():
            narrow = [node for node in linears if _width(node) % self.tile]
            if len(narrow) < self.min_group:
                continue
            alone = [node for node in narrow if read[str(node.args[1].target)] == 1]  # type: ignore[union-attr]
            if len(alone) < len(narrow):
                ctx.missed(
                    "its weight is read elsewhere too", *(n for n in narrow if n not in alone)
                )
            self._merge(rw, ctx, [node for node in alone if rw.site(node)])

    def _merge(self, rw: Rewriter, ctx: PassContext, linears: Sequence[fx.Node]) -> None:
        if len(linears) < self.min_group:
            return
        if len({facts_of(node).precision for node in linears}) > 1:
            ctx.missed("the formats placed on linears over one input differ", *linears)
        elif int(shape_of(linears[0].args[0])[-1]) < self.min_inputs:
            ctx.missed("it has too few inputs for a wider product to pay", *linears)
        elif self._saved([_width(node) for node in linears]) < self.min_saved:
            ctx.missed("merged they would take about as many tiles of columns", *linears)
        else:
            sites = [site_of(node) for node in linears]
            _emit(rw, linears)
            ctx.applied(f"merged {len(sites)} linears over one input", *sites)

    def _saved(self, widths: Sequence[int]) -> float:
        """The share of the tiles that merging saves."""
        apart = sum(-(-width // self.tile) for width in widths)
        return 1.0 - -(-sum(widths) // self.tile) / apart


def _width(linear: fx.Node) -> int:
    return int(shape_of(linear.args[1])[0])


def _readers(program: Program) -> dict[str, int]:
    """How many nodes read each parameter."""
    readers: dict[str, int] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    return readers


def _emit(rw: Rewriter, linears: Sequence[fx.Node]) -> None:
    first = linears[0]
    weights = [rw.program.tensor(str(node.args[1].target)) for node in linears]  # type: ignore[union-attr]
    biases = [_bias(rw, node, weight) for node, weight in zip(linears, weights, strict=True)]
    base = str(first.args[1].target).replace(".", "_")  # type: ignore[union-attr]
    arguments = [first.args[0], rw.parameter(f"{base}_merged", torch.cat(weights))]
    if any(argument(node, 2, "bias") is not None for node in linears):
        arguments.append(rw.parameter(f"{base}_merged_bias", torch.cat(biases)))
    with rw.before(first):
        merged = rw.emit(_aten.linear.default, *arguments, like=linears)
        set_precision(merged, facts_of(first).precision)
        sizes = [len(weight) for weight in weights]
        parts = rw.emit(_aten.split_with_sizes.default, merged, sizes, -1, like=linears)
        columns = [
            rw.emit(operator.getitem, parts, index, like=node) for index, node in enumerate(linears)
        ]
    for node, column in zip(linears, columns, strict=True):
        rw.replace(node, column)


def _bias(rw: Rewriter, linear: fx.Node, weight: Tensor) -> Tensor:
    bias = argument(linear, 2, "bias")
    return weight.new_zeros(len(weight)) if bias is None else rw.program.tensor(str(bias.target))
