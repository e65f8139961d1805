"""Targets, devices and timing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from rankc.optimizer.errors import TargetError
from rankc.optimizer.formats import product_of
from rankc.optimizer.registry import backend
from rankc.optimizer.target import TARGETS, DeviceSpec, Target


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_presets_are_sound(name: str) -> None:
    target = Target.of(name)
    assert target.name == name
    assert Target.of(target) is target
    assert target.device.source
    assert target.device.bandwidth > 0
    rates = dict(target.device.peaks)
    formats = {product_of(name) for name in target.formats}
    assert formats <= set(rates)
    for number_format in formats:
        assert target.device.peak(number_format) > target.device.peak("fp32")
    for served_by in target.backends:
        assert backend(served_by).name == served_by


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("h100-fp9", "unknown target 'h100-fp9'; did you mean h100-fp8"),
        ("cpu_int8", "did you mean cpu-int8"),
        ("h100-fp4", "unknown target 'h100-fp4'; did you mean b200-fp4 or rtx6000-fp4"),
        ("", "did you mean cpu-fp32 or cpu-bf16"),
        (8, "a target is a name or a rankc.Target, got int. Known names: cpu-fp32"),
    ],
)
def test_unknown_targets_are_told(asked: Any, message: str) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        Target.of(asked)


def test_an_unlisted_format_runs_at_the_rate_of_fp32() -> None:
    device = DeviceSpec("d", "cpu", peaks=(("fp32", 2.0), ("int8", 8.0)))
    assert [device.peak(f) for f in ("fp32", "int8", "fp4")] == [2e12, 8e12, 2e12]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"formats": ("int8", "int7")}, "names the format 'int7', which no linear takes; a linear"),
        ({"table_formats": ("fp8",)}, "'fp8', which no table takes; a table may take int8, int4"),
    ],
)
def test_unknown_formats_are_told(given: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        replace(Target.of("cpu-int8"), **given)


def test_users_can_define_their_own() -> None:
    mine = Target("mine", DeviceSpec("d", "cpu"), formats=("int8",))
    assert Target.of(mine) is mine
