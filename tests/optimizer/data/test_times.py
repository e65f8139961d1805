"""When rows came: what sorts is taken, what doesn't is refused."""

from __future__ import annotations

import numpy as np
import pytest
from rankc.optimizer.data.times import time_column
from rankc.optimizer.errors import DataError


def test_numbers_dates_and_text_sort() -> None:
    assert time_column([3, 1], 2).tolist() == [3, 1]
    assert time_column(np.array(["b", "a"], dtype=object), 2).dtype.kind == "U"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0, float("nan")], "missing in 1 rows, first in row 1"),
        ([1.0], "expected one entry for 2 rows"),
        ([1j, 2j], "complex"),
    ],
)
def test_what_does_not_sort_is_named(given: list[complex], said: str) -> None:
    with pytest.raises(DataError, match=said):
        time_column(np.array(given), 2)
