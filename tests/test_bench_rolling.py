"""The page of rolling origins: what it counts as held; ``make bench-rolling`` has the cells."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rankc.models.rows import RankingData, Rows
from rankc.optimizer.quality.intervals import Interval

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "rolling_origin.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_rolling", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_rolling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


rolling = loaded()


def around(estimate: float, half: float) -> Interval:
    return Interval(estimate, estimate - half, estimate + half, half / 2, 1000, 1000)


def test_what_holds_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "CELLS", tmp_path)
    found = [
        ("pass", around(5e-4, 1e-4)),
        ("pass", around(1.1e-3, 2e-4)),
        ("pass", around(3e-3, 1e-4)),
        ("inconclusive", around(9e-3, 1e-4)),
    ]
    for after, (status, realised) in enumerate(found, 5):
        cell = rolling.Cell(status, realised, realised, realised, 1.0, 3, 1.0)
        path = rolling.place(rolling.PRUNED, "dlrm", rolling.FLIGHTS, after, 0)
        path.write_text(json.dumps(asdict(cell)))
        assert rolling.kept(path) == cell
    page = rolling.page()
    assert "| pruned | flights | 4 | 3 | 1 | 33% | 1 | +0.153 |" in page
    assert page.count("| over |") == 1
    assert page.count("| surely over |") == 2


def test_an_origin_sees_nothing_of_what_comes_after() -> None:
    rows = 1200
    stamp = np.arange(rows, dtype=np.int64)
    ids = np.tile(np.arange(1, 3), (rows, 1))

    def part(index: slice) -> Rows:
        zeros = np.zeros(rows, dtype=np.float32)
        whole = Rows(zeros[:, None], ids, {"late_arr": zeros}, stamp, timestamp=stamp)
        return whole.take(index)

    data = RankingData(
        "", "", part(slice(900)), part(slice(900, None)), ("x",), ("month", "hour"), (3, 4)
    )
    found = list(rolling._by_block(data))
    assert [at.after for at in found] == list(rolling.afters(rolling.FLIGHTS))
    for at in found:
        assert at.sizes == (4,)
        assert at.earlier.timestamp.max() < at.given.timestamp.min()
        assert at.given.timestamp.max() < at.next.timestamp.min()
        assert (len(at.given), len(at.next)) == (200, 100)
