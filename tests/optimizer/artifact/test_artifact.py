"""The artifact: called like the model, saved whole or not at all, loaded untouched."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rankc
import torch
from onnx import helper
from rankc.optimizer.artifact import artifact as artifact_module
from rankc.optimizer.artifact.artifact import check_destination
from rankc.optimizer.artifact.manifest import Manifest
from rankc.optimizer.data.rows import collect
from rankc.optimizer.errors import ArtifactError
from rankc.optimizer.timing import Timing
from rankers import (
    EAGER_FP32,
    contents,
    dlrm,
    dlrm_inputs,
    optimized,
    small,
    small_inputs,
    two_tasks,
    two_tasks_inputs,
)
from torch import Tensor, nn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The saved INT8 DLRM; no test may change it."""
    place = optimized("cpu-int8").save(tmp_path_factory.mktemp("artifacts") / "dlrm")
    before = contents(place)
    yield place
    assert contents(place) == before


# --- calling --------------------------------------------------------------------------------------


def test_every_form_of_call_scores_alike() -> None:
    artifact = optimized("cpu-int8")
    dense, ids = dlrm_inputs(20, seed=5)
    want = artifact(dense, ids)
    assert isinstance(want, Tensor)
    assert want.shape == (20,)
    same = [
        artifact(dense=dense, ids=ids),
        artifact(dense, ids=ids),
        artifact((dense, ids)),
        artifact([dense, ids]),
        artifact({"ids": ids, "dense": dense}),
        artifact(rankc.Batch((dense, ids), torch.zeros(20))),
        artifact(rankc.Batch({"ids": ids, "dense": dense})),
    ]
    assert all(torch.equal(got, want) for got in same)


def test_numpy_in_numpy_out() -> None:
    artifact = optimized("cpu-int8")
    dense, ids = dlrm_inputs(20, seed=5)
    got = artifact(dense.numpy(), ids.numpy())
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, artifact(dense, ids).numpy())
    by_name = artifact({"dense": dense.numpy(), "ids": ids.numpy()})
    assert np.array_equal(by_name, got)


def test_tensors_may_carry_gradients_and_strides() -> None:
    artifact = optimized("cpu-int8")
    dense, ids = dlrm_inputs(20, seed=5)
    want = artifact(dense, ids)
    strided = dense.t().contiguous().t()
    assert not strided.is_contiguous()
    assert torch.equal(artifact(strided.requires_grad_(), ids), want)


@pytest.mark.parametrize("size", [0, 1, 7, 513])
def test_any_batch_size(size: int) -> None:
    artifact = optimized("cpu-int8")
    inputs = dlrm_inputs(size, seed=5)
    assert artifact(*inputs).shape == (size,)


class Lone(nn.Module):
    """One argument, a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(-1)


def test_a_model_of_one_tensor() -> None:
    model, ids = Lone(), torch.arange(5)
    artifact = rankc.optimize(model, EAGER_FP32, inputs=ids, pipeline="exact")
    want = artifact(ids)
    assert torch.equal(want, model(ids).detach())
    for given in ((ids,), [ids], {"ids": ids}, rankc.Batch(ids), rankc.Batch({"ids": ids})):
        assert torch.equal(artifact(given), want)


def test_a_model_of_one_dict() -> None:
    model, inputs = two_tasks(), two_tasks_inputs(6, seed=3)
    artifact = rankc.optimize(model, EAGER_FP32, inputs=(inputs,), pipeline="exact")
    want = artifact(inputs)
    assert list(want) == ["click", "buy"]
    for given in ({"features": inputs}, rankc.Batch(inputs), rankc.Batch((inputs,))):
        got = artifact(**given) if isinstance(given, dict) else artifact(given)
        assert all(torch.equal(got[task], want[task]) for task in want)


# --- saving and loading ---------------------------------------------------------------------------


def test_loaded_scores_are_the_same(folder: Path) -> None:
    artifact, loaded = optimized("cpu-int8"), rankc.load(str(folder))
    inputs = dlrm_inputs(100, seed=5)
    assert torch.equal(loaded(*inputs), artifact(*inputs))
    assert loaded.manifest == artifact.manifest
    assert loaded.verdict == artifact.verdict
    assert loaded.verdict.status is rankc.Status.PASS
    assert loaded.signature == artifact.signature
    assert loaded.nbytes == artifact.nbytes
    assert loaded.nbytes == sum((folder / n).stat().st_size for n in loaded.manifest.files)


def test_what_is_written(folder: Path) -> None:
    artifact = optimized("cpu-int8")
    assert isinstance(artifact.report, rankc.Report)
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "manifest.json",
        "report.json",
        "report.txt",
    }
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads(json.dumps(artifact.report.to_json()))
    assert report["verdict"]["status"] == "pass"
    assert report["passes"]
    assert report["sites"]
    assert report["remarks"]
    assert (folder / "report.txt").read_text() == str(artifact.report)

    manifest = json.loads((folder / "manifest.json").read_text())
    assert Manifest.from_json(manifest) == artifact.manifest
    assert manifest["target"] == "cpu-int8"
    assert manifest["budget"] == "ne=0.02"
    assert manifest["batch_sizes"] == [64, 512]
    assert manifest["seed"] == 0
    assert set(manifest["versions"]) >= {"rankc", "torch", "python", "onnxruntime"}
    assert set(manifest["fingerprints"]) == {"captured", "optimized", "rows"}
    for name, facts in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_essentials_are_in_the_onnx_file_too(folder: Path) -> None:
    artifact = optimized("cpu-int8")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    facts = {prop.key: prop.value for prop in model.metadata_props}
    assert facts["rankc.target"] == "cpu-int8"
    assert facts["rankc.version"] == rankc.__version__
    assert facts["rankc.recipe"] == ",".join(artifact.manifest.recipe)
    assert facts["rankc.fingerprint"] == artifact.manifest.fingerprints["optimized"]
    assert [value.name for value in model.graph.input] == ["dense", "ids"]
    assert [value.name for value in model.graph.output] == ["score"]
    assert artifact.onnx_path.name == "model.onnx"


def test_tables_lie_beside_the_graph(folder: Path) -> None:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    large = [t for t in model.graph.initializer if np.prod(t.dims) > 1024]
    assert large
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in large)
    widths = [helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in large]
    nbytes = sum(np.prod(t.dims) * width for t, width in zip(large, widths, strict=True))
    assert (folder / "model.onnx.data").stat().st_size >= nbytes


def test_an_artifact_without_onnx_says_so() -> None:
    artifact = rankc.optimize(small(), EAGER_FP32, inputs=small_inputs(4, 0), pipeline="exact")
    with pytest.raises(ArtifactError, match="the eager backend wrote no ONNX file"):
        _ = artifact.onnx_path


def test_a_loaded_artifact_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    loaded = rankc.load(str(folder))
    assert isinstance(loaded.report, dict)
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_a_folder_can_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "else" / "where"
    shutil.copytree(folder, moved)
    inputs = dlrm_inputs(10, seed=5)
    assert torch.equal(rankc.load(str(moved))(*inputs), optimized("cpu-int8")(*inputs))


def test_using_a_loaded_artifact_leaves_the_folder_untouched(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "artifact"
    shutil.copytree(folder, place)

    def state() -> dict[str, tuple[int, bytes]]:
        return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in place.iterdir()}

    before = state()
    loaded = rankc.load(str(place))
    loaded(*dlrm_inputs(10, seed=5))
    loaded.benchmark((1,))
    del loaded
    assert state() == before


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_save_that_fails_leaves_nothing(
    step: int, stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at the first file, at the second, or before the report's text is written."""
    artifact = optimized("cpu-int8")
    copy = shutil.copyfile
    calls = 0

    def copyfile(source: Any, destination: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            Path(destination).write_bytes(b"half")
            raise stop
        return copy(source, destination)

    def text() -> str:
        raise stop

    monkeypatch.setattr(artifact_module.shutil, "copyfile", copyfile)
    monkeypatch.setattr(artifact, "_report_text", text)
    expected = ArtifactError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        artifact.save(tmp_path / "deep" / "out")
    if expected is ArtifactError:
        assert "out can't be written: disk full" in str(caught.value)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_save_appears_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is whole there is nothing under its name."""
    artifact = optimized("cpu-int8")
    copy, seen = shutil.copyfile, []

    def copyfile(source: Any, destination: Any) -> Any:
        seen.append((tmp_path / "out").exists())
        return copy(source, destination)

    monkeypatch.setattr(artifact_module.shutil, "copyfile", copyfile)
    assert artifact.save(str(tmp_path / "out")) == tmp_path / "out"
    assert seen == [False, False]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_destination_is_checked_before_any_work(tmp_path: Path) -> None:
    check_destination(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file is no folder to write in"):
        check_destination(tmp_path / "file" / "out")
    with pytest.raises(ArtifactError, match="exists already"):
        check_destination(tmp_path)


# --- timing ---------------------------------------------------------------------------------------


def test_benchmark_times_each_batch_size(folder: Path) -> None:
    times = rankc.load(str(folder)).benchmark((1, 256))
    assert list(times) == [1, 256]
    assert all(isinstance(timing, Timing) and timing.median > 0 for timing in times.values())
    assert times[256].median > times[1].median


def test_the_original_is_left_as_it_was() -> None:
    """Optimizing changes neither a weight nor the mode of the user's model."""
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rankc.optimize(model, EAGER_FP32, inputs=small_inputs(4, seed=0))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not dlrm().training


class Batched(nn.Module):
    """Takes a whole batch of a data loader, of which it reads two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(6, 1)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        both = torch.cat([self.table(batch["ids"]), batch["x"]], 1)
        return self.head(both).squeeze(1)


@pytest.mark.parametrize(
    "label",
    [None, torch.ones(5), torch.full((5,), float("nan")), ["yes"] * 5, torch.ones(5, 2)],
    ids=["left out", "as captured", "missing values", "strings", "another shape"],
)
def test_inputs_that_nothing_reads_may_be_anything(tmp_path: Path, label: Any) -> None:
    module = Batched().eval()
    batch = {"label": torch.zeros(5), "ids": torch.arange(5), "x": torch.randn(5, 2)}
    artifact = rankc.optimize(module, "cpu-fp32", inputs=(batch,))
    loaded = rankc.load(artifact.save(tmp_path / "saved"))
    with torch.no_grad():
        expected = module(batch)
    given = {k: v for k, v in batch.items() if k != "label"} | (
        {} if label is None else {"label": label}
    )
    assert torch.allclose(loaded(given), expected, atol=1e-6)
    arrays = {name: value.numpy() for name, value in given.items() if name != "label"}
    assert np.allclose(loaded.run(arrays)["score"], expected, atol=1e-6)
    rows = [(given, torch.ones(5))] * 8
    assert "label" in collect(rows, artifact.manifest).features
