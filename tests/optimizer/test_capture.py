"""Models by name, and as they come."""

from __future__ import annotations

import pytest
import rankc
import torch
from rankc.optimizer.capture import capture, resolve
from rankc.optimizer.errors import CaptureError
from torch import nn


def test_a_program_is_captured_already() -> None:
    program = capture(nn.Linear(3, 1).eval(), torch.randn(2, 3))
    assert isinstance(program, rankc.Program)
    assert capture(program).fingerprint() == program.fingerprint()


@pytest.mark.parametrize("place", ["rankc.models:nothing", "nowhere.at.all:model", "rankc.models"])
def test_what_is_not_there_is_named(place: str) -> None:
    with pytest.raises(CaptureError):
        resolve(place)
