"""What computes each column of an output."""

from __future__ import annotations

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.ir import site_of
from rankc.optimizer.ir.heads import columns_of, elementwise
from torch import Tensor, fx, nn

X = torch.randn(5, 4)


class Heads(nn.Module):
    """Two heads; ``join`` makes the output of them."""

    def __init__(self, join) -> None:
        super().__init__()
        self.head, self.kd_head = nn.Linear(4, 1), nn.Linear(4, 2)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.head(x), self.kd_head(x))


def output_of(join) -> fx.Node:
    program = capture(Heads(join).eval(), (X,))
    (output,) = program.graph.find_nodes(op="output")
    return output.args[0][0]


@pytest.mark.parametrize(
    ("join", "steps", "sites"),
    [
        (lambda a, b: torch.cat([a, b], 1), 0, ["head", "kd_head", "kd_head"]),
        (lambda a, b: torch.cat([b, a], -1).sigmoid(), 1, ["kd_head", "kd_head", "head"]),
        (lambda a, b: torch.stack([a.squeeze(1), b[:, 0]], 1), 0, ["squeeze", "select"]),
    ],
    ids=["cat", "sigmoid of cat", "stack"],
)
def test_columns_of_joined_heads(join, steps: int, sites: list[str]) -> None:
    output = output_of(join)
    assert len(elementwise(output)) == steps
    found = [site_of(node) for node in columns_of(output)]
    assert all(site.startswith(known) for site, known in zip(found, sites, strict=True))


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.cat([a, b], 1).softmax(1),
        lambda a, b: torch.cat([a, b], 1) * a,
        lambda a, b: b,
    ],
    ids=["softmax mixes them", "a product", "one linear"],
)
def test_columns_that_nothing_computes_alone(join) -> None:
    output = output_of(join)
    assert set(columns_of(output)) == {output}
