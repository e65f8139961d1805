"""Hidden units go, and the contract stays."""

from __future__ import annotations

import torch
from rankc.optimizer.ir import Program, verify
from rankc.optimizer.pruning.channels import channels
from rankc.optimizer.pruning.moments import input_moments
from rankc.optimizer.pruning.removal import Removal
from rankc.optimizer.pruning.surgery import without


def test_a_hidden_unit_goes_with_its_row_and_column(program: Program) -> None:
    found = channels(program)
    group = next(g for g in found.groups if g.units == 6)
    rows = {"dense": torch.randn(64, 6)}
    smaller = without(program, found, Removal.of([(group, (0, 1))]), input_moments(program, [rows]))
    verify(smaller)
    assert smaller.nbytes < program.nbytes
    assert smaller.run(rows).keys() == program.run(rows).keys()
