"""Where the elements of views come from."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.views import ViewTracer
from support import canonical
from torch import Tensor, nn


class Views(nn.Module):
    """A product of a transposed and reshaped value."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().transpose(1, 2).reshape(-1, 6).tanh()


def test_views_lead_back_to_what_was_computed() -> None:
    program = canonical(Views(), torch.randn(3, 2, 3))
    tracer = ViewTracer(program)
    (last,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default)
    source = tracer.source(last.args[0])
    assert source is not None
    assert source.base.target is torch.ops.aten.relu.default
    assert source.is_whole
    assert source.order == (0, 2, 1)
    assert tracer.transposes(last.args[0]) == 1
