"""From what torch.export records to core ATen, without tracing again where that isn't needed.

``run_decompositions`` traces the whole graph anew, which takes twice as long as the export itself
(18 s of 32 for 3,338 nodes). Most ranking models need a handful of rewrites that one node at a time
can do; only graphs with another composite operator, or one that writes, are traced again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..optimizer.ir.torchapi import (
    HigherOrderOperator,
    OpOverload,
    core_decompositions,
    is_composite,
)

_aten = torch.ops.aten
#: The most products that are written out one by one.
_UNROLLED = 64
#: The longest dimension along which values are combined in steps of 1, 2, 4, ….
_SCANNED = 4096


def to_core(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program in core ATen, less the operators that are kept whole."""
    again = any(_writes(node) for node in exported.graph.nodes)
    if again:
        exported = _traced_again(exported)
    graph = exported.graph
    for node in list(graph.nodes):
        rewrite = _LOCAL.get(node.target) if node.op == "call_function" else None
        if rewrite is not None:
            rewrite(graph, node)
    graph.eliminate_dead_code()
    exported.graph_module.recompile()
    table = core_decompositions()
    composite = not again and any(_is_composite(node, table) for node in graph.nodes)
    return _traced_again(exported) if composite else exported


def _traced_again(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    traced: torch.export.ExportedProgram = exported.run_decompositions(core_decompositions())
    return traced


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _is_composite(node: fx.Node, table: Any) -> bool:
    if node.op != "call_function":
        return node.op == "call_module"
    if isinstance(node.target, HigherOrderOperator):
        return True
    if not isinstance(node.target, OpOverload):
        return False
    return node.target in table or is_composite(node.target)


def _becomes(graph: fx.Graph, node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(target, args, kwargs)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _vanishes(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def _to_dtype(graph: fx.Graph, node: fx.Node) -> None:
    source, dtype = node.args[:2]
    assert isinstance(source, fx.Node)
    if len(node.args) > 2 or node.kwargs:
        return
    if source.meta["val"].dtype is dtype:
        _vanishes(graph, node)
    else:
        _becomes(graph, node, _aten._to_copy.default, source, dtype=dtype)


def _squeeze(graph: fx.Graph, node: fx.Node) -> None:
    _becomes(graph, node, _aten.squeeze.dims, node.args[0], [node.args[1]])


def _flatten(graph: fx.Graph, node: fx.Node) -> None:
    value: Tensor = node.meta["val"]
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    source: Any = node.args[0]
    if sizes.count(-1) == 1 and source.meta["val"].is_contiguous():
        _becomes(graph, node, _aten.view.default, source, sizes)


def _dropout(graph: fx.Graph, node: fx.Node) -> None:
    if node.args[2] is False:
        _vanishes(graph, node)


def _cumprod(graph: fx.Graph, node: fx.Node) -> None:
    """One product after another over a dimension of fixed size; ONNX has no operator for it.

    torch multiplies in float64, this in the values' own type: a rounding per product.
    """
    source: Any = node.args[0]
    dim: Any = node.args[1]
    size = source.meta["val"].shape[dim]
    if not isinstance(size, int) or not 0 < size <= _UNROLLED or node.kwargs:
        return

    products = [_emit(graph, node, _aten.select.int, source, dim, 0)]
    for index in range(1, size):
        factor = _emit(graph, node, _aten.select.int, source, dim, index)
        products.append(_emit(graph, node, _aten.mul.Tensor, products[-1], factor))
    node.replace_all_uses_with(_emit(graph, node, _aten.stack.default, products, dim))
    graph.erase_node(node)


def _logcumsumexp(graph: fx.Graph, node: fx.Node) -> None:
    """Sums of exponentials that no exponential overflows or vanishes in.

    ONNX's translation takes the logarithm of running sums of ``exp(x)``: infinite from 89 on, and
    minus infinite below -104.
    """

    def added(one: fx.Node, other: fx.Node) -> fx.Node:
        """``log(exp(a) + exp(b))``; of two equal ones, infinite ones too, their distance is 0."""
        low = _emit(graph, node, _aten.minimum.default, one, other)
        high = _emit(graph, node, _aten.maximum.default, one, other)
        apart = _emit(graph, node, _aten.sub.Tensor, low, high)
        same = _emit(graph, node, _aten.eq.Tensor, low, high)
        none = _emit(graph, node, _aten.full_like.default, apart, 0.0)
        apart = _emit(graph, node, _aten.where.self, same, none, apart)
        below = _emit(
            graph, node, _aten.log1p.default, _emit(graph, node, _aten.exp.default, apart)
        )
        return _emit(graph, node, _aten.add.Tensor, high, below)

    result = _running(graph, node, added)
    if result is not None:
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _running_extreme(graph: fx.Graph, node: fx.Node) -> None:
    """The largest or the least value so far, where nobody asks for its place."""
    parts = list(node.users)
    if any(part.users and (part.target, part.args[1]) != (operator.getitem, 0) for part in parts):
        return
    larger = node.target is _aten.cummax.default
    target = _aten.maximum.default if larger else _aten.minimum.default
    result = _running(graph, node, lambda one, other: _emit(graph, node, target, one, other))
    if result is None:
        return
    for part in parts:
        part.replace_all_uses_with(result)
        graph.erase_node(part)
    graph.erase_node(node)


def _running(
    graph: fx.Graph, node: fx.Node, combined: Callable[[fx.Node, fx.Node], fx.Node]
) -> fx.Node | None:
    """What an associative function makes of all values up to each; None if that isn't written out.

    Combines each value with the one before, then with the one two before, then four: a logarithm of
    the size in steps (Hillis and Steele, "Data parallel algorithms", 1986).
    """
    value: Any = node.args[0]
    shape = value.meta["val"].shape
    if not shape:
        return None
    dim: Any = node.args[1]
    size = shape[dim]
    if not isinstance(size, int) or not 0 < size <= _SCANNED or node.kwargs:
        return None
    step = 1
    while step < size:
        first = _emit(graph, node, _aten.slice.Tensor, value, dim, 0, step)
        early = _emit(graph, node, _aten.slice.Tensor, value, dim, 0, size - step)
        late = _emit(graph, node, _aten.slice.Tensor, value, dim, step, size)
        value = _emit(graph, node, _aten.cat.default, [first, combined(late, early)], dim)
        step *= 2
    return value  # type: ignore[no-any-return]


def _copy(graph: fx.Graph, node: fx.Node) -> None:
    """A value spread over the place it is written to, which ONNX's translation forgets."""
    into: Any = node.args[0]
    source: Any = node.args[1]
    place, value = into.meta["val"], source.meta["val"]
    if list(map(str, place.shape)) == list(map(str, value.shape)):
        return
    sizes = [
        size if isinstance(size, int) else _emit(graph, node, _aten.sym_size.int, into, dim)
        for dim, size in enumerate(place.shape)
    ]
    spread = _emit(graph, node, _aten.expand.default, source, sizes)
    node.args = (into, spread, *node.args[2:])


def _where(graph: fx.Graph, node: fx.Node) -> None:
    """A choice between truths as logic: ONNX Runtime's Where takes only numbers."""
    asked, first, second = node.args
    if node.meta["val"].dtype is not torch.bool:
        return
    yes = _emit(graph, node, _aten.logical_and.default, asked, first)
    no = _emit(graph, node, _aten.logical_not.default, asked)
    no = _emit(graph, node, _aten.logical_and.default, no, second)
    node.replace_all_uses_with(_emit(graph, node, _aten.logical_or.default, yes, no))
    graph.erase_node(node)


def _emit(graph: fx.Graph, like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A new operator in front of ``like``, from the same line of the model."""
    with graph.inserting_before(like):
        new = graph.call_function(target, args)
    new.meta = dict(like.meta)
    new.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
    return new


_LOCAL: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    _aten.to.dtype: _to_dtype,
    _aten.squeeze.dim: _squeeze,
    _aten.flatten.using_ints: _flatten,
    _aten.dropout.default: _dropout,
    _aten.detach.default: _vanishes,
    _aten.cumprod.default: _cumprod,
    _aten.logcumsumexp.default: _logcumsumexp,
    _aten.cummax.default: _running_extreme,
    _aten.cummin.default: _running_extreme,
    _aten.copy.default: _copy,
    _aten.where.self: _where,
}
