"""Pooled maxima cost nothing more where NaN can't come from, and are NaN where it can."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from rankc.backends.onnx.translate import to_onnx
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.optimizer.target import Target
from support import canonical
from torch import Tensor, nn


class Pooled(nn.Module):
    """The largest of a history's embeddings, those that are filled up left out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.score = nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.table(ids).masked_fill((ids == 0).unsqueeze(-1), -torch.inf)
        return self.score(torch.relu(rows.amax(1))).squeeze(-1)


class Highest(nn.Module):
    """The largest of dense features, which may be missing, and where it is."""

    def forward(self, dense: Tensor) -> Tensor:
        best = dense.max(1)
        return best.values + best.indices


def _operators(model: nn.Module, example: Tensor) -> Counter[str]:
    made = to_onnx(canonical(model.eval(), example))
    return Counter(node.op_type for node in made.graph)


IDS = torch.tensor([[1, 2, 7, 0], [3, 0, 0, 0]])
DENSE = torch.tensor([[0.5, torch.nan, torch.nan], [1.0, 2.0, torch.inf]])


def test_a_table_is_not_searched_for_nan() -> None:
    """Models whose weights hold one aren't captured."""
    assert _operators(Pooled(), IDS)["IsNaN"] == 0


def test_dense_features_are() -> None:
    assert _operators(Highest(), torch.rand(2, 3))["IsNaN"] > 0


@pytest.mark.parametrize(("model", "rows"), [(Pooled(), IDS), (Highest(), DENSE)])
def test_is_what_eager_computes(model: nn.Module, rows: Tensor, tmp_path: Path) -> None:
    program = canonical(model.eval(), rows.nan_to_num(0.25))
    OnnxRuntime().build(program, Target.of("cpu-fp32"), tmp_path, {})
    (name,) = program.signature.names
    (found,) = OnnxRuntime().open(tmp_path, 1)({name: rows.numpy()}).values()
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(found), model(rows), equal_nan=True)
