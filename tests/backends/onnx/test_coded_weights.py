"""Linears whose weights alone are coded have an ONNX form."""

from __future__ import annotations

from rankc.backends.onnx.coded_weights import CodedWeights
from rankc.optimizer.ir.ops import CODED_LINEAR


def test_the_operator_is_translated() -> None:
    assert CODED_LINEAR.op in CodedWeights().translations
