"""Offsets and lengths that don't fit the values they delimit are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rankc.optimizer.data.delimiters import Delimits, Ragged, row_count


@pytest.mark.parametrize(
    ("delimits", "given"),
    [
        (Delimits.STARTS, [0, 2]),
        (Delimits.BOUNDS, [0, 2, 5]),
        (Delimits.LENGTHS, [2, 3]),
    ],
)
def test_each_way_says_the_same_bounds(delimits: Delimits, given: list[int]) -> None:
    one = Ragged("d", delimits, ("ids",))
    features = {"d": torch.tensor(given), "ids": torch.arange(5)}
    assert one.bounds(features).tolist() == [0, 2, 5]
    assert row_count(features, (one,)) == 2
    assert one.delimiter_of(np.array([2, 3])).tolist() == given
