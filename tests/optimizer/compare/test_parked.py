"""Large tables on disk: the same scores, no file left, and nothing that is shared is moved."""

from __future__ import annotations

import os
from pathlib import Path

import rankc
import torch
from rankc.optimizer.compare.parked import park, rest
from torch import Tensor, nn

ROWS = 300_000


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, 16)
        self.last = nn.Linear(16, 1)

    def forward(self, item: Tensor) -> Tensor:
        return self.last(self.items(item)).squeeze(-1)


def test_a_parked_program_scores_as_before_and_leaves_no_file(tmp_path: Path) -> None:
    ids = torch.tensor([0, 7, ROWS - 1])
    program = rankc.capture(Large(), inputs=(ids,))
    (feature,) = program.signature.names
    before = program.run({feature: ids})["score"]
    bare = program.clone()
    park((bare, bare), tmp_path, but=rankc.capture(Large(), inputs=(ids,)))
    assert not os.listdir(tmp_path)
    assert _addresses(bare) != _addresses(program)
    for _ in range(2):
        assert torch.equal(bare.run({feature: ids})["score"], before)
        rest()
    assert bare.fingerprint() == program.fingerprint()


def test_what_another_program_holds_stays_where_it_is(tmp_path: Path) -> None:
    program = rankc.capture(Large(), inputs=(torch.tensor([0, 7]),))
    copy = program.clone()
    park((copy,), tmp_path, but=program)
    assert _addresses(copy) == _addresses(program)


def _addresses(program: rankc.Program) -> set[int]:
    return {tensor.data_ptr() for _, tensor in program.tensors()}
