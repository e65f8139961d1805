"""Values without keys are left alone."""

from __future__ import annotations

import torch
from rankc.optimizer.ir.keyed import put_together, taken_apart


def test_plain_values_have_no_keys() -> None:
    assert taken_apart(torch.ones(2)) is None
    assert put_together("KeyedTensor", ["a"], [[1.0]]) is None
