from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(6, 3, 4)
#: Constants are folded, as they are before the pass in a pipeline.
_PASSES = "fold-constants,raise-linears,eliminate"


class Product(nn.Module):
    """``body(x, weight, bias)`` with a weight ``[4, 5]``, summed."""

    def __init__(self, body: Callable[..., Tensor], *sizes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(sizes or (4, 5)))
        self.bias = nn.Parameter(torch.randn(5))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x, self.weight, self.bias)).flatten(1).sum(1)


class Linear(Product):
    """What a product becomes: the weight is turned already."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__(body)
        self.weight = nn.Parameter(self.weight.T.contiguous())


def raised(body: Callable[..., Tensor], x: Tensor = X, *sizes: int) -> Ran:
    return run_passes(canonical(Product(body, *sizes), x), _PASSES)


@pytest.mark.parametrize(
    ("before", "expected", "x"),
    [
        (lambda x, w, b: x @ w, lambda x, w, b: F.linear(x, w), X),
        (lambda x, w, b: torch.mm(x, w), lambda x, w, b: F.linear(x, w), X[:, 0]),
        (lambda x, w, b: torch.addmm(b, x, w), F.linear, X[:, 0]),
        (
            lambda x, w, b: w.T @ x.unsqueeze(2),
            lambda x, w, b: F.linear(x.unsqueeze(2).squeeze(2), w).unsqueeze(2),
            X[:, 0],
        ),
    ],
    ids=["matmul", "mm", "addmm", "column"],
)
def test_before_and_expected(
    before: Callable[..., Tensor], expected: Callable[..., Tensor], x: Tensor
) -> None:
    ran = raised(before, x)
    assert_same_graph(ran.program, Linear(expected), (x,), tolerance=BIT_EQUAL)
    assert ran.applied("raise-linears") == ["wrote 1 products with parameters as linears"]


@pytest.mark.parametrize(
    "body",
    [
        lambda x, w, b: torch.tensordot(x, w, dims=([2], [0])),
        lambda x, w, b: torch.einsum("bnk,ko->bno", x, w),
        lambda x, w, b: torch.einsum("bnk,ko->bon", x, w),
    ],
    ids=["tensordot", "einsum", "einsum, turned"],
)
def test_other_ways_to_write_it(body: Callable[..., Tensor]) -> None:
    ran = raised(body)
    assert ran.outcomes[1] is Outcome.CHANGED
    targets = [node.target for node in ran.program.graph.nodes]
    assert torch.ops.aten.linear.default in targets


@pytest.mark.parametrize(
    ("body", "sizes", "reasons"),
    [
        (lambda x, w, b: x.unsqueeze(2) @ w, (3, 4, 5), ["its parameter isn't a matrix"]),
        (lambda x, w, b: torch.addmm(x[:, 0] @ w, x[:, 1], w), (), ["what it adds isn't a bias"]),
        (lambda x, w, b: x @ x.transpose(1, 2), (), []),
        (lambda x, w, b: w.T[:, :3] @ x, (), []),
        (lambda x, w, b: w[:, 0][None] @ x.transpose(1, 2)[:, :, :1], (), []),
    ],
    ids=["a matrix per row", "a sum", "no parameter", "from the left", "one number"],
)
def test_near_misses(body: Callable[..., Tensor], sizes: tuple[int, ...], reasons: list) -> None:
    ran = raised(body, X, *sizes)
    assert ran.missed("raise-linears") == reasons
    kept = {torch.ops.aten.matmul.default, torch.ops.aten.addmm.default}
    assert kept & {node.target for node in ran.program.graph.nodes}
