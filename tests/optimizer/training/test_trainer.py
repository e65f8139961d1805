"""A trainer judges what it tunes."""

from __future__ import annotations

import torch
from rankc.optimizer.quality.verdict import Status
from rankc.optimizer.training.trainer import Trainer
from support import capture_small, made_up_recovery, permissive_judge
from torch import nn


def test_the_original_passes_its_own_judge() -> None:
    program = capture_small(nn.Linear(3, 1), torch.randn(4, 3))
    trainer = Trainer(made_up_recovery(program), permissive_judge(program))
    assert trainer.verdict(program).status is Status.PASS
