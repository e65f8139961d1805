"""A model that the CPU runs as it is has no second file."""

from __future__ import annotations

from pathlib import Path

import onnx
from alone import relu_model
from rankc.backends.onnx.emulation import write_emulated


def test_nothing_is_written_where_nothing_lacks(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(relu_model(), path)
    assert not write_emulated(path, tmp_path / "emulated.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
