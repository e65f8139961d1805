from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

#: Rows of x and of h, columns, and maps.
M, H, D, MAPS = 4, 3, 5, 2
X = torch.randn(6, M, D)


class Layer(nn.Module):
    """``body(x, h, convolution)``, where h has other rows than x, summed."""

    def __init__(self, body: Callable[..., Tensor], channels: int = M * H, size: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv1d(channels, MAPS, size)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x[:, :H])
        return torch.relu(self.body(torch.relu(x), hidden, self.convolution)).sum((1, 2))


class Flat(Layer):
    """The layer as a linear."""

    def __init__(self) -> None:
        super().__init__(_flat)
        weight = self.convolution.weight[..., 0]
        self.convolution.weight = nn.Parameter(weight.detach().contiguous())


def _flat(x: Tensor, h: Tensor, convolution: nn.Conv1d) -> Tensor:
    products = x.transpose(1, 2).unsqueeze(3) * h.transpose(1, 2).unsqueeze(2)
    rows = products.reshape(-1, D, M * H)
    return F.linear(rows, convolution.weight, convolution.bias).transpose(1, 2)


def _broadcast(x: Tensor, h: Tensor, convolution: nn.Module) -> Tensor:
    made: Tensor = convolution((x.unsqueeze(2) * h.unsqueeze(1)).flatten(1, 2))
    return made


def flattened(body: Callable[..., Tensor], **options: int) -> Ran:
    return run_passes(canonical(Layer(body, **options), X), "flatten-cin")


def test_before_and_expected() -> None:
    ran = flattened(_broadcast)
    assert_same_graph(ran.program, Flat(), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("flatten-cin") == [
        "computed a layer of a compressed interaction network by a linear"
    ]


@pytest.mark.parametrize(
    "body",
    [
        lambda x, h, c: c(torch.einsum("bhd,bmd->bhmd", h, x).reshape(-1, H * M, D)),
        lambda x, h, c: c((h.unsqueeze(2) * x.unsqueeze(1)).flatten(1, 2)),
    ],
    ids=["einsum", "hidden first"],
)
def test_other_ways_to_write_it(body: Callable[..., Tensor]) -> None:
    program = canonical(Layer(body), X)
    ran = run_passes(program, "flatten-cin")
    targets = {node.target for node in ran.program.graph.nodes}
    assert torch.ops.aten.linear.default in targets
    assert torch.ops.aten.conv1d.default not in targets
    assert torch.ops.aten.convolution.default not in targets


def _half(x: Tensor, h: Tensor, convolution: nn.Module) -> Tensor:
    made: Tensor = convolution((x.unsqueeze(2) * h.unsqueeze(1)).flatten(1, 2)[:, : M * H // 2])
    return made


def _repeated_row(x: Tensor, h: Tensor, convolution: nn.Module) -> Tensor:
    rows = torch.cat([h[:, :2], h[:, :1]], 1)
    made: Tensor = convolution((x.unsqueeze(2) * rows.unsqueeze(1)).flatten(1, 2))
    return made


@pytest.mark.parametrize(
    ("body", "options", "reasons"),
    [
        (
            _repeated_row,
            {},
            ["the convolution reads but some of the products of two rows"],
        ),
        (
            lambda x, h, c: c(x * torch.sigmoid(x.mean(2, keepdim=True))),
            {"channels": M},
            ["the convolution's channels aren't products of two rows"],
        ),
        (_half, {"channels": M * H // 2}, []),
        (_broadcast, {"size": 2}, []),
        (lambda x, h, c: c(torch.relu(x)), {"channels": M}, []),
    ],
    ids=["a row twice", "gated", "half", "neighbours", "no product"],
)
def test_near_misses(body: Callable[..., Tensor], options: dict, reasons: list[str]) -> None:
    ran = flattened(body, **options)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("flatten-cin") == reasons


def test_is_left_alone_on_gpus() -> None:
    ran = run_passes(canonical(Layer(_broadcast), X), "flatten-cin", target="h100-fp8")
    assert ran.outcomes == [Outcome.SKIPPED]
    assert ran.missed("flatten-cin") == ["it was measured on CPUs only"]
