"""Makes operators keep the row dimension whatever its size."""

from __future__ import annotations

import torch
from torch import fx

from ..optimizer.ir.pattern import argument, is_op

_aten = torch.ops.aten


def keep_rows(graph: fx.Graph) -> None:
    """Lets each squeeze remove the dimensions it removed in the example, and no others.

    ``x.squeeze()`` also removes the row dimension of a batch of one, where many models fail or
    return something else; ``x.squeeze(d)`` does nothing where the size isn't one, for which ONNX
    has no operator.
    """
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
