"""Large batches in pieces: the same scores, and only where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rankc
from rankc import models
from rankc.frontends.export import capture
from rankc.optimizer.artifact import chunks as pieces
from rankc.optimizer.artifact.chunks import InPieces, best_pieces, can_be_split, in_pieces
from rankc.optimizer.data.synthetic import synthesize

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Doubled:
    """Doubles its feature, and remembers how many rows it was given at once."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        self.rows.append(len(features["dense"]))
        return {"score": 2.0 * features["dense"].sum(1)}


@pytest.mark.parametrize(
    ("count", "runs"), [(5, [5]), (8, [4, 4]), (11, [4, 4, 3]), (12, [12]), (16, [12, 4])]
)
def test_each_batch_is_run_in_its_pieces(count: int, runs: list[int]) -> None:
    run = Doubled()
    features = {"dense": np.arange(3.0 * count).reshape(count, 3)}
    got = InPieces(run, ((8, 4), (12, 0), (16, 12)))(features)["score"]
    assert run.rows == runs
    assert np.array_equal(got, 2.0 * features["dense"].sum(1))


def test_each_thread_has_a_piece() -> None:
    run = Doubled()
    assert in_pieces(run, (), 2) is run
    split = in_pieces(run, ((8, 4), (9, 0)), 2)
    assert isinstance(split, InPieces)
    assert split.pieces == ((16, 8), (18, 0))


@pytest.mark.parametrize(("name", "expected"), [("dlrm", True), ("din", True)])
def test_rows_of_plain_features_can_be_told_apart(name: str, expected: bool) -> None:
    program = capture(models.zoo()[name]().eval())
    assert can_be_split(program.signature) is expected
    first, *others = program.signature.features
    jagged = replace(first, delimiter="offsets")
    assert not can_be_split(replace(program.signature, features=(jagged, *others)))


def slow_beyond(rows: int) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
    """A runner that takes ten times as long a row for more rows than that."""

    def run(features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        count = len(next(iter(features.values())))
        clock[0] += count * (10.0 if count > rows else 1.0)
        return {"score": np.zeros(count)}

    clock[0] = 0.0
    return run


clock = [0.0]


@pytest.mark.parametrize(("rows", "expected"), [(128, ((512, 128),)), (512, ()), (32, ())])
def test_the_fastest_pieces_are_found(
    monkeypatch: pytest.MonkeyPatch, rows: int, expected: pieces.Pieces
) -> None:
    signature = capture(models.zoo()["dlrm"]().eval()).signature
    monkeypatch.setattr(pieces.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(pieces, "_SIZES", (128, 256))
    run = slow_beyond(rows)
    assert best_pieces(run, signature, synthesize(signature, 512), (512, 1)) == expected
    assert best_pieces(run, signature, synthesize(signature, 64), (1, 64)) == ()


def test_an_artifact_remembers_its_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rankc.optimizer.artifact.pending.best_pieces", lambda *_: ((128, 64),))
    model = models.zoo()["dlrm"]().eval()
    artifact = rankc.optimize(model, target="cpu-fp32")
    assert artifact.manifest.pieces == ((128, 64),)
    assert any("in pieces of 64" in note for note in artifact.report.notes)
    loaded = rankc.load(artifact.save(tmp_path / "out"))
    assert loaded.manifest.pieces == ((128, 64),)
    rows = model.example_inputs(300)
    whole = replace(loaded.manifest, pieces=())
    split = loaded(*rows)
    loaded.manifest = whole
    # Kernels sum products of other sizes in another order.
    assert (split - loaded(*rows)).abs().max() <= 1e-6 * split.abs().max()
