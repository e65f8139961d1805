"""Columns that are scaled, or kept."""

from __future__ import annotations

import torch
from rankc.optimizer.ir.facts import Precision
from rankc.optimizer.precision.columns import column_scale, low_weight, without


def test_a_plain_precision_scales_nothing() -> None:
    weight = torch.randn(2, 4)
    assert column_scale(Precision("int8-rows"), 4) is None
    assert torch.equal(low_weight(weight, Precision("int8-rows")), weight)


def test_kept_columns_are_taken_out() -> None:
    samples = torch.randn(3, 4)
    assert torch.equal(without(samples, (1,)), samples[:, [0, 2, 3]])
