from __future__ import annotations

import pytest
import torch
from rankc.optimizer.ir.ops import DEQUANTIZE
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    assert_same_graph,
    canonical,
    capture_ragged,
    operators,
    run_passes,
)
from torch import Tensor, nn

X = torch.randn(5, 4)


def test_computes_what_depends_on_parameters_alone() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.randn(4))
            self.table = nn.Embedding(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            positions = self.table(torch.arange(3)).sum(0)
            return (x * torch.sigmoid(self.gate * 2.0) + positions).sum(1)

    class Expected(nn.Module):
        def __init__(self, gate: Tensor, positions: Tensor) -> None:
            super().__init__()
            self.register_buffer("gate", gate)
            self.register_buffer("positions", positions)

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.gate + self.positions).sum(1)

    before = Before()
    ran = run_passes(canonical(before, X), "fold-constants")
    with torch.no_grad():
        expected = Expected(torch.sigmoid(before.gate * 2.0), before.table(torch.arange(3)).sum(0))
    assert_same_graph(ran.program, expected, (X,), tolerance=BIT_EQUAL)
    assert ran.applied("fold-constants") == ["computed 2 constant expressions"]


def test_pieces_of_a_parameter_become_parameters() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            scale, shift = self.both.unbind(0)
            return (x * scale + shift).sum(1)

    ran = run_passes(canonical(Split(), X), "fold-constants")
    assert operators(ran.program) == ["mul", "add", "sum"]


def test_a_constant_output_is_a_parameter() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias * 3.0

    ran = run_passes(capture_ragged(Constant(), x=X), "canonicalize,fold-constants")
    assert operators(ran.program) == []
    assert ran.program(X).shape == (4,)


@pytest.mark.parametrize("width", [8, 33])
def test_a_transposed_weight_folds_to_the_same_bits(width: int) -> None:
    """It keeps its strides: over others, torch would multiply with another kernel."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, width))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.weight.t()).sum(1)

    ran = run_passes(canonical(Turned(), torch.randn(5, width)), "fold-constants")
    assert operators(ran.program) == ["matmul", "relu", "sum"]


class Outer(nn.Module):
    """A value of 64 × 64 × 4 bytes made of two parameters of 64 × 4 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(64, 1))
        self.right = nn.Parameter(torch.randn(1, 64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ (self.left * self.right)).sum(1)


def test_misses_a_value_that_is_too_large() -> None:
    program = canonical(Outer(), torch.randn(5, 64))
    ran = run_passes(program, "fold-constants{max_bytes=16383}")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.missed("fold-constants") == ["its value of 16,384 bytes is larger than max_bytes"]

    assert run_passes(program, "fold-constants{max_bytes=16384}").outcomes == [Outcome.CHANGED]


def test_a_value_no_larger_than_what_it_is_made_of_always_folds() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ (self.weight * 0.5)).sum(1)

    ran = run_passes(canonical(Scaled(), torch.randn(5, 64)), "fold-constants{max_bytes=1}")
    assert operators(ran.program)[0] != "mul"


def test_leaves_what_depends_on_the_batch() -> None:
    class Zeros(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) + torch.ones(x.shape[0])

    program = canonical(Zeros(), X)
    ran = run_passes(program, "fold-constants")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert ran.program(X[:2]).shape == (2,)


def test_never_freezes_a_random_draw() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(4)

    program = run_passes(capture_ragged(Noisy(), x=X), "canonicalize", rows={"x": X[:0]}).program
    ran = run_passes(program, "fold-constants", rows={"x": X[:0]})
    assert ran.outcomes == [Outcome.UNCHANGED]


def test_codes_stay_codes() -> None:
    """Folding a dequantize would store four bytes a weight again."""

    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randint(-127, 128, (3, 4)).to(torch.int8))
            self.register_buffer("scale", torch.rand(3))
            self.register_buffer("zero", torch.zeros(3, dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            weight = DEQUANTIZE.op(self.codes, self.scale, self.zero, 0)
            return nn.functional.linear(x, weight).sum(1)

    ran = run_passes(canonical(Coded(), X), "fold-constants")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert operators(ran.program)[0] == "rankc.dequantize.default"


def test_what_repeats_by_strides_stays_over_a_folded_source() -> None:
    """Stored, it would have other strides, and torch would multiply with another kernel."""

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.randn(1, 33))

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.tanh(self.row).expand(8, 33).transpose(0, 1)

    x = torch.randn(65, 33)
    program = canonical(Repeated(), x)
    ran = run_passes(program, "fold-constants")
    assert "tanh" not in operators(ran.program)
    assert "expand" in operators(ran.program)
    assert torch.equal(ran.program(x), program(x))
