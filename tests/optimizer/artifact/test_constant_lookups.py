"""Ids behind arithmetic are refused with the feature that they are computed of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import rankc
import torch
from rankc.optimizer.errors import RankcError
from torch import Tensor, nn


class Turned(nn.Module):
    """A history against itself turned by one: the places are a lookup, by constants alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 3)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        rows = self.table(ids)
        return (x + (rows - rows.roll(1, 1)).abs().mean(1)).sum(1)


@pytest.mark.parametrize("length", [1, 4])
def test_lookups_by_constants_need_no_check(length: int, tmp_path: Path) -> None:
    model = Turned().eval()
    x, ids = torch.randn(6, 3), torch.randint(0, 30, (6, length))
    target = replace(rankc.Target.of("cpu-fp32"), backends=("onnxruntime",))
    artifact = rankc.load(rankc.optimize(model, target, inputs=(x, ids)).save(tmp_path / "saved"))
    with torch.no_grad():
        torch.testing.assert_close(artifact(x, ids), model(x, ids), rtol=1e-5, atol=1e-6)
    ids[3] = 99
    with pytest.raises(RankcError, match=r"'ids'.*row 3"):
        artifact(x, ids)
