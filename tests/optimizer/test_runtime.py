"""What opens an artifact says what it needs."""

from __future__ import annotations

import pytest
from rankc.optimizer.runtime import Runtime


def test_a_runtime_must_open() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Runtime()  # type: ignore[abstract]
