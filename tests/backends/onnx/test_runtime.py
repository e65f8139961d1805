"""A model for another runtime scores on the CPU."""

from __future__ import annotations

import numpy as np
from alone import relu_model
from rankc.backends.onnx.runtime import emulated


def test_it_runs_by_emulation() -> None:
    found = emulated(relu_model().SerializeToString(), 1)(
        {"x": np.array([[-1.0, 2.0]], np.float32)}
    )
    assert found["y"].tolist() == [[0.0, 2.0]]
