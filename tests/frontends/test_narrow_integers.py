"""Integers of 8 and 16 bits come out as in PyTorch, also where they wrap around."""

from __future__ import annotations

from pathlib import Path

import pytest
import rankc
import torch
from rankc.optimizer.ir.torchapi import operator_name
from torch import Tensor, nn

NARROW = (torch.int8, torch.uint8, torch.int16)
_MOVES = {"_to_copy", "slice", "select", "unsqueeze", "cat", "stack"}


class Counted(nn.Module):
    """What rankers do with small counts, each a column of the score."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3)
        self.register_buffer("bounds", torch.tensor([1, 3, 9]))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first, last = a[:, 0], a[:, 1]
        made = [
            first + last,
            first * last - b,
            a.clamp(0, 8).sum(1),
            torch.maximum(first, last) % 7,
            a.amax(1) // 3,
            torch.where(first > last, first, last),
            (first >> 1) ^ (last & 15),
            a.sort(1).values[:, 0],
            a.max(1).values + a.argmax(1),
            first / (last.abs() + 1.5),
            torch.bucketize(a, self.bounds).sum(1),
            self.table(first.clamp(0, 8).int()).sum(1),
            (a == b.unsqueeze(1)).any(1),
            torch.cat([a, -a], 1).cumsum(1)[:, -2],
        ]
        return torch.stack([column.float() for column in made], 1)


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_integers_come_out_as_in_pytorch(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Counted().eval()
    fits = torch.iinfo(dtype)
    drawn = torch.Generator().manual_seed(0)
    wide = torch.randint(fits.min, fits.max + 1, (64, 3), generator=drawn)
    edges = torch.tensor([[fits.min, fits.max, 1], [fits.max, fits.max, 3], [0, 0, fits.min]])
    rows = torch.cat([edges, wide]).to(dtype)
    small = torch.randint(0, 9, (8, 3), generator=drawn).to(dtype)
    program = rankc.capture(model, (small[:, :2], small[:, 2]))
    taken = {
        source.meta["val"].dtype
        for node in program.graph.nodes
        if node.op == "call_function" and operator_name(node.target) not in _MOVES
        for source in node.all_input_nodes
        if isinstance(source.meta["val"], Tensor)
    }
    assert taken.isdisjoint(NARROW)
    if dtype is not torch.int16:  # all three are captured alike
        assert torch.equal(program(rows[:, :2], rows[:, 2]), model(rows[:, :2], rows[:, 2]))
        return
    artifact = rankc.load(rankc.optimize(program, "cpu-fp32").save(tmp_path / "saved"))
    for count in (1, 3, len(rows)):
        a, b = rows[:count, :2].contiguous(), rows[:count, 2].contiguous()
        torch.testing.assert_close(artifact(a, b), model(a, b), rtol=1e-6, atol=1e-6)
