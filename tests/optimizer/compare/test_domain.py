"""Which rows a program scores."""

from __future__ import annotations

import torch
from rankc.optimizer.compare.domain import finite_rows, some_finite


def test_a_row_is_finite_where_all_outputs_are() -> None:
    outputs = {
        "a": torch.tensor([1.0, float("nan"), 2.0]),
        "b": torch.tensor([[1.0, 2.0], [1.0, 2.0], [float("inf"), 0.0]]),
    }
    assert finite_rows(outputs, 3).tolist() == [True, False, False]
    assert some_finite(outputs, 3).tolist() == [True, True, True]
