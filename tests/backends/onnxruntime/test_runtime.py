"""Sessions take and give arrays by name."""

from __future__ import annotations

import numpy as np
from alone import relu_model
from rankc.backends.onnxruntime.runtime import OrtRunner


def test_a_model_runs_from_memory() -> None:
    runner = OrtRunner(relu_model().SerializeToString(), 1)
    assert runner({"x": np.array([[-3.0, 4.0]], np.float32)})["y"].tolist() == [[0.0, 4.0]]
