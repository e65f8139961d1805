"""Estimated times of a linear."""

from __future__ import annotations

import dataclasses

from rankc.optimizer.precision.kernel_times import Kernel, estimate
from rankc.optimizer.target import Target


def test_larger_products_take_longer() -> None:
    one = Kernel(256, 256, 512, True, False, "fp32", False, 0)
    target = Target.of("h100-fp8")
    assert estimate(dataclasses.replace(one, rows=4096), target) > estimate(one, target) > 0.0
    assert one.key != dataclasses.replace(one, relu=True).key
