"""Units that go together."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program
from rankc.optimizer.pruning.dependence import Scene
from rankc.optimizer.pruning.removal import Removal, emptied


def test_removals_unite_and_an_empty_one_is_nothing(program: Program) -> None:
    gone = torch.tensor([True, False])
    one = Removal({}, {}, {}, {("w", 0): gone})
    other = Removal({}, {}, {}, {("w", 0): ~gone})
    assert bool(one)
    assert not Removal({}, {}, {}, {})
    assert (one | other).sides["w", 0].tolist() == [True, True]
    assert emptied(Scene(program), one) is None
