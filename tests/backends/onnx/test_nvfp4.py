"""NVFP4 has an ONNX form."""

from __future__ import annotations

from rankc.backends.onnx.nvfp4 import NvFp4


def test_its_operators_are_translated() -> None:
    assert NvFp4().translations
