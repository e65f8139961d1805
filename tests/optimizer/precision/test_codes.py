"""Codes and what they decode to."""

from __future__ import annotations

import torch
from rankc.optimizer.precision.codes import (
    errors_of,
    quantize_rows,
    quantize_weight,
    quantize_weights_alone,
    round_trip_rows,
)


def test_codes_of_a_weight_are_within_half_a_step() -> None:
    weight = torch.randn(4, 8)
    found = quantize_weight(weight, torch.int8)
    away = (found.decoded - weight).abs()
    assert bool((away <= found.scale[:, None] * 0.51).all())


def test_rows_come_back_and_four_bits_are_coarser() -> None:
    rows = torch.randn(5, 16)
    errors = [errors_of(rows, round_trip_rows(rows, bits)) for bits in (8, 4)]
    fine, coarse = (max(e.values()) for e in errors)
    assert fine != coarse
    codes, scale, bias = quantize_rows(rows)
    assert codes.dtype is torch.uint8
    assert scale.shape == bias.shape == (5, 1)
    codes, scale = quantize_weights_alone(torch.randn(4, 64), 4)
    assert int(codes.abs().max()) <= 8
