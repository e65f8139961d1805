"""Linears whose rows have ranges of their own."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.precision.candidates import choose_input, output_of


@pytest.mark.parametrize(("name", "least", "most"), [("int8-rows", 1e-3, 3e-2)])
def test_outputs_are_as_near_as_the_format_allows(name: str, least: float, most: float) -> None:
    samples, weight = torch.randn(256, 64), torch.randn(8, 64)
    precision, error = choose_input(samples, weight, name, "uint8")
    exact = samples @ weight.T
    off = float((output_of(samples, weight, precision) - exact).norm() / exact.norm())
    assert precision.format == name
    assert least < off < most
    assert least < error < most
