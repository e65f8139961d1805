"""OpenVINO: the same scores as the program, in the precision that was placed; and the race."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import rankc
import torch
from placed import coded, optimized
from rankc.backends.openvino import OpenVino
from rankc.optimizer.analysis.sites import linear_sites
from rankc.optimizer.artifact.race import Race
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import ArtifactError, TargetError
from rankc.optimizer.ir import Precision, Program, Rewriter, sweep
from rankc.optimizer.ir.pattern import shape_of
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.target import Target

pytest.importorskip("openvino")
pytestmark = pytest.mark.openvino
CPU = Target.of("cpu-int8")


def differ(program: Program, folder: Path, rows: int = 64) -> float:
    """How far the built artifact is from the program, relative to the scores."""
    OpenVino().build(program, CPU, folder, {})
    run = OpenVino().open(folder, 1)
    features = synthesize(program.signature, rows, 1).features
    got = run({name: value.numpy() for name, value in features.items()})
    want = program.run(features)
    assert tuple(got) == program.signature.outputs
    return max(float(abs(got[n] - w.numpy()).max() / w.abs().max()) for n, w in want.items())


def in_bf16(program: Program, least: int = 16) -> Program:
    copy = program.clone()
    rw = Rewriter(copy, "test")
    for node in linear_sites(copy):
        if min(shape_of(node.args[1])) >= least:
            realise(rw, node, Precision("bf16", weight_dtype="bfloat16"))
    sweep(copy)
    return copy


@pytest.mark.parametrize("model", ["dlrm", "deepfm", "mmoe"])
def test_scores_like_the_program(model: str, tmp_path: Path) -> None:
    assert differ(optimized(model), tmp_path) <= 1e-5


def test_codes_are_computed_as_codes(tmp_path: Path) -> None:
    program, placed = coded(optimized("dlrm"), "int8")
    assert placed
    assert differ(program, tmp_path) <= 2e-2, "one code of the activations at most, in places"


def test_bf16_is_a_precision_of_the_whole(tmp_path: Path) -> None:
    program = optimized("dlrm")
    OpenVino().build(in_bf16(program), CPU, tmp_path, {})
    assert '"bf16"' in (tmp_path / "openvino.json").read_text()
    run = OpenVino().open(tmp_path, 1)
    features = synthesize(program.signature, 64, 1).features
    got = run({name: value.numpy() for name, value in features.items()})
    (want,) = program.run(features).values()
    off = abs(got["score"] - want.numpy()).max() / want.abs().max()
    assert 1e-5 < off < 5e-2


def test_a_large_linear_that_stays_keeps_all_in_fp32(tmp_path: Path) -> None:
    OpenVino().build(in_bf16(optimized("dlrm"), least=40), CPU, tmp_path, {})
    assert '"fp32"' in (tmp_path / "openvino.json").read_text()


def test_it_has_static_int8_and_bf16_only() -> None:
    target = dataclasses.replace(CPU, formats=("int8-rows", "int8", "bf16", "fp8"))
    assert OpenVino().formats(target) == ("int8", "bf16")


def test_a_damaged_artifact_is_told(tmp_path: Path) -> None:
    OpenVino().build(optimized("dlrm"), CPU, tmp_path, {})
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="openvino can't open the model"):
        OpenVino().open(tmp_path)
    (tmp_path / "openvino.json").unlink()
    with pytest.raises(ArtifactError, match=r"openvino\.json is damaged"):
        OpenVino().open(tmp_path)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(OpenVino, "missing", lambda self: "pip install openvino")
    with pytest.raises(TargetError, match="pip install openvino"):
        OpenVino().build(optimized("dlrm"), CPU, tmp_path, {})


class Ranker(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 16)
        self.over = torch.nn.Sequential(
            torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
        )

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.over(torch.cat([dense, self.table(ids)], 1)).squeeze(1)


def batches(count: int) -> list[rankc.Batch]:
    generator = torch.Generator().manual_seed(1)
    dense, ids = torch.randn(count, 4, generator=generator), torch.arange(count) % 50
    labels = (Ranker()(dense, ids).sigmoid() > torch.rand(count, generator=generator)).float()
    return [rankc.Batch((dense, ids), labels)]


@pytest.mark.parametrize("fastest", ["onnxruntime", "openvino"])
def test_the_fastest_backend_wins_the_race(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(runs: dict, rows: rankc.optimizer.data.rows.Rows, sizes: tuple[int, ...]) -> Race:  # type: ignore[type-arg]
        return Race({name: {64: 1.0 if name == fastest else 2.0} for name in runs})

    monkeypatch.setattr(Race, "of", timed)
    model = Ranker().eval()
    artifact = rankc.optimize(model, "cpu-fp32", data=batches(6000), budget=rankc.Budget(ne=0.01))
    assert artifact.manifest.backend == fastest
    race = artifact.report.race  # type: ignore[union-attr]
    assert set(race.milliseconds) == {"onnxruntime", "openvino"}
    inputs = batches(10)[0].inputs
    assert torch.allclose(artifact(*inputs), model(*inputs), rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Overdo(rankc.Pass):
    """Wrecks table rows that only proof rows look up, but not for OpenVINO or within half."""

    name: ClassVar[str] = "overdo"
    exactness: ClassVar[rankc.Exactness] = rankc.Exactness.LOSSY

    def run(self, program: Program, ctx: PassContext) -> None:
        table = program.tensor("table.weight").clone()
        full = ctx.judge is not None and ctx.judge.budget.ne == 0.01
        wrecked = full and ctx.target.backends == ("onnxruntime",)
        table[40:] = table[40:] * 1.001 + (9.0 if wrecked else 0.0)
        ctx.rewriter(program).set_parameter("table.weight", table)


def test_the_fastest_tries_a_lesser_plan_before_a_slower_backend_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raced: list[tuple[str, ...]] = []

    def timed(runs: dict, rows: rankc.optimizer.data.rows.Rows, sizes: tuple[int, ...]) -> Race:  # type: ignore[type-arg]
        raced.append(tuple(runs))
        return Race({name: {64: 1.0 if name == "onnxruntime" else 2.0} for name in runs})

    monkeypatch.setattr(Race, "of", timed)
    (rows,) = batches(6000)
    dense, ids = rows.inputs
    ids[:3000] %= 40
    artifact = rankc.optimize(
        Ranker().eval(),
        "cpu-fp32",
        data=[rankc.Batch((dense, ids), rows.labels)],
        budget=rankc.Budget(ne=0.01),
        pipeline=Pipeline(passes=(*Pipeline.parse("exact").passes, Overdo())),
    )
    assert raced == [("onnxruntime", "openvino"), ("openvino", "onnxruntime")]
    assert artifact.manifest.backend == "onnxruntime"
    assert "overdo" in artifact.manifest.recipe
    notes = artifact.report.notes  # type: ignore[union-attr]
    assert sum(note.startswith("a faster plan was given up") for note in notes) == 1


def test_the_race_is_run_at_every_batch_size_on_real_rows() -> None:
    seen: list[int] = []

    def run(features: dict[str, np.ndarray]) -> None:
        seen.append(len(features["x"]))

    rows = rankc.optimizer.data.rows.Rows({"x": torch.arange(10)})
    race = Race.of({"one": run, "other": run}, rows, (4, 16))
    assert set(seen) == {4, 16}
    assert race.relative["one"] == 1.0
    assert "one" in str(race)
