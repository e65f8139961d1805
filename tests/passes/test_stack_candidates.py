from __future__ import annotations

import torch
from rankc.optimizer.report.records import Outcome
from rankc.optimizer.requests.request import as_request
from support import Ran, canonical, operators, run_passes
from torch import Tensor, nn

HISTORY, ITEM = torch.randn(6, 5, 8), torch.randn(6, 8)


class Attention(nn.Module):
    """A candidate that attends to a history in two heads; `keys` of them for the history."""

    def __init__(self, keys: int = 2) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        query = item.view(-1, 2, 1, 4)
        keys = user.view(-1, 5, self.keys, 8 // self.keys)[..., :4].transpose(1, 2)
        return (query @ keys.transpose(2, 3)).flatten(1).sum(1)


class OneHead(nn.Module):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (item.unsqueeze(1) @ user.transpose(1, 2)).flatten(1).sum(1)


def stacked(module: nn.Module) -> Ran:
    program = as_request(canonical(module, HISTORY, ITEM), ("user",))
    return run_passes(program, "share-user-side,stack-candidates")


def test_before_and_expected() -> None:
    for module in (Attention(), OneHead()):
        ran = stacked(module)
        assert ran.outcomes[1] is Outcome.CHANGED
        found = operators(ran.program)
        assert "matmul" not in found
        assert found.count("rankc.request_matmul.default") == 1
        said = ["stacked the candidates of 1 products with a shared matrix"]
        assert ran.applied("stack-candidates") == said


def test_heads_that_differ_are_a_miss() -> None:
    ran = stacked(Attention(keys=1))
    assert ran.outcomes[1] is Outcome.UNCHANGED
    said = ["the heads of a product with a shared matrix differ"]
    assert ran.missed("stack-candidates") == said


def test_flat_rows_keep_their_products() -> None:
    ran = run_passes(canonical(Attention(), HISTORY, ITEM), "stack-candidates")
    assert ran.outcomes == [Outcome.UNCHANGED]
