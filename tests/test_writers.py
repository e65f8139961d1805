"""What can't be written is an error in our words, and whatever was there stays as it was."""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import rankc
from rankc.optimizer.errors import ArtifactError, CheckpointError, RankcError
from rankc.optimizer.pipeline.instruments import Dump
from rankc.optimizer.precision.kernel_cache import KernelCache
from rankc.optimizer.precision.pareto import Pareto, Point
from rankc.optimizer.precision.probe_cache import Knowledge, Subject
from rankc.optimizer.training.checkpoint import Checkpoint
from rankers import EAGER_FP32, small, small_inputs

SUBJECT = Subject("model" * 9, "rows" * 9)


@contextmanager
def full_disk(nbytes: int = 64) -> Iterator[None]:
    """No file can grow beyond some bytes, as on a disk that is nearly full."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="module")
def program() -> rankc.Program:
    return rankc.capture(small(), small_inputs(4, seed=0))


@pytest.fixture(scope="module")
def artifact() -> rankc.Artifact:
    return rankc.optimize(small(), EAGER_FP32, inputs=small_inputs(4, seed=0), pipeline="exact")


def optimized(**options: Any) -> None:
    rankc.optimize(
        small(), "cpu-fp32", inputs=small_inputs(4, seed=0), pipeline="rounding", **options
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


Writer = Callable[[Path, rankc.Program, rankc.Artifact], object]
WRITERS: dict[str, Writer] = {
    "Program.save": lambda path, program, artifact: program.save(path / "model.pt2"),
    "Artifact.save": lambda path, program, artifact: artifact.save(path / "saved"),
    "Checkpoint": lambda path, program, artifact: Checkpoint(path / "c", "x" * 99, "s"),
    "Checkpoint.save": lambda path, program, artifact: Checkpoint(path, "", "").save(
        0, program, {"seconds": 1.0}
    ),
    "Knowledge.open": lambda path, program, artifact: Knowledge.open(path / "k.jsonl", SUBJECT),
    "Knowledge.learn": lambda path, program, artifact: Knowledge(
        SUBJECT, path=path / "known.jsonl"
    ).learn("top.0" * 20, "int8", {"click": 1e-5}),
    "Dump": lambda path, program, artifact: optimized(instruments=[Dump(path / "dump")]),
    "optimize": lambda path, program, artifact: optimized(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(
    name: str, program: rankc.Program, artifact: rankc.Artifact, tmp_path: Path
) -> None:
    for file in ("model.pt2", "known.jsonl"):
        (tmp_path / file).write_text("old")
    Checkpoint(tmp_path, "", "")
    before = files_of(tmp_path)
    with full_disk(), pytest.raises(RankcError, match=r"can't (be|write)"):
        WRITERS[name](tmp_path, program, artifact)
    after = files_of(tmp_path)
    if name == "Knowledge.learn":  # what was appended of a line is cut off by whoever reads it
        after["known.jsonl"] = after["known.jsonl"][:3]
    assert after == before
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_costs_kernel_times_nothing(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.merged("m", {"k": 1e-6})
    with full_disk(8):
        assert cache.merged("m", {"l" * 99: 1e-6}) == {"k": 1e-6, "l" * 99: 1e-6}
    assert cache.read("m") == {"k": 1e-6}


@pytest.mark.parametrize("half", ['{"site": "a", "re', "\x00"])
def test_a_cut_off_line_of_a_checkpoint_is_measured_anew_and_loses_no_other(
    half: str, tmp_path: Path
) -> None:
    path = tmp_path / "known.jsonl"
    Knowledge.open(path, SUBJECT).learn("a", "int8", {"click": 1e-5})
    with path.open("a") as file:
        file.write(half)
    again = Knowledge.open(path, SUBJECT)
    again.learn("b", "int8", {"click": 2e-5})
    found = Knowledge.open(path, SUBJECT).damages
    assert found == {("a", "int8"): {"click": 1e-5}, ("b", "int8"): {"click": 2e-5}}


def test_a_checkpoint_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint of a probe"):
        Knowledge.open(tmp_path, SUBJECT)


def test_temporary_files_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ArtifactError, match="no temporary folder can be made in"):
        optimized()


def test_a_curve_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for matplotlib, which not every machine has."""

    class Figure(mock.MagicMock):
        def savefig(self, place: Path) -> None:
            place.write_text("<svg>" * 99)

    monkeypatch.setitem(sys.modules, "matplotlib", mock.MagicMock())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", mock.MagicMock(Figure=Figure))
    path = tmp_path / "curve.svg"
    path.write_text("old")
    curve = Pareto((Point(0.0, {64: 1.0}, 10.0, {}),), True)
    with full_disk(), pytest.raises(ArtifactError, match="can't be drawn to"):
        curve.save(path)
    assert files_of(tmp_path) == {"curve.svg": b"old"}
    curve.save(path)
    assert path.read_text() == "<svg>" * 99
