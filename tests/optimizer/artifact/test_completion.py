"""`rankc build`: a folder is as it was or complete, whatever ends the build."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rankc
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.optimizer.artifact.artifact import verify
from rankc.optimizer.artifact.completion import complete
from rankc.optimizer.artifact.integrity import checksum
from rankc.optimizer.cli import main
from rankc.optimizer.errors import ArtifactError
from rankc.optimizer.ir import scratch
from rankc.optimizer.ir.scratch import remove_left
from rankc.optimizer.target import TARGETS, Target
from rankers import contents, small, small_inputs
from test_writers import full_disk

MINE = replace(Target.of("cpu-fp32"), name="mine", backends=("onnxruntime",))


@pytest.fixture(scope="module")
def artifact() -> rankc.Artifact:
    return rankc.optimize(small(), MINE, inputs=small_inputs(4, seed=0), pipeline="exact")


@pytest.fixture
def folder(artifact: rankc.Artifact, tmp_path: Path) -> Path:
    return artifact.save(tmp_path / "store" / "ads")


@pytest.fixture
def built_for(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """The targets of builds that write one file more."""
    targets: list[Target] = []

    def build(
        self: OnnxRuntime, folder: Path, made: Path, target: Target, batch_sizes: Sequence[int]
    ) -> tuple[str, ...]:
        targets.append(target)
        (made / "kernels.bin").write_bytes((folder / "model.onnx").read_bytes() * 3)
        return ("kernels.bin",)

    monkeypatch.setattr(OnnxRuntime, "complete", build)
    return targets


def test_a_target_of_the_users_own(folder: Path, built_for: list[Target]) -> None:
    before, inputs = rankc.load(folder), small_inputs(3, seed=1)
    assert main(["build", str(folder)]) == 0
    assert built_for == [MINE]
    after = rankc.load(folder)
    assert after.manifest.made_for == MINE
    assert set(after.manifest.files) - set(before.manifest.files) == {"kernels.bin"}
    assert np.array_equal(after(*inputs), before(*inputs)), "what is open stays open"
    assert [path.name for path in folder.parent.iterdir()] == ["ads"]
    assert any(line.startswith("ok  kernels.bin") for line in verify(folder))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_read_back_as_it_was(name: str) -> None:
    assert Target.from_json(json.loads(json.dumps(TARGETS[name].to_json()))) == TARGETS[name]


def test_a_folder_of_an_earlier_version(folder: Path, built_for: list[Target]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["made_for"]
    path.write_text(json.dumps({**data, "checksum": checksum(data)}))
    with pytest.raises(ArtifactError, match=r"made for 'mine', no target of rankc's.*Optimize"):
        complete(folder)
    data["target"] = "cpu-fp32"
    path.write_text(json.dumps({**data, "checksum": checksum(data)}))
    complete(folder)
    assert built_for == [Target.of("cpu-fp32")]


def test_nothing_to_build(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(ArtifactError, match="is complete: there is nothing left to build"):
        complete(folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["ads"]


def test_a_full_disk(folder: Path, built_for: list[Target]) -> None:
    before = contents(folder)
    with (
        full_disk(len(before["model.onnx"])),
        pytest.raises(ArtifactError, match="It is as it was"),
    ):
        complete(folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["ads"]
    complete(folder)  # the remedy


def test_damage_is_not_sealed_in(folder: Path, built_for: list[Target]) -> None:
    (folder / "report.txt").write_text("all is well")
    with pytest.raises(ArtifactError, match=r"report\.txt is damaged"):
        complete(folder)
    assert "kernels.bin" not in contents(folder)


def test_a_link_to_a_folder(folder: Path, built_for: list[Target]) -> None:
    link = folder.parent / "newest"
    link.symlink_to("ads")
    complete(link)
    assert link.is_symlink()
    assert "kernels.bin" in contents(folder)


def killed(work: Callable[[], object]) -> int:
    """How a child ended that did some work."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


PLACES = {
    "while it builds": (OnnxRuntime, "complete", 1),
    "before the exchange": (scratch, "_exchanged", 1),
    "before the old one is removed": (scratch.shutil, "rmtree", 1),  # type: ignore[attr-defined]
    "before it is set aside": (Path, "rename", 1),
    "while it is set aside": (Path, "rename", 2),
    "after it was set aside": (Path, "rename", 3),
}


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_kill(
    place: str,
    slowly: bool,
    folder: Path,
    built_for: list[Target],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, (owner, name, count) = contents(folder), PLACES[place]
    calls = 0
    real = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return die() if calls == count else real(*args, **options)

    with monkeypatch.context() as patch:
        if slowly:
            patch.setattr(scratch, "_exchanged", lambda *names: False)
            if name == "_exchanged":
                counted = die
        patch.setattr(owner, name, counted)
        ended = killed(lambda: complete(folder))
    assert ended == (0 if owner is Path and not slowly else -signal.SIGKILL)
    scores = rankc.load(folder)(*small_inputs(3, seed=1))
    assert len(scores) == 3
    remove_left(folder.parent)  # as whatever starts next in that place does
    assert [path.name for path in folder.parent.iterdir()] == ["ads"]
    assert contents(folder) == before or "kernels.bin" in contents(folder)
    verify(folder)
    complete(folder)
    assert "kernels.bin" in contents(folder)
