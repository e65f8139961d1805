"""An artifact in other processes: forked, pickled, copied; and opened with how many threads."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rankc
import rankers
from rankc.optimizer.artifact.artifact import MANIFEST
from rankc.optimizer.errors import ArtifactError
from rankers import EAGER_FP32, contents, small, small_inputs

TARGETS: dict[str, rankc.Target] = {
    "onnxruntime": rankc.Target.of("cpu-fp32"),
    "eager": EAGER_FP32,
    "mlir": rankc.Target.of("mlir-cpu"),
    "openvino": rankc.Target(
        "openvino-alone", rankc.Target.of("cpu-fp32").device, backends=("openvino",)
    ),
}


@functools.cache
def made(backend: str) -> rankc.Artifact:
    """An artifact in a folder for temporary files; not to be changed."""
    rows = small_inputs(4, seed=0)
    return rankc.optimize(small(), TARGETS[backend], inputs=rows, pipeline="exact")


def rows() -> tuple[Any, ...]:
    return tuple(value.numpy() for value in small_inputs(9, seed=3))


def equal(left: Any, right: Any) -> bool:
    return (
        all(map(np.array_equal, left, right))
        if isinstance(left, tuple)
        else bool(np.array_equal(left, right))
    )


#: Children that end as programs do, by `sys.exit`, and what each does before.
SCRIPT = """
import gc, os, pickle, sys, time
import numpy as np
from rankers import small_inputs

rows = [value.numpy() for value in small_inputs(9, seed=3)]
loaded = [pickle.load(open(path, "rb")) for path in sys.argv[1:]]
wanted = [artifact(*rows) for artifact in loaded]
runners = [artifact.open(2) for artifact in loaded]
given = dict(zip(loaded[0].signature.names, rows))
first = [runner(given) for runner in runners]
folders = [artifact.folder for artifact in loaded]
gc.freeze()


def drop():
    loaded.clear()
    runners.clear()


def score():
    for artifact, want, runner, path in zip(loaded, wanted, runners, sys.argv[1:]):
        assert np.array_equal(artifact(*rows), want), path
        runner(given)
        artifact.save(path + "-saved")


for work in (lambda: None, drop, score):
    child = os.fork()
    if child == 0:
        work()
        sys.exit(5)
    for _ in range(1200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        sys.exit(f"a child hangs: {work}")
    assert os.waitstatus_to_exitcode(status) == 5, (work, status)
    assert all(folder.is_dir() for folder in folders), work
    assert all(np.array_equal(a(*rows), want) for a, want in zip(loaded, wanted)), work
"""


@pytest.mark.openvino
def test_forked_children_score_and_end_and_leave_the_parent_alone(tmp_path: Path) -> None:
    paths = [tmp_path / backend for backend in TARGETS]
    for path in paths:
        path.write_bytes(pickle.dumps(made(path.name)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(str(rankers.__file__)).parent,
    )
    assert done.returncode == 0, done.stderr
    for path in paths:
        saved = rankc.load(path.with_name(f"{path.name}-saved"), trust_code=True)
        assert equal(saved(*rows()), made(path.name)(*rows()))


@pytest.mark.openvino
@pytest.mark.parametrize("backend", TARGETS)
def test_an_unsaved_artifact_is_pickled_with_its_files(backend: str) -> None:
    artifact = made(backend)
    travelled = pickle.loads(pickle.dumps(artifact))
    assert travelled.folder != artifact.folder
    assert equal(travelled(*rows()), artifact(*rows()))
    assert travelled.verdict == artifact.verdict
    folder = travelled.folder
    again = pickle.loads(pickle.dumps(travelled))
    del travelled
    assert not folder.exists()
    assert equal(again(*rows()), artifact(*rows()))


def test_a_saved_artifact_is_pickled_as_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = copy.copy(made("onnxruntime"))
    place = artifact.save(tmp_path / "saved")
    for one in (artifact, rankc.load(place)):
        pickled = pickle.dumps(one)
        assert len(pickled) < 1000
        travelled = pickle.loads(pickled)
        assert travelled.folder == place
        assert equal(travelled(*rows()), artifact(*rows()))
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(rankc.load("saved"))
    monkeypatch.chdir("/")
    assert equal(pickle.loads(pickled)(*rows()), artifact(*rows()))
    shutil.move(place, tmp_path / "moved")
    other = rankc.optimize(small(), "cpu-fp32", inputs=small_inputs(4, seed=0), seed=1)
    other.save(place)
    with pytest.raises(ArtifactError, match=r"holds another artifact than when it was pickled"):
        pickle.loads(pickled)
    shutil.rmtree(place)
    with pytest.raises(ArtifactError, match=r"saved isn't on this machine. Copy it there"):
        pickle.loads(pickled)
    # What was saved and is gone still travels with the files that the artifact itself has.
    assert equal(pickle.loads(pickle.dumps(artifact))(*rows()), artifact(*rows()))


def test_an_artifact_whose_folder_is_gone_says_so(tmp_path: Path) -> None:
    artifact = pickle.loads(pickle.dumps(made("onnxruntime")))
    shutil.rmtree(artifact.folder)
    with pytest.raises(ArtifactError, match="is gone: this artifact's folder was removed"):
        pickle.dumps(artifact)
    with pytest.raises(ArtifactError, match="is gone: this artifact's folder was removed"):
        artifact.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_share_the_folder_and_keep_it(copied: Any) -> None:
    artifact = pickle.loads(pickle.dumps(made("onnxruntime")))
    want, folder = artifact(*rows()), artifact.folder
    other = copied(artifact)
    assert other.folder == folder
    before = contents(folder)
    del artifact
    assert equal(other(*rows()), want)
    assert contents(folder) == before
    assert str(other.report)
    del other
    assert not folder.exists()


def test_a_runner_keeps_the_folder_it_may_have_to_open_again() -> None:
    artifact = pickle.loads(pickle.dumps(made("onnxruntime")))
    folder, runner = artifact.folder, artifact.open(1)
    del artifact
    assert (folder / MANIFEST).is_file()
    del runner
    assert not folder.exists()


def scored(artifact: rankc.Artifact) -> Any:
    """What a worker does."""
    return artifact(*rows())


def test_workers_take_artifacts_as_arguments(tmp_path: Path) -> None:
    artifact = made("onnxruntime")
    saved = rankc.load(artifact.save(tmp_path / "saved"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(scored, [artifact, saved])
    assert all(equal(one, artifact(*rows())) for one in found)


@pytest.mark.parametrize("threads", [0, -1, "x", 1.5, True, [1]])
def test_impossible_threads_are_refused(threads: Any) -> None:
    for opened in (
        made("onnxruntime").open,
        functools.partial(made("onnxruntime").benchmark, (1,)),
    ):
        with pytest.raises(ArtifactError, match="expected a whole number of at least 1, or None"):
            opened(threads=threads)
    assert made("onnxruntime").open(np.int64(1))  # type: ignore[arg-type]
