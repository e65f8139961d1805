"""The backend that is PyTorch itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rankc.backends.eager import Eager
from rankc.optimizer.target import Target
from support import capture_small
from torch import nn


def test_it_scores_like_the_program_bit_by_bit(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    program = capture_small(nn.Linear(3, 1), x)
    Eager().build(program, Target.of("cpu-fp32"), tmp_path, {})
    (name,) = program.signature.names
    (found,) = Eager().open(tmp_path, 1)({name: x.numpy()}).values()
    (expected,) = program.run({name: x}).values()
    assert np.array_equal(found, expected.numpy())
