"""Values of files that don't fit their types are named by place."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from rankc.optimizer.fitting import MisfitError, is_finite, require_fit


@dataclass(frozen=True)
class Inner:
    """A field."""

    count: int


@dataclass(frozen=True)
class Outer:
    """A nested one."""

    inner: tuple[Inner, ...]


def test_the_first_that_does_not_fit_is_named() -> None:
    require_fit(Outer((Inner(1),)), "file")
    with pytest.raises(MisfitError, match=r"file\.inner"):
        require_fit(Outer((Inner(1), Inner("two"))), "file")  # type: ignore[arg-type]
    assert is_finite(1.0)
    assert not is_finite(float("nan"))
