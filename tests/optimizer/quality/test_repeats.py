"""Rows that say the same."""

from __future__ import annotations

import numpy as np
from rankc.optimizer.quality.repeats import codes_of


def test_equal_rows_have_equal_codes() -> None:
    codes = codes_of([np.array([1.0, 2.0, 1.0]), np.array([3.0, 3.0, 3.0])])
    assert codes[0] == codes[2] != codes[1]
