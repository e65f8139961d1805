"""Rows made up from a signature fit it."""

from __future__ import annotations

import torch
from rankc.optimizer.data.checks import check_features
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Program


def test_made_up_rows_fit_and_are_the_same_each_time(program: Program) -> None:
    rows = synthesize(program.signature, 9, seed=3)
    check_features(program.signature, rows.features)
    assert len(rows) == 9
    assert rows.synthetic
    again = synthesize(program.signature, 9, seed=3)
    assert torch.equal(rows.features["dense"], again.features["dense"])
