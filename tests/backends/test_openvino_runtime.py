"""Models opened in OpenVINO."""

from __future__ import annotations

import numpy as np
import pytest
from alone import relu_model


@pytest.mark.openvino
def test_a_model_runs_from_memory() -> None:
    pytest.importorskip("openvino")
    from rankc.backends.openvino_runtime import OpenVinoRunner

    runner = OpenVinoRunner(relu_model().SerializeToString(), "fp32", 1)
    assert runner({"x": np.array([[-3.0, 4.0]], np.float32)})["y"].tolist() == [[0.0, 4.0]]
