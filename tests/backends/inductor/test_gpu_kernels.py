"""Which kernel a linear takes."""

from __future__ import annotations

import torch
from rankc.backends.inductor.gpu_kernels import BF16, choose, dispatch


def test_the_fastest_within_its_share_of_the_error_is_taken() -> None:
    seconds = {BF16.name: 4.0, "fp8": 1.0, "int8": 2.0}
    assert choose(seconds, {"fp8": 0.5, "int8": 0.01}, 0.1).kernel == "int8"
    assert choose(seconds, {"fp8": 0.5, "int8": 0.5}, 0.1).kernel == BF16.name


def test_what_is_hardly_faster_stays() -> None:
    found = choose({BF16.name: 1.0, "fp8": 0.999}, {}, 0.1)
    assert found.kernel == BF16.name
    assert "stays in BF16" in found.reason


def test_errors_are_measured_against_what_is_exact() -> None:
    exact = torch.ones(2, 2)
    calls = {BF16.name: lambda: exact, "fp8": lambda: exact * 1.5}
    found = dispatch(calls, exact, 0.1, lambda call: 1.0)
    assert found.errors["fp8"] == 0.5
    assert found.kernel == BF16.name
