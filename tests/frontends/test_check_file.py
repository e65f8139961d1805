"""A captured file that scores otherwise is refused."""

from __future__ import annotations

import pytest
import torch
from rankc.frontends.check_file import check_rows, compare
from rankc.optimizer.errors import CaptureError
from support import capture_small
from torch import nn


def test_scores_that_differ_are_named() -> None:
    compare("the file", "y", torch.ones(3), torch.ones(3), 3)
    with pytest.raises(CaptureError, match="differently from the file at batch 3: output 'y'"):
        compare("the file", "y", torch.ones(3), torch.zeros(3), 3)


def test_rows_of_a_linear_are_apart() -> None:
    x = torch.randn(8, 3)
    program = capture_small(nn.Linear(3, 1), x)
    check_rows(program, {program.signature.names[0]: x})
