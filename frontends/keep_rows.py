"""Makes operators keep the row dimension whatever its size."""

from __future__ import annotations

import torch
from torch import fx

from ..optimizer.ir.pattern import argument, is_op

_aten = torch.ops.aten


def keep_rows(graph: fx.Graph) -> None:
    """Lets each squeeze remove the dimensions it removed in the example, and keeps rows together.

    ``x.squeeze()`` also removes the row dimension of a batch of one, where many models fail or
    return something else; ``x.squeeze(d)`` does nothing where the size isn't one, for which ONNX
    has no operator. A split of the rows that gave one piece in the example, as of a batch norm over
    virtual batches, gives all rows: in eval mode the pieces don't matter, which is checked.
    """
    _join_rows(graph)
    for node in list(graph.nodes):
        if not is_op(node, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims):
            continue
        source = node.args[0]
        sizes = source.meta["val"].shape
        asked = argument(node, 1, "dim")
        if asked is None:
            asked = range(len(sizes))
        elif isinstance(asked, int):
            asked = [asked]
        ones = (d % len(sizes) for d in asked if len(sizes))
        dims = sorted({d for d in ones if isinstance(sizes[d], int) and sizes[d] == 1})
        if len(dims) != len(sizes) - node.meta["val"].dim():
            continue
        if dims:
            node.target, node.args, node.kwargs = _aten.squeeze.dims, (source, dims), {}
        else:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _join_rows(graph: fx.Graph) -> None:
    """Removes splits into one piece along a dimension whose size isn't fixed."""
    for node in list(graph.nodes):
        if not is_op(node, _aten.split.Tensor, _aten.chunk.default, _aten.split_with_sizes.default):
            continue
        source, dim = node.args[0], argument(node, 2, "dim", 0)
        if len(node.meta["val"]) != 1 or isinstance(source.meta["val"].shape[dim], int):
            continue
        for piece in list(node.users):
            piece.replace_all_uses_with(source)
            graph.erase_node(piece)
        graph.erase_node(node)
