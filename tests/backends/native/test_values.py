"""What is known of values of an ONNX graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from rankc.backends.native.values import integers, number, rank, within


def test_constants_are_read_and_others_are_not() -> None:
    value = ir.Value(name="c", const_value=ir.tensor(np.array([1, 2], dtype=np.int64)))
    assert integers(value) == [1, 2]
    assert integers(ir.Value(name="x")) is None
    assert number(ir.Value(name="f", const_value=ir.tensor(np.float32(0.5)))) == 0.5
    assert rank(ir.Value(name="x", shape=ir.Shape(["N", 3]))) == 2
    assert rank(None) == -1


def test_places_count_from_either_end() -> None:
    assert within(-2, 5, 5) == (3, 5)
    assert within(1, 99, 5) == (1, 5)
    assert within(4, 2, 5) is None
