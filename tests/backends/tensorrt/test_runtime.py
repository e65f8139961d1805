"""Engines hold code, ONNX files don't."""

from __future__ import annotations

from rankc.backends.tensorrt.runtime import TensorRTRuntime


def test_an_onnx_file_runs_nothing_of_its_own() -> None:
    assert not TensorRTRuntime().code_in(("model.onnx", "model.onnx.data"))
