"""What OpenVINO isn't given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from alone import Of
from rankc.backends.openvino_limits import refusal
from support import capture_small
from torch import Tensor


def said_of(function: Callable[[Tensor], Tensor]) -> str:
    """What is said of all of a function's operators."""
    program = capture_small(Of(function, 1), torch.randn(4, 3))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return "; ".join(said for node in calls if (said := refusal(node)))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x % 0.3, "remainder of floats"),
        (lambda x: x.topk(2).values.sum(1), "TopK"),
    ],
)
def test_what_it_computes_otherwise_is_refused(
    function: Callable[[Tensor], Tensor], said: str
) -> None:
    assert said in said_of(function)


def test_what_it_computes_alike_is_not() -> None:
    assert said_of(torch.relu) == ""
