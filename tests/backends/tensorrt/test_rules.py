"""What TensorRT refuses is known before it is built."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from rankc.backends.tensorrt.rules import refused_by


@pytest.mark.parametrize("kind", ["SequenceEmpty", "DynamicQuantizeLinear"])
def test_refused_operators_come_with_a_rewrite(kind: str) -> None:
    found = refused_by(ir.node(kind, [ir.Value(name="x")]))
    assert found is not None
    assert found.reason
    assert found.rewrite


def test_others_are_not_refused() -> None:
    assert refused_by(ir.node("Relu", [ir.Value(name="x")])) is None
