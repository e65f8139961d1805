"""What a program may hold at each stage."""

from __future__ import annotations

import torch
from rankc.optimizer.ir.forms import Form, is_noise, violation

_aten = torch.ops.aten


def test_a_later_form_includes_an_earlier_one() -> None:
    assert Form.LEGAL.includes(Form.CANONICAL)
    assert not Form.CAPTURED.includes(Form.CANONICAL)


def test_copies_and_checks_are_noise_and_casts_are_not() -> None:
    assert is_noise(_aten.clone.default)
    assert is_noise(_aten._assert_scalar.default)
    assert not is_noise(_aten._to_copy.default)
    assert not is_noise(_aten.view.default)


def test_noise_and_writes_are_refused_in_canonical_form() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    assert violation(graph.call_function(_aten.clone.default, (x,)), Form.CAPTURED) is None
    said = violation(graph.call_function(_aten.clone.default, (x,)), Form.CANONICAL)
    assert said is not None
    assert "noise" in said
    said = violation(graph.call_function(_aten.add_.Tensor, (x, x)), Form.CANONICAL)
    assert said is not None
    assert "writes" in said
