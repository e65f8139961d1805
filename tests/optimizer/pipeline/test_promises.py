"""What breaks a promise."""

from __future__ import annotations

import torch
from rankc.optimizer.compare.numerics import divergence
from rankc.optimizer.pipeline.passbase import Exactness
from rankc.optimizer.pipeline.promises import broken_promise


def test_an_exact_pass_moves_no_bit_and_a_lossy_one_may() -> None:
    same = divergence({"y": torch.ones(3)}, {"y": torch.ones(3)})
    moved = divergence({"y": torch.ones(3)}, {"y": torch.ones(3) + 1e-7})
    assert broken_promise(Exactness.EXACT, same, None, None) is None
    assert broken_promise(Exactness.EXACT, moved, None, None)
    assert broken_promise(Exactness.LOSSY, moved, None, None) is None
