"""Operators in float64: computed as such, or refused."""

from __future__ import annotations

import torch
from alone import on_onnxruntime
from rankc.backends.onnx.double import without_kernel
from support import canonical
from torch import Tensor, nn


class Tangent(nn.Module):
    """A function that ONNX Runtime has no kernel for in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.tan()


def test_logarithms_are_not_rounded_to_floats() -> None:
    x = torch.rand(2, 3, dtype=torch.float64) + 0.5
    found, expected = on_onnxruntime(torch.log2, x)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)


def test_what_has_no_kernel_says_so() -> None:
    program = canonical(Tangent(), torch.randn(2, 3).double())
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.tan.default)
    assert "has no aten.tan.default of float64" in str(without_kernel(node))
    program = canonical(Tangent(), torch.randn(2, 3))
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.tan.default)
    assert without_kernel(node) is None
