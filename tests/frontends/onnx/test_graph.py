"""Operators that a file has and nobody reads are named."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from rankc.frontends.onnx.graph import OPERATORS, check_operators, origin_of
from rankc.optimizer.errors import CaptureError


def graph_of(*kinds: str) -> ir.Graph:
    nodes = [ir.node(kind, [ir.Value(name="x")], name=f"/top/top.0/{kind}") for kind in kinds]
    return ir.Graph([], [], nodes=nodes, opset_imports={"": 18})


def test_unknown_operators_are_counted_with_a_remedy() -> None:
    check_operators(graph_of("Relu"))
    assert "Relu" in OPERATORS
    with pytest.raises(CaptureError, match="2 of 3 ONNX nodes can't be captured: 2 × Loop"):
        check_operators(graph_of("Relu", "Loop", "Loop"))


def test_a_node_stems_from_the_module_its_name_says() -> None:
    assert origin_of(next(iter(graph_of("Gemm")))) == "top.0"
