from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.report.records import Outcome
from rankc.optimizer.requests.request import as_request
from support import (
    BIT_EQUAL,
    Ran,
    assert_same_graph,
    canonical,
    capture_ragged,
    operators,
    run_passes,
)
from torch import Tensor, nn

USER, ITEM = torch.randn(6, 8), torch.randn(6, 8)


class Scored(nn.Module):
    """The user's rows through some operators, and a candidate's score from the result."""

    def __init__(self, of_user: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of_user = of_user

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.of_user(user) * item).sum(1)


def request(module: nn.Module, *inputs: Tensor) -> Program:
    return as_request(canonical(module, *inputs), ("user",))


def shared(module: nn.Module, *inputs: Tensor) -> Ran:
    return run_passes(request(module, *(inputs or (USER, ITEM))), "share-user-side")


def rows(ran: Ran, operator: str) -> list[list[str]]:
    """The shapes of the values of one operator."""
    found = [n for n in ran.program.graph.nodes if n.name.startswith(operator)]
    return [[str(size) for size in n.meta["val"].shape] for n in found]


def test_before_and_expected() -> None:
    """One row of the user meets the candidates in a product that broadcasts by itself."""
    ran = shared(Scored(lambda user: torch.tanh(user) + 1.0))
    assert ran.outcomes == [Outcome.CHANGED]
    assert operators(ran.program) == ["tanh", "add", "mul", "sum"]
    assert rows(ran, "tanh") == [["1", "8"]]
    assert ran.applied("share-user-side") == [
        "computed 2 operators once a request",
        "let 1 operators broadcast what is shared by themselves",
    ]


def test_flat_rows_keep_their_graph() -> None:
    """Without one row of something there is nothing to share."""
    program = canonical(Scored(torch.tanh), USER, ITEM)
    ran = run_passes(program, "share-user-side")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert_same_graph(ran.program, Scored(torch.tanh), (USER, ITEM), tolerance=BIT_EQUAL)


class Concatenated(nn.Module):
    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.cat([user.sigmoid(), item], dim=1).sum(1)


def test_where_no_operator_broadcasts_by_itself_rows_are_repeated() -> None:
    ran = shared(Concatenated())
    assert operators(ran.program)[:2] == ["sigmoid", "rankc.request_broadcast.default"]
    assert rows(ran, "sigmoid") == [["1", "8"]]


class History(nn.Module):
    """Keys and values of a history in heads, and a candidate that attends to them."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        keys = user.view(-1, 2, 2, 2).transpose(1, 2).tanh()
        query = item.view(-1, 2, 2, 2).transpose(1, 2)
        weights = torch.softmax(query @ keys.transpose(2, 3), -1)
        return (weights @ keys).flatten(1).sum(1)


def test_a_history_is_split_into_heads_once() -> None:
    ran = shared(History())
    assert rows(ran, "tanh") == [["1", "2", "2", "2"]]
    assert "rankc.request_broadcast.default" not in operators(ran.program)


@pytest.mark.parametrize(
    ("of_user", "reason"),
    [
        (lambda user: user * user.mean(0, keepdim=True), "it works across rows"),
        (lambda user: user @ user.t() @ user, "it combines rows with other rows"),
        (lambda user: user.flip(0), "it isn't known to keep rows apart"),
        (lambda user: user.cumsum(0), "it works across rows"),
        (lambda user: user[:1] + user, "it picks rows"),
        (lambda user: torch.cat([user, user])[: user.shape[0]], "it joins rows to other rows"),
    ],
)
def test_what_mixes_rows_is_a_miss(of_user: Callable[[Tensor], Tensor], reason: str) -> None:
    """Users of other rows would take part in the score: such a model isn't one of requests."""
    program = as_request(mixing(of_user), ("user",))
    ran = run_passes(program, "share-user-side")
    assert ran.missed("share-user-side")[0] == f"it is computed for each candidate: {reason}"
    assert "rankc.request_broadcast.default" in operators(ran.program)


def mixing(of_user: Callable[[Tensor], Tensor]) -> Program:
    """A program whose rows aren't independent, which capturing refuses."""
    return run_passes(capture_ragged(Scored(of_user), user=USER, item=ITEM), "canonicalize").program
