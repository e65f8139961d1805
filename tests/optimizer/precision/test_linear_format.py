"""Formats of linears by name."""

from __future__ import annotations

import pytest
from rankc.optimizer.formats import LINEAR
from rankc.optimizer.precision.linear_format import linear_format


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_each_fits_wide_linears_and_places_itself(name: str) -> None:
    one = linear_format(name)
    assert one.fits(256)
    assert one.precision().format == name
