"""MXFP8 has an ONNX form."""

from __future__ import annotations

from rankc.backends.onnx.mxfp8 import MxFp8


def test_its_operators_are_translated() -> None:
    assert MxFp8().translations
