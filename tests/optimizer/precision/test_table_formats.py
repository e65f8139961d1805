"""Formats of tables by name."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.formats import TABLE
from rankc.optimizer.precision.table_formats import table_bytes, table_error, table_format


@pytest.mark.parametrize("name", sorted(TABLE))
def test_each_is_smaller_and_near(name: str) -> None:
    assert table_format(name).fits(16)
    assert table_bytes(1000, 16, name) < 1000 * 16 * 4
    assert table_error(torch.randn(50, 16), name)["relative"] < 0.2
