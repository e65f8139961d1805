"""What was built says which plan it misses."""

from __future__ import annotations

import pytest
from rankc.optimizer.backend import Backend, Built
from rankc.optimizer.errors import RankcError


def test_a_plan_that_was_not_met_is_an_error_where_it_is_required() -> None:
    Built(("model.onnx",), {}).require_plan("onnxruntime")
    with pytest.raises(RankcError, match=r"top\.0"):
        Built(("model.onnx",), {}, unmet=("top.0 runs in fp32",)).require_plan("tensorrt")


def test_a_backend_must_build() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Backend()  # type: ignore[abstract]
