"""What the references of the dialect mean."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.ir.ops import (
    BOUNDED,
    DEQUANTIZE,
    DOT_INTERACTION,
    QUANTIZE,
    REQUEST_BROADCAST,
    RISING,
    WRAPPED,
    along,
    decoded_weight,
)


def test_codes_saturate_and_decode_to_the_step() -> None:
    scale, zero = torch.tensor(0.5), torch.tensor(0, dtype=torch.int8)
    codes = QUANTIZE.op(torch.tensor([0.3, -1.0, 1e6]), scale, zero, 0, torch.int8)
    assert codes.tolist() == [1, -2, 127]
    assert DEQUANTIZE.op(codes, scale, zero, 0).tolist() == [0.5, -1.0, 63.5]


def test_scales_lie_along_their_axis() -> None:
    assert along(torch.ones(3), 1, 3).shape == (1, 3, 1)
    codes = torch.tensor([[1, 2], [3, 4]], dtype=torch.int8)
    assert decoded_weight(codes, torch.tensor([1.0, 10.0])).tolist() == [[1, 2], [30, 40]]


def test_pairs_are_dot_products() -> None:
    x = torch.arange(6.0).reshape(1, 3, 2)
    pairs = DOT_INTERACTION.op(x, torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert pairs.tolist() == [[5.0, 23.0]]


def test_one_row_is_repeated_for_each_candidate() -> None:
    assert REQUEST_BROADCAST.op(torch.ones(1, 2), torch.ones(4, 3)).shape == (4, 2)


def test_ids_beyond_their_table_and_falling_offsets_are_refused() -> None:
    with pytest.raises(IndexError, match="ids from 7 to 7"):
        BOUNDED.op(torch.tensor([1, 7]), [5], 0, True)
    with pytest.raises(IndexError, match="don't rise"):
        RISING.op(torch.tensor([0, 3, 2]), torch.arange(5), False)
    assert WRAPPED.op(torch.tensor([-1, 2]), 5).tolist() == [4, 2]
