"""What a batch may be, and which call it is."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.data.batch import Batch, as_batch, call_of, first_inputs
from rankc.optimizer.errors import DataError


def test_calls_are_named_however_they_are_given() -> None:
    assert call_of(("x", "y"), (1, 2)) == {"x": 1, "y": 2}
    assert call_of(("x", "y"), {"y": 2, "x": 1}) == {"x": 1, "y": 2}
    assert call_of(("features",), {"age": 1}) == {"features": {"age": 1}}


def test_labels_are_the_second_or_the_last() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    assert as_batch((x, y), ("x",)) == Batch(x, y)
    assert as_batch((x, x, y), ("a", "b")).labels is y
    assert as_batch(x, ("x",)).labels is None


def test_the_first_batch_is_not_lost() -> None:
    inputs, data = first_inputs(iter([1, 2, 3]), ("x",))
    assert inputs == 1
    assert list(data) == [1, 2, 3]
    with pytest.raises(DataError, match="yields no batch"):
        first_inputs([], ("x",))
