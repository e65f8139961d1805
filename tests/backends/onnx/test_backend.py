"""Standard ONNX for a runtime that isn't here."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from rankc.backends.onnx.backend import PlainOnnx
from rankc.optimizer.target import Target
from support import capture_small
from torch import nn


def test_only_standard_operators_are_written(tmp_path: Path) -> None:
    program = capture_small(nn.Linear(3, 1), torch.randn(4, 3))
    PlainOnnx().build(program, Target.of("cpu-fp32"), tmp_path, {"made": "here"})
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert {"made": "here"}.items() <= {p.key: p.value for p in model.metadata_props}.items()
