"""Which kernels a build took, read from its messages."""

from __future__ import annotations

from rankc.backends.tensorrt.build_log import LinearRun, kernels, mismatches


def test_a_quiet_build_says_nothing() -> None:
    assert kernels(["nothing here"]) == ()


def test_a_linear_that_runs_otherwise_is_named() -> None:
    planned = LinearRun("top.0", "fp8", "fp8", ())
    other = LinearRun("top.1", "fp8", "fp16", ())
    (said,) = mismatches([planned, other])
    assert "top.1" in said
