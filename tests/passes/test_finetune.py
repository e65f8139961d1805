"""Finetuning is never done unasked."""

from __future__ import annotations

import torch
from rankc.optimizer.pipeline.passbase import Exactness
from rankc.passes.finetune import Finetune
from support import capture_small, run_passes
from torch import nn


def test_without_recover_it_does_not_run_and_says_so() -> None:
    ran = run_passes(capture_small(nn.Linear(3, 1), torch.randn(4, 3)), "canonicalize,finetune")
    assert ran.report.notes == ["finetune needs finetuning and was not asked for: not run"]
    assert Finetune.exactness is Exactness.TRAINED
