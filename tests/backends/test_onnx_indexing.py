"""Borders of another type than the values that are sorted between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.optimizer.target import Target
from support import canonical
from torch import Tensor, nn

_BORDERS = torch.tensor([0.1, 0.5, 1.0, 16_777_217.0])


class Bucket(nn.Module):
    def __init__(self, borders: Tensor, right: bool) -> None:
        super().__init__()
        self.register_buffer("borders", borders)
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        return torch.bucketize(x, self.borders, right=self.right)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("count", [4, 400])
@pytest.mark.parametrize(
    ("values", "borders"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.int64, torch.float32),
        (torch.int32, torch.int64),
    ],
)
def test_values_and_borders_of_two_types(
    values: torch.dtype, borders: torch.dtype, count: int, right: bool, tmp_path: Path
) -> None:
    """PyTorch compares as C++ does; an integer with a float as floats of that width."""
    wide = torch.cat([_BORDERS, torch.arange(count - 4) + 2.0e7]).sort().values.to(borders)
    rows = torch.tensor([0.1, 0.1000000001, 0.5, 1.0, 2.0, 16_777_217.0, 2e9], dtype=torch.float64)
    rows = torch.cat([rows, torch.tensor(0.1).double().reshape(1)]).to(values)
    model = Bucket(wide, right).eval()
    program = canonical(model, rows)
    OnnxRuntime().build(program, Target.of("cpu-fp32"), tmp_path, {})
    (name,) = program.signature.names
    (found,) = OnnxRuntime().open(tmp_path, 1)({name: rows.numpy()}).values()
    assert torch.equal(torch.as_tensor(found), model(rows))
