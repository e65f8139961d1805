"""Rows of different numbers of ids are taken and joined."""

from __future__ import annotations

import torch
from rankc.optimizer.data.delimiters import Delimits, Ragged
from rankc.optimizer.data.ragged import find_ragged, join, take

ONE = Ragged("lengths", Delimits.LENGTHS, ("ids",))
GIVEN = {"ids": torch.arange(6), "lengths": torch.tensor([2, 0, 3, 1])}


def test_rows_are_taken_with_their_ids() -> None:
    found = take(GIVEN, (ONE,), torch.tensor([2, 0]))
    assert found["ids"].tolist() == [2, 3, 4, 0, 1]
    assert found["lengths"].tolist() == [3, 2]


def test_what_is_taken_apart_joins_again() -> None:
    parts = [take(GIVEN, (ONE,), slice(0, 1)), take(GIVEN, (ONE,), slice(1, 4))]
    joined = join(parts, (ONE,))
    assert all(torch.equal(joined[name], GIVEN[name]) for name in GIVEN)


def test_lengths_are_found_by_their_sum() -> None:
    assert find_ragged(GIVEN) == (ONE,)
