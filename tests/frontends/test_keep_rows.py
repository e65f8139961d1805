"""The row dimension of a batch of one stays."""

from __future__ import annotations

import torch
from rankc.frontends.keep_rows import keep_rows
from torch import fx


def test_a_squeeze_names_the_dimensions_it_removes() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(3, 1, 4, 1)
    squeezed = graph.call_function(torch.ops.aten.squeeze.default, (x,))
    squeezed.meta["val"] = torch.zeros(3, 4)
    graph.output(squeezed)
    keep_rows(graph)
    assert squeezed.target is torch.ops.aten.squeeze.dims
    assert squeezed.args == (x, [1, 3])


def test_a_squeeze_of_nothing_goes() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(3, 2)
    squeezed = graph.call_function(torch.ops.aten.squeeze.dim, (x, 1))
    squeezed.meta["val"] = torch.zeros(3, 2)
    graph.output(squeezed)
    keep_rows(graph)
    assert not graph.find_nodes(op="call_function", target=torch.ops.aten.squeeze.dim)
