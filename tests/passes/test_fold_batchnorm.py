from __future__ import annotations

import pytest
import torch
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    ONE_ROUNDING,
    assert_same_graph,
    canonical,
    operators,
    run_passes,
)
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(5, 6)


def trained(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    """A BatchNorm whose statistics and weights aren't the initial zeros and ones."""
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            if tensor is not None:
                tensor.uniform_(0.5, 1.5)
    return norm


def affine_of(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """The norm's s and t in fp64: it computes x·s + t."""
    ones, zeros = torch.ones(norm.num_features), torch.zeros(norm.num_features)
    gamma = (ones if norm.weight is None else norm.weight.detach()).double()
    beta = (zeros if norm.bias is None else norm.bias.detach()).double()
    scale = gamma / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, beta - norm.running_mean.double() * scale


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folds_into_the_linear_before(bias: bool, affine: bool) -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4, bias=bias)
            self.norm = trained(nn.BatchNorm1d(4, eps=1e-3, affine=affine))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.linear(x))).sum(1)

    class Expected(nn.Module):
        def __init__(self, before: Before) -> None:
            super().__init__()
            scale, shift = affine_of(before.norm)
            self.linear = nn.Linear(6, 4)
            old = before.linear.bias.detach().double() if bias else 0.0
            weight = before.linear.weight.detach().double() * scale[:, None]
            self.linear.weight = nn.Parameter(weight.float())
            self.linear.bias = nn.Parameter((old * scale + shift).float())

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x)).sum(1)

    before = Before()
    ran = run_passes(canonical(before, X), "fold-batchnorm")
    assert_same_graph(ran.program, Expected(before), (X,), tolerance=ONE_ROUNDING)
    assert ran.applied("fold-batchnorm") == ["folded 1 BatchNorms into the linears before them"]


def test_becomes_a_multiply_and_an_add_where_no_linear_is() -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = trained(nn.BatchNorm1d(6))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x).sum(1)

    class Expected(nn.Module):
        def __init__(self, before: Before) -> None:
            super().__init__()
            scale, shift = affine_of(before.norm)
            self.register_buffer("scale", scale.float()[None])
            self.register_buffer("shift", shift.float()[None])

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale + self.shift).sum(1)

    before = Before()
    ran = run_passes(canonical(before, X), "fold-batchnorm")
    assert_same_graph(ran.program, Expected(before), (X,), tolerance=ONE_ROUNDING)
    assert ran.applied("fold-batchnorm") == ["turned 1 BatchNorms into one multiply and add"]


def test_misses_a_linear_that_others_read() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.norm = trained(nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.linear(x)
            return (self.norm(hidden) + hidden).sum(1)

    ran = run_passes(canonical(Shared(), X), "fold-batchnorm")
    assert ran.missed("fold-batchnorm") == ["the linear before the BatchNorm has other users"]
    assert operators(ran.program) == ["linear", "mul", "add", "add", "sum"]


def test_two_norms_in_a_row_fold_into_one_linear() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.one, self.two = trained(nn.BatchNorm1d(4)), trained(nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(self.linear(x))).sum(1)

    ran = run_passes(canonical(Twice(), X), "fold-batchnorm")
    assert operators(ran.program) == ["linear", "sum"]


def test_a_shared_weight_keeps_its_values_for_the_other_linear() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.norm = trained(nn.BatchNorm1d(4))

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.norm(self.linear(x)).sum(1), self.linear(y).sum(1)

    program = canonical(Tied(), X, X)
    ran = run_passes(program, "fold-batchnorm")
    assert operators(ran.program) == ["linear", "sum", "linear", "sum"]
    assert torch.equal(ran.program(X, X)[1], program(X, X)[1])


def test_channels_of_a_sequence_are_its_second_dimension() -> None:
    """A linear's channels are its last: over ``[B, C, L]`` the two don't meet."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.norm = trained(nn.BatchNorm1d(6))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x)).sum((1, 2))

    ran = run_passes(canonical(Sequence(), torch.randn(5, 6, 6)), "fold-batchnorm")
    assert operators(ran.program) == ["linear", "mul", "add", "sum"]
    (scale, shift) = (
        value for name, value in ran.program.tensors() if not name.startswith("linear")
    )
    assert scale.shape == shift.shape == (1, 6, 1)


def test_a_computed_bias_or_a_weight_vector_is_no_linear_to_fold_into() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.vector = nn.Parameter(torch.randn(6))
            self.one, self.two = trained(nn.BatchNorm1d(4)), trained(nn.BatchNorm1d(3))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            computed = F.linear(x, self.linear.weight, self.linear.bias * 2.0)
            return self.one(computed).sum(1) + self.two(F.linear(y, self.vector)).sum(1)

    program = canonical(Odd(), X, torch.randn(5, 3, 6))
    ran = run_passes(program, "fold-batchnorm")
    assert ran.applied("fold-batchnorm") == ["turned 2 BatchNorms into one multiply and add"]


def test_leaves_a_norm_whose_statistics_are_computed() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(6))
            self.register_buffer("variance", torch.rand(6) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.mean * 2.0, self.variance).sum(1)

    program = canonical(Computed(), X)
    ran = run_passes(program, "fold-batchnorm")
    assert ran.outcomes == [Outcome.UNCHANGED]
    assert_same_graph(ran.program, program, (X,), tolerance=BIT_EQUAL)
    folded = run_passes(program, "fold-constants,fold-batchnorm")
    assert operators(folded.program) == ["mul", "add", "sum"]
