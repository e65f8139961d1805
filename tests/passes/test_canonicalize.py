from __future__ import annotations

import torch
from rankc.optimizer.ir import Form
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    assert_same_graph,
    capture_small,
    operators,
    run_passes,
)
from torch import Tensor, nn

X = torch.randn(5, 6)


def test_removes_what_computes_nothing() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.dropout(x).detach().contiguous().clone()
            x = x.view(-1, 6)[:, :].expand(-1, 6).to(torch.float32)
            x = x.permute(0, 1) * 1.0
            return torch.relu(x).transpose(0, 1).transpose(-1, 0).sum(1)

    class Expected(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).sum(1)

    ran = run_passes(capture_small(Before(), X), "canonicalize")
    assert operators(ran.program) == ["relu", "sum"]
    assert_same_graph(ran.program, Expected(), (X,), tolerance=BIT_EQUAL)
    assert ran.program.form is Form.CANONICAL
    (message,) = ran.applied("canonicalize")
    assert message.startswith("removed ")


def test_spells_views_of_views_as_one_reshape() -> None:
    class Before(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.view(-1, 2, 3).view(-1, 3, 2)).view(-1, 2, 3).view(-1, 6).sum(1)

    class Expected(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.reshape(-1, 3, 2)).reshape(-1, 6).sum(1)

    ran = run_passes(capture_small(Before(), X), "canonicalize")
    assert_same_graph(ran.program, Expected(), (X,), tolerance=BIT_EQUAL)


def test_a_view_that_needed_the_removed_copy_still_runs() -> None:
    """A column's strides allow no view: the copy made it one, and a reshape needs no copy."""

    class Before(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            columns = x.view(-1, 2, 3)[:, 1].contiguous().view(-1)
            return torch.relu(columns).view(-1, 3).sum(1)

    program = capture_small(Before(), X)
    ran = run_passes(program, "canonicalize")
    assert "clone" in operators(program)
    assert "clone" not in operators(ran.program)
    assert torch.equal(ran.program(X), program(X))


def test_a_removed_copy_may_change_the_kernel_but_not_the_error() -> None:
    """Over other strides torch adds up a linear in another order: equal values, other last bits."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(10, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.transpose(1, 2).contiguous()).sum((1, 2))

    ran = run_passes(capture_small(Turned(), torch.randn(5, 10, 6)), "canonicalize")
    assert operators(ran.program) == ["transpose", "linear", "sum"]


def test_says_so_when_there_was_nothing_to_remove() -> None:
    class Clean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).sum(1)

    ran = run_passes(capture_small(Clean(), X), "canonicalize,canonicalize")
    assert ran.outcomes == [Outcome.CHANGED, Outcome.UNCHANGED]
    assert ran.applied("canonicalize") == ["checked that there is nothing to remove"]


def test_keeps_what_only_looks_idle() -> None:
    """Adding zero turns -0.0 into 0.0; casts truncate; slices and transposes move values."""

    class Near(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 0.0
            x = x.int().float()
            y = x.view(-1, 2, 3).transpose(1, 2).transpose(0, 1)
            return (x[:, ::2].sum(1) + x[:, 1:].sum(1)) * 2.0 + y.sum((0, 2))

    program = capture_small(Near(), X)
    ran = run_passes(program, "canonicalize")
    kept = operators(ran.program)
    assert kept.count("add") == 3
    assert kept.count("_to_copy") == 2
    assert kept.count("slice") == 2
    assert kept.count("transpose") == 2
    assert torch.equal(ran.program(X), program(X))


def test_negative_zero_survives() -> None:
    class Signs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.copysign(torch.ones_like(x), x * 1 + 0.0).sum(1)

    program = capture_small(Signs(), X)
    zeros = torch.full((2, 6), -0.0)
    assert torch.equal(run_passes(program, "canonicalize").program(zeros), Signs()(zeros))
