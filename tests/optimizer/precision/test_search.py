"""What a format's error is measured on."""

from __future__ import annotations

import torch
from rankc.optimizer.precision.search import Search


def test_errors_are_relative_to_the_exact_output() -> None:
    search = Search(torch.randn(2000, 4), torch.randn(3, 4), "uint8")
    assert search.rows.shape == (512, 4)
    assert search.error(search.exact) == 0.0
    assert abs(search.error(search.exact * 1.5) - 0.5) < 1e-6
