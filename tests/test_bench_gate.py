"""The gate's own false passes, in short; ``make bench-gate`` has the table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gate.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_gate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gate = loaded()


@pytest.mark.parametrize("name", [kind.name for kind in gate.KINDS if kind.rows <= 10_000])
def test_copies_at_the_limit_hardly_ever_pass(name: str) -> None:
    (kind,) = [kind for kind in gate.KINDS if kind.name == name]
    size = gate.amplitude(kind, 1.0)
    count = sum(gate.passes(kind, size, seed, 2, 6000) for seed in range(25))
    assert gate.bound(count, 25)[0] < gate.ALLOWED, count


def test_sound_copies_pass() -> None:
    """Nothing is bought by refusing."""
    kind = gate.KINDS[0]
    size = gate.amplitude(kind, gate.SOUND)
    assert sum(gate.passes(kind, size, seed, 1, kind.rows) for seed in range(20)) >= 15


def test_the_page_tells_what_is_over_and_what_was_not_run() -> None:
    first, second, *_ = gate.KINDS
    false = {"1.0": [3, 400], "1.5": [0, 100], "2.0": [20, 100]}
    cell = {"false": false, "power": {"10000": 0.9}, "needed": 10_000, "draws": 50}
    page = gate.page({first.name: cell})
    assert "0.8% [0.2%, 2.2%] of 400" in page
    assert f"Surely over what is allowed: {first.name}" in page
    assert f"Not run: {second.name}" in page
