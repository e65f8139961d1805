from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from rankc.passes.reassociate_fm import ReassociateFm
from support import BIT_EQUAL, Ran, assert_same_graph, canonical, run_passes
from torch import Tensor, nn

X = torch.randn(6, 32, 16)


class Fm(nn.Module):
    """``body(x, projection)``, summed."""

    def __init__(self, body: Callable[..., Tensor], n: int = 32, k: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = nn.Parameter(torch.randn(n, k))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x, self.projection)).sum((1, 2))


def reassociated(body: Callable[..., Tensor], n: int = 32, k: int = 4, x: Tensor = X) -> Ran:
    return run_passes(canonical(Fm(body, n, k), x), "reassociate-fm")


FORMS: dict[str, Callable[..., Tensor]] = {
    "bmm": lambda x, y: torch.matmul(torch.bmm(x, x.transpose(1, 2)), y),
    "matmul": lambda x, y: x @ x.transpose(-1, -2) @ y,
    "permute": lambda x, y: x @ x.permute(0, 2, 1) @ y,
}


@pytest.mark.parametrize("form", FORMS)
def test_before_and_expected(form: str) -> None:
    def expected(x: Tensor, y: Tensor) -> Tensor:
        return x @ (y.transpose(0, 1) @ x).transpose(1, 2)

    ran = reassociated(FORMS[form])
    assert_same_graph(ran.program, Fm(expected), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("reassociate-fm") == [
        "projected 1 factorization machines before their pairs are made"
    ]


@pytest.mark.parametrize("product", [torch.bmm, torch.matmul])
def test_a_projection_that_is_computed(product: Callable[..., Tensor]) -> None:
    def attend(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y[:16]).softmax(1)

    def before(x: Tensor, y: Tensor) -> Tensor:
        return product(torch.bmm(x, x.transpose(1, 2)), attend(x, y))

    def expected(x: Tensor, y: Tensor) -> Tensor:
        return x @ (attend(x, y).transpose(1, 2) @ x).transpose(1, 2)

    ran = reassociated(before)
    assert_same_graph(ran.program, Fm(expected), (X,), tolerance=BIT_EQUAL)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            lambda x, y: (lambda g: torch.cat([g @ y, g], 2))(x @ x.transpose(1, 2)),
            ["the product of all pairs has other users"],
        ),
        (
            lambda x, y: (lambda z: z @ z.transpose(1, 2) @ y[:5])(x[:, :5]),
            ["projecting first wouldn't be faster"],
        ),
        (lambda x, y: torch.relu(x @ x.transpose(1, 2)) @ y, []),
        (lambda x, y: x @ torch.relu(x).transpose(1, 2) @ y, []),
        (lambda x, y: (x @ x.transpose(1, 2)).transpose(1, 2) @ y, []),
    ],
    ids=["other user", "small", "between", "not itself", "turned"],
)
def test_near_misses(body: Callable[..., Tensor], reason: list[str]) -> None:
    ran = reassociated(body)
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("reassociate-fm") == reason


@pytest.mark.parametrize(
    ("n", "d", "k", "pays"),
    [
        (64, 64, 16, True),
        (24, 16, 4, True),
        (32, 64, 8, True),
        (32, 128, 8, True),
        (64, 128, 24, False),
        (27, 128, 24, False),
        (16, 64, 4, False),
        (16, 16, 2, False),
        (5, 8, 3, False),
    ],
)
def test_pays_where_it_was_measured_to(n: int, d: int, k: int, pays: bool) -> None:
    assert ReassociateFm().pays(n, d, k) == pays
