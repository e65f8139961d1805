"""The ways a linear can take a format."""

from __future__ import annotations

import torch
from rankc.optimizer.precision.candidates import candidates, choose_input, output_of


def test_an_outlier_column_is_scaled_or_kept() -> None:
    samples = torch.randn(256, 16)
    samples[:, 3] *= 100.0
    weight = torch.randn(8, 16)
    found = candidates(samples, weight, ["int8-rows"], "uint8")
    assert len(found) > 1
    plain, *better = [errors["relative"] for _, errors in found]
    assert min(better) < plain


def test_the_plain_form_computes_nearly_the_same() -> None:
    samples, weight = torch.randn(256, 16), torch.randn(8, 16)
    precision, error = choose_input(samples, weight, "int8-rows", "uint8")
    exact = samples @ weight.T
    off = (output_of(samples, weight, precision) - exact).norm() / exact.norm()
    assert float(off) < 0.02
    assert error < 0.02
