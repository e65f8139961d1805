"""Every form of a format says operators of its own, and finishes any model."""

from __future__ import annotations

import onnx_ir as ir
from rankc.backends.onnx.forms import Form, forms


def test_no_operator_is_said_twice() -> None:
    said = [operator for form in forms() for operator in form.translations]
    assert said
    assert len(said) == len(set(said))


def test_a_form_that_says_nothing_changes_nothing() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    assert Form().emulate(graph) == 0
    assert Form().for_tensorrt(ir.Model(graph, ir_version=10)) == 0
