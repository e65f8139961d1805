"""Units are never taken out unasked."""

from __future__ import annotations

import torch
from support import capture_small, run_passes
from torch import nn


def test_without_recover_it_does_not_run_and_says_so() -> None:
    program = capture_small(nn.Linear(3, 1), torch.randn(4, 3))
    ran = run_passes(program, "canonicalize,prune-and-distill")
    assert ran.report.notes == ["prune-and-distill needs finetuning and was not asked for: not run"]
