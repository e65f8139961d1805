"""What carries NaN past codes, as one product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rankc.backends.onnx.translate import save_onnx, to_onnx
from rankc.backends.onnxruntime.carry import fuse_carry
from rankc.backends.onnxruntime.runtime import OrtRunner
from support import capture_small
from torch import Tensor, nn


class Carried(nn.Module):
    """A score to which zero times the dense features is added."""

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.last, self.by = nn.Linear(5, 1), by

    def forward(self, hidden: Tensor, dense: Tensor) -> Tensor:
        return (self.last(hidden) + (dense * self.by).sum(1, keepdim=True)).squeeze(1)


def test_it_is_one_product(tmp_path: Path) -> None:
    hidden, dense = torch.randn(6, 5), torch.randn(6, 3)
    module = Carried()
    model = to_onnx(capture_small(module, hidden, dense))
    assert fuse_carry(model) == {"carried-nan": 1}
    assert "ReduceSum" not in [node.op_type for node in model.graph]
    save_onnx(model, tmp_path / "model.onnx", {})
    run = OrtRunner(tmp_path / "model.onnx", 1)
    dense[2, 1], dense[4, 0] = float("nan"), float("inf")
    (got,) = run({"hidden": hidden.numpy(), "dense": dense.numpy()}).values()
    want = module.last(hidden).squeeze(1).detach().numpy()
    assert np.isnan(got).nonzero()[0].tolist() == [2, 4]
    assert np.allclose(got[[0, 1, 3, 5]], want[[0, 1, 3, 5]], rtol=0, atol=1e-6)


def test_other_sums_are_left_alone() -> None:
    model = to_onnx(capture_small(Carried(0.5), torch.randn(6, 5), torch.randn(6, 3)))
    assert fuse_carry(model) == {}
