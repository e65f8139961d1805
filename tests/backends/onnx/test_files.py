"""What files are called."""

from __future__ import annotations

from pathlib import Path

from rankc.backends.onnx.files import emulated_of, entry_file


def test_entries_and_their_cpu_forms() -> None:
    folder = Path("folder")
    assert entry_file(folder, "request") == folder / "request.onnx"
    assert emulated_of(folder / "request.onnx") == folder / "request.emulated.onnx"
    assert emulated_of(folder / "model.onnx") == folder / "emulated.onnx"
