from __future__ import annotations

import torch
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    assert_same_graph,
    canonical,
    capture_ragged,
    capture_small,
    lookups,
    run_passes,
)
from torch import Tensor, nn

X = torch.randn(5, 4)
IDS = torch.tensor([0, 3, 1, 2, 3])


def test_merges_equal_expressions_and_what_follows_from_them() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x)).sum(1) * torch.relu(self.linear(x)).sum(1)

    class Expected(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.linear(x)).sum(1)
            return hidden * hidden

    before = Before()
    ran = run_passes(capture_small(before, X), "canonicalize,eliminate")
    assert_same_graph(ran.program, Expected(before.linear), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("eliminate") == ["merged 3 duplicate expressions"]


def test_stores_identical_tables_once() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Embedding(4, 2)
            self.two = nn.Embedding(4, 2)
            self.two.weight = nn.Parameter(self.one.weight.detach().clone())

        def forward(self, ids: Tensor) -> Tensor:
            return (self.one(ids) + self.two(ids)).sum(1)

    class Expected(nn.Module):
        def __init__(self, table: nn.Embedding) -> None:
            super().__init__()
            self.table = table

        def forward(self, ids: Tensor) -> Tensor:
            row = self.table(ids)
            return (row + row).sum(1)

    before = Before()
    program = canonical(before, IDS)
    ran = run_passes(program, "eliminate")
    assert_same_graph(ran.program, Expected(before.one), (IDS,), tolerance=BIT_EQUAL)
    assert ran.program.nbytes * 2 == program.nbytes
    assert len(lookups(ran.program)) == 1
    assert ran.applied("eliminate") == [
        "stored 1 bit-identical parameters once",
        "merged 1 duplicate expressions",
    ]


class Tower(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1), nn.Flatten(0))


def test_a_cascade_written_naively_is_computed_once() -> None:
    """p(click) is asked for again by each task that is conditioned on it."""

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.click, self.cart, self.buy = Tower(), Tower(), Tower()

        def p_click(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.click(x))

        def p_cart(self, x: Tensor) -> Tensor:
            return self.p_click(x) * torch.sigmoid(self.cart(x))

        def forward(self, x: Tensor) -> list[Tensor]:
            bought = self.p_cart(x) * torch.sigmoid(self.buy(x))
            return [self.p_click(x), self.p_cart(x), bought]

    class Expected(Before):
        def forward(self, x: Tensor) -> list[Tensor]:
            # In the order in which the first task asks.
            cart = (click := self.p_click(x)) * torch.sigmoid(self.cart(x))
            return [click, cart, cart * torch.sigmoid(self.buy(x))]

    before, expected = Before(), Expected()
    expected.load_state_dict(before.state_dict())
    ran = run_passes(capture_small(before, X), "canonicalize,eliminate")
    assert_same_graph(ran.program, expected, (X,), tolerance=BIT_EQUAL)


def test_identical_sub_networks_are_computed_once() -> None:
    """A tower that was copied, as when a head is warm-started from another, is one by content."""

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.copy = Tower(), Tower()
            self.copy.load_state_dict(self.one.state_dict())

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.one(x), torch.sigmoid(self.copy(x))]

    class Expected(Before):
        def forward(self, x: Tensor) -> list[Tensor]:
            logit = self.one(x)
            return [logit, torch.sigmoid(logit)]

    before, expected = Before(), Expected()
    expected.load_state_dict(before.state_dict())
    ran = run_passes(capture_small(before, X), "canonicalize,eliminate")
    assert_same_graph(ran.program, expected, (X,), tolerance=BIT_EQUAL)
    assert ran.program.nbytes == sum(p.nbytes for p in before.one.parameters())


def test_keeps_parameters_that_are_equal_but_not_identical() -> None:
    """Same bytes in another shape or dtype, and zeros of another sign."""

    class Near(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("flat", torch.zeros(4))
            self.register_buffer("column", torch.zeros(4, 1))
            self.register_buffer("integers", torch.zeros(4, dtype=torch.int32))
            self.register_buffer("negative", torch.full((4,), -0.0))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.flat + x * self.integers + x * self.negative) @ self.column

    ran = run_passes(canonical(Near(), X), "eliminate")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert len(list(ran.program.tensors())) == 4


def test_keeps_expressions_whose_constants_differ_in_type_or_order() -> None:
    class Near(nn.Module):
        def forward(self, x: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
            return counts * 2, counts * 2.0, x[:, 0:2].sum(1), x[:, 0:3].sum(1)

    program = canonical(Near(), X, torch.arange(5))
    ran = run_passes(program, "eliminate")
    assert ran.outcomes == [Outcome.UNCHANGED]
    whole, real = (value.dtype for value in ran.program(X, torch.arange(5))[:2])
    assert (whole, real) == (torch.int64, torch.float32)


def test_never_merges_random_draws() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand_like(x) - torch.rand_like(x)

    program = run_passes(capture_ragged(Noisy(), x=X), "canonicalize", rows={"x": X[:0]}).program
    ran = run_passes(program, "eliminate", rows={"x": X[:0]})
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert bool((ran.program(X) != 0).any())
