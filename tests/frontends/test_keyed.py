"""The operators of fbgemm in plain torch, against what they mean row by row."""

from __future__ import annotations

import pytest
import torch
from rankc.frontends.keyed import _OPERATORS, plain_torchrec
from rankc.optimizer.errors import CaptureError
from torch import Tensor

LENGTHS = torch.tensor([2, 0, 3, 1, 0])
OFFSETS = torch.tensor([0, 2, 2, 5, 6, 6])
VALUES = torch.arange(12.0).reshape(6, 2) + 1


def rows(values: Tensor) -> list[Tensor]:
    return list(values.split(LENGTHS.tolist()))


def test_sums_of_lengths() -> None:
    assert torch.equal(_OPERATORS["asynchronous_complete_cumsum"](LENGTHS), OFFSETS)
    assert torch.equal(_OPERATORS["asynchronous_inclusive_cumsum"](LENGTHS), OFFSETS[1:])
    assert torch.equal(_OPERATORS["asynchronous_exclusive_cumsum"](LENGTHS), OFFSETS[:-1])
    several = torch.stack([LENGTHS, LENGTHS]).to(torch.int32)
    found = _OPERATORS["asynchronous_complete_cumsum"](several)
    assert torch.equal(found, torch.stack([OFFSETS, OFFSETS]).to(torch.int32))


@pytest.mark.parametrize("length", [1, 3, 5])
def test_padding(length: int) -> None:
    want = torch.full((5, length, 2), -1.0)
    for row, values in enumerate(rows(VALUES)):
        want[row, : len(values)] = values[:length]
    found = _OPERATORS["jagged_to_padded_dense"](VALUES, [OFFSETS], [length], -1.0)
    assert torch.equal(found, want)
    none = _OPERATORS["jagged_2d_to_dense"](VALUES[:0], torch.zeros_like(OFFSETS), length)
    assert torch.equal(none, torch.zeros(5, length, 2))


def test_positions_and_back_from_padding() -> None:
    positions = torch.cat([torch.arange(int(length)) for length in LENGTHS])
    assert torch.equal(_OPERATORS["offsets_range"](OFFSETS[:-1], 6), positions)
    assert torch.equal(_OPERATORS["offsets_range"](OFFSETS, 6), positions)
    padded = _OPERATORS["jagged_2d_to_dense"](VALUES, OFFSETS, 3)
    back, (offsets,) = _OPERATORS["dense_to_jagged"](padded, [OFFSETS], 6)
    assert torch.equal(back, VALUES)
    assert offsets is OFFSETS


def test_forms_whose_sizes_only_the_values_tell() -> None:
    padded = torch.zeros(5, 3, 2)
    with pytest.raises(CaptureError, match="Pass total_L"):
        _OPERATORS["dense_to_jagged"](padded, [OFFSETS])
    with pytest.raises(CaptureError, match="Pad one list at a time"):
        _OPERATORS["jagged_to_padded_dense"](VALUES, [OFFSETS, OFFSETS], [3, 3])


def test_nothing_is_changed_where_torchrec_is_not_loaded() -> None:
    before = set(dir(torch.ops.fbgemm))
    with plain_torchrec():
        assert set(dir(torch.ops.fbgemm)) == before
