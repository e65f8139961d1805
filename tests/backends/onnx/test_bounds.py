"""Ids beyond their table are refused where the model runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.optimizer.target import Target
from support import capture_small
from torch import Tensor, nn


class Shifted(nn.Module):
    """Ids that nothing bounds: one more than a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids * ids - 2).sum(-1)


def test_what_eager_refuses_is_refused(tmp_path: Path) -> None:
    program = capture_small(Shifted(), torch.tensor([2, 2]))
    OnnxRuntime().build(program, Target.of("cpu-fp32"), tmp_path, {})
    runner = OnnxRuntime().open(tmp_path, 1)
    (name,) = program.signature.names
    runner({name: np.array([2, 2])})
    with pytest.raises(Exception, match=r"(?i)index|bound|range"):
        runner({name: np.array([2, 1])})
