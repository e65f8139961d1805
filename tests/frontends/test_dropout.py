"""Functional dropout is left out while a model is captured, and said once a line."""

from __future__ import annotations

import torch
from rankc.frontends.dropout import without_dropout
from torch.nn import functional


def test_it_gives_its_input_back_inside_alone() -> None:
    x, notes = torch.ones(100), list[str]()
    with without_dropout(notes):
        for _ in range(2):
            assert functional.dropout(x, 0.5) is x
    assert len(notes) == 1
    assert "pass training=self.training" in notes[0]
    assert not torch.equal(functional.dropout(x, 0.5), x)
