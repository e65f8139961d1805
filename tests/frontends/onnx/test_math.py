"""Functions of a file give what ONNX Runtime gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from alone import from_file
from onnx import helper


@pytest.mark.parametrize("kind", ["Elu", "HardSigmoid", "Softplus", "Erf", "Reciprocal"])
def test_each_function(kind: str, tmp_path: Path) -> None:
    x = torch.tensor([[-2.0, -0.25, 0.5, 3.0]])
    found, expected = from_file([helper.make_node(kind, ["x"], ["y"])], x, tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
