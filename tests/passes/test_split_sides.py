from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from rankc.optimizer.requests.request import as_request
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, operators, run_passes
from torch import Tensor, nn
from torch.nn import functional as F

USER, ITEM, HISTORY = torch.randn(6, 24), torch.randn(6, 8), torch.randn(6, 5, 16)


def split(module: nn.Module, *inputs: Tensor, passes: str = "split-sides") -> Ran:
    """A model of a user and an item after the pass, the user's part having been shared."""
    program = as_request(canonical(module, *inputs), ("user",))
    return run_passes(program, f"share-user-side,{passes}")


def weights(ran: Ran) -> list[list[int]]:
    linears = [n for n in ran.program.graph.nodes if str(n.target) == "aten.linear.default"]
    return [list(n.args[1].meta["val"].shape) for n in linears]


class Joined(nn.Module):
    """A linear over what ``join`` makes of user and item."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.join, self.linear = join, nn.Linear(width, 4)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.linear(self.join(user, item)).tanh().flatten(1).sum(1)


class Apart(nn.Module):
    """What a linear over a concatenation becomes: a linear of each, the user's with the bias."""

    def __init__(self, joined: Joined) -> None:
        super().__init__()
        weight = joined.linear.weight.detach()
        self.of_user = nn.Parameter(weight[:, :24].clone())
        self.of_item = nn.Parameter(weight[:, 24:].clone())
        self.bias = joined.linear.bias

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        item = F.linear(item, self.of_item)
        return (item + F.linear(user, self.of_user, self.bias)).tanh().sum(1)


def test_before_and_expected() -> None:
    before = Joined(lambda user, item: torch.cat([user, item], 1), 32)
    ran = split(before, USER, ITEM)
    assert ran.outcomes[1] is Outcome.CHANGED
    assert ran.applied("split-sides") == ["split 1 linears by how often their columns repeat"]
    expected = as_request(canonical(Apart(before), USER, ITEM), ("user",))
    expected = run_passes(expected, "share-user-side").program
    assert operators(ran.program) == operators(expected)
    assert weights(ran) == [[4, 8], [4, 24]]
    kept = [ran.program.tensor(name) for name, _ in ran.program.tensors() if "part" in name]
    assert any(torch.equal(part, before.linear.weight[:, :24]) for part in kept)
    assert any(torch.equal(part, before.linear.weight[:, 24:]) for part in kept)


def test_target_attention_multiplies_pairs_only_where_there_are_pairs() -> None:
    """DIN's first layer over ``[q, h, q - h, q * h]``: a quarter of its columns see every pair."""

    def pairs(user: Tensor, item: Tensor) -> Tensor:
        query = item.unsqueeze(1).expand(-1, user.shape[1], -1)
        return torch.cat([query, user, query - user, query * user], -1)

    ran = split(Joined(pairs, 64), HISTORY, torch.randn(6, 16))
    assert weights(ran) == [[4, 16], [4, 16], [4, 16]]
    assert "cat" not in operators(ran.program)


def test_few_columns_are_a_miss() -> None:
    ran = split(Joined(lambda user, item: torch.cat([user[:, :8], item], 1), 16), USER, ITEM)
    assert ran.outcomes[1] is Outcome.UNCHANGED
    assert ran.missed("split-sides") == ["too few of its columns repeat along rows"]
    few = Joined(lambda user, item: torch.cat([user[:, :8], item], 1), 16)
    ran = split(few, USER, ITEM, passes="split-sides{min_columns=8}")
    assert ran.outcomes[1] is Outcome.CHANGED


@pytest.mark.parametrize(
    "join",
    [
        lambda user, item: torch.cat([user[:, :8], item], 1).tanh(),
        lambda user, item: torch.stack([user[:, :16], item.repeat(1, 2)], 1),
        lambda user, item: user[:, :8] * item,
    ],
)
def test_what_is_no_plain_concatenation_of_columns_stays(
    join: Callable[[Tensor, Tensor], Tensor],
) -> None:
    width = join(USER, ITEM).shape[-1]
    ran = split(Joined(join, width), USER, ITEM, passes="split-sides{min_columns=1}")
    assert ran.outcomes[1] is Outcome.UNCHANGED


def test_flat_rows_stay_as_they_are() -> None:
    module = Joined(lambda user, item: torch.cat([user, item], 1), 32)
    ran = run_passes(canonical(module, USER, ITEM), "split-sides")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert_same_graph(ran.program, module, (USER, ITEM), tolerance=BIT_EQUAL)
