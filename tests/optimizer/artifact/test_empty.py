"""Batches without rows never reach a runtime."""

from __future__ import annotations

import numpy as np
from rankc.optimizer.artifact.empty import is_empty
from rankc.optimizer.ir import Program


def test_no_rows_are_no_rows(program: Program) -> None:
    assert is_empty(program.signature, {"dense": np.zeros((0, 6), np.float32)})
    assert not is_empty(program.signature, {"dense": np.zeros((1, 6), np.float32)})
