"""What only has an effect goes."""

from __future__ import annotations

import torch
from rankc.frontends.origins import drop_effects
from torch import fx, nn


def test_writes_and_checks_are_dropped() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.ops.aten.copy_.default, (x, x))
    graph.call_function(torch.ops.aten._assert_tensor_metadata.default, (x,))
    kept = graph.call_function(torch.ops.aten.relu.default, (x,))
    graph.output((kept,))
    module = fx.GraphModule(nn.Module(), graph)
    drop_effects(module)
    assert [n.target for n in module.graph.nodes if n.op == "call_function"] == [kept.target]
