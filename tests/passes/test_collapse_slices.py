from __future__ import annotations

import torch
from support import BIT_EQUAL, assert_same_graph, canonical, capture_small, operators, run_passes
from torch import Tensor, nn

X = torch.randn(6, 4, 3)
Y = torch.randn(6, 3)


def collapse(module: nn.Module, *inputs: Tensor) -> list[str]:
    """The operators that are left."""
    return operators(run_passes(canonical(module, *inputs), "collapse-slices").program)


def test_a_stack_of_all_slices_is_the_tensor() -> None:
    class Before(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, index] for index in range(4)], 1).relu().sum((1, 2))

    class Expected(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().sum((1, 2))

    ran = run_passes(capture_small(Before(), X), "canonicalize,collapse-slices")
    assert_same_graph(ran.program, Expected(), (X,), tolerance=BIT_EQUAL)
    assert ran.applied("collapse-slices") == ["put 1 lists of pieces together again"]


def test_a_concatenation_of_neighbours_is_a_flat_slice() -> None:
    class Before(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([y, x[:, 1], x[:, 2], y], 1).sum(1)

    class Expected(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([y, x[:, 1:3].reshape(-1, 6), y], 1).sum(1)

    ran = run_passes(capture_small(Before(), X, Y), "canonicalize,collapse-slices")
    assert_same_graph(ran.program, Expected(), (X, Y), tolerance=BIT_EQUAL)


def test_other_parts_of_a_stack_stay_where_they_are() -> None:
    class Before(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.stack([y, x[:, 0], x[:, 1], x[:, 3]], 1).relu().sum((1, 2))

    program = capture_small(Before(), X, Y)
    ran = run_passes(program, "canonicalize,collapse-slices")
    assert torch.equal(program(X, Y), ran.program(X, Y))
    assert "stack" not in operators(ran.program)


def test_slices_out_of_order_are_left_alone() -> None:
    class Reversed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 1], x[:, 0]], 1).relu().sum((1, 2))

    assert "stack" in collapse(Reversed(), X)


def test_slices_of_two_tensors_are_left_alone() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x[:, 0], y], 1).sum(1)

    assert collapse(Two(), X, Y) == ["select", "cat", "sum"]


def test_slices_put_together_along_another_dimension_are_left_alone() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0], x[:, 1]], 2).relu().sum((1, 2))

    assert "stack" in collapse(Last(), X)
