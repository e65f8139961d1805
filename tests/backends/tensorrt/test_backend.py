"""TensorRT: engines of the whole zoo without a GPU, and that what was planned is what runs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import rankc
import torch
from placed import coded, halved, optimized, with_coded_tables
from rankc import models
from rankc.backends.onnx import tables as tensorrt_tables
from rankc.backends.onnx.files import MODEL
from rankc.backends.tensorrt import (
    backend as tensorrt,
)
from rankc.backends.tensorrt import (
    engine as tensorrt_engine,
)
from rankc.backends.tensorrt import (
    rules as tensorrt_rules,
)
from rankc.backends.tensorrt.backend import TensorRT, _engine, _Plan
from rankc.backends.tensorrt.build_log import Kernel, LinearRun, kernels, linear_runs, mismatches
from rankc.backends.tensorrt.engine import EngineFacts, Memory
from rankc.backends.tensorrt.rules import FULL, RTX, refused_by, require_formats, require_legal
from rankc.frontends.export import capture
from rankc.optimizer.cli import main
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import ArtifactError, SignatureError, TargetError, UnsupportedError
from rankc.optimizer.ir import Program, facts_of
from rankc.optimizer.target import DeviceSpec, Target
from torch import Tensor, nn

pytest.importorskip("tensorrt_rtx")
L40S, RTX6000, H100 = (Target.of(name) for name in ("l40s-fp8", "rtx6000-fp8", "h100-fp8"))
#: Where this test can't be told from another form: 64 steps of fp32, as for the other backends.
TOLERANCE = 64 * torch.finfo(torch.float32).eps


def fusion(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "fusion.json").read_text())
    return found


# --- the zoo ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", models.zoo())
def test_engines_of_the_zoo_run_what_was_planned(name: str, tmp_path: Path) -> None:
    program = optimized(name)
    for number_format in ("fp8", "int8", "fp16"):
        folder = tmp_path / number_format
        folder.mkdir()
        planned: list[str] = []
        if number_format == "fp16":
            built = halved(program, torch.float16)
        else:
            built, planned = coded(program, number_format)
        assert TensorRT().build(built, L40S, folder, {}).unmet == ()
        assert [run["runs"] for run in fusion(folder)["linears"]] == [number_format] * len(planned)
        runs, _ = _engine(folder / MODEL, folder, _Plan(RTX, 120, kept=True), (64, 512))
        assert [run.runs for run in runs] == [number_format] * len(planned)
        assert mismatches(runs) == ()
        assert EngineFacts.load(folder).sm == 120


@pytest.mark.parametrize("number_format", ["fp8", "int8"])
@pytest.mark.parametrize("name", ["dlrm", "wukong", "mmoe"])
def test_the_onnx_file_scores_like_the_program(
    name: str, number_format: str, tmp_path: Path
) -> None:
    program, _ = coded(with_coded_tables(optimized(name)), number_format)
    TensorRT().build(program, H100, tmp_path, {})
    run = TensorRT().open(tmp_path, 1)
    for rows in (1, 7, 64):
        features = synthesize(program.signature, rows, rows).features
        want = program.run(features)
        got = run({key: value.numpy() for key, value in features.items()})
        for key, expected in want.items():
            # A value within a rounding of half a step may take the other code.
            off = abs(got[key] - expected.numpy()).max()
            assert off <= 1e-2 * float(expected.abs().max())
            assert abs(got[key] - expected.numpy()).mean() <= 1e-4


def test_rebuilds_are_the_same_bytes(tmp_path: Path) -> None:
    program, _ = coded(optimized("dcnv2"), "fp8")
    digests = []
    for attempt in ("one", "two"):
        folder = tmp_path / attempt
        folder.mkdir()
        built = TensorRT().build(program.clone(), RTX6000, folder, {})
        digests.append(
            {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in built.files}
        )
    assert digests[0] == digests[1]
    assert set(digests[0]) >= {"model.onnx", "model.engine", "engine.json", "fusion.json"}


def test_the_report_names_the_users_linears(tmp_path: Path) -> None:
    program, planned = coded(optimized("wukong"), "fp8")
    sites = {n.name: facts_of(n).site for n in program.graph.nodes}
    built = TensorRT().build(program, L40S, tmp_path, {})
    report = fusion(tmp_path)
    assert [run["site"] for run in report["linears"]] == [sites[name] for name in planned]
    assert all(run["as_planned"] for run in report["linears"])
    assert report["sm"] == 89
    assert report["engine_kept"]
    assert built.fused == {"fp8 linears": len(planned)}
    assert "4 of 4 coded linears run as planned" in "".join(built.notes)


def test_an_h100_gets_checked_onnx(tmp_path: Path) -> None:
    program, _ = coded(optimized("dlrm"), "fp8")
    built = TensorRT().build(program, H100, tmp_path, {})
    assert "model.engine" not in built.files
    assert "doesn't build for SM90" in "".join(built.notes)
    assert "rankc build" in "".join(built.notes)
    assert fusion(tmp_path)["sm"] == 89


def test_coded_tables_are_one_kernel_that_reads_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = with_coded_tables(optimized("dlrm"))
    logs: list[str] = []
    monkeypatch.setattr(tensorrt, "kernels", lambda log: kernels(logs.extend(log) or logs))
    TensorRT().build(program, L40S, tmp_path, {})
    looked_up = [k for k in kernels(logs) if "int8" in k.weights]
    assert len(looked_up) == 1
    assert "fp32" in looked_up[0].outputs


def test_large_tables_are_inputs_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_tables, "TABLE_BYTES", 1024)
    program = with_coded_tables(optimized("dlrm"))
    TensorRT().build(program, L40S, tmp_path, {})
    facts = EngineFacts.load(tmp_path)
    assert len(facts.tables) >= 1
    assert all(name in ir.load(tmp_path / "model.onnx").graph.initializers for name in facts.tables)


def test_profiles_come_from_the_batch_sizes(tmp_path: Path) -> None:
    metadata = {"rankc.batch_sizes": "32,128,2048"}
    TensorRT().build(optimized("dlrm"), L40S, tmp_path, metadata)
    assert EngineFacts.load(tmp_path).batches == (1, 128, 2048)


# --- the fusion report --------------------------------------------------------------------------


def layer(name: str, kind: str, inputs: str, constants: str, nodes: str) -> str:
    def tensors(kinds: str) -> str:
        text = [
            f"{{ Name: t, Dimensions: [8,8], Datatype: {k}, Format: x }}" for k in kinds.split()
        ]
        return f"[{', '.join(text)}]"

    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes.split())
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {tensors(inputs)}, Constants: "
        f"{tensors(constants)}, Outputs: {tensors('Float')}, TacticName: , StreamId: 0, "
        f"Metadata: {metadata}"
    )


def quantized_linear() -> ir.Model:
    def value(name: str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([8, 8]))

    x, w, s = value("x"), value("w", ir.DataType.FLOAT8E4M3FN), value("s")
    q = ir.Node("", "QuantizeLinear", [x, s], name="q")
    d = ir.Node("", "DequantizeLinear", [q.outputs[0], s], name="dequantize")
    dw = ir.Node("", "DequantizeLinear", [w, s], name="dequantize_1")
    gemm = ir.Node("", "Gemm", [d.outputs[0], dw.outputs[0]], name="linear")
    gemm.metadata_props["rankc.origin"] = "over.0"
    graph = ir.Graph([x, w, s], gemm.outputs, nodes=[q, d, dw, gemm], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize(
    ("lines", "runs"),
    [
        ([layer("g", "gemm", "FP8", "FP8", "linear")], "fp8"),
        ([layer("g", "gemm", "Float", "FP8", "linear")], "fp8 weights"),
        ([layer("g", "gemm", "Half", "Half", "linear")], "fp16"),
        ([layer("g", "kgen", "Float", "Float", "other")], "no kernel of its own"),
    ],
)
def test_what_runs_is_read_from_the_kernels(lines: list[str], runs: str) -> None:
    built = kernels(["Layers:\n" + "\n".join(lines)])
    (found,) = linear_runs(quantized_linear(), built)
    assert (found.site, found.planned, found.runs) == ("over.0", "fp8", runs)
    assert found.as_planned == (runs == "fp8")
    if runs != "fp8":
        assert mismatches([found]) == (f"over.0 was planned in fp8 and runs in {runs}",)


def test_conversions_left_standing_are_told_with_their_reason() -> None:
    lines = [
        layer("c", "kgen", "Float", "", "quantize dequantize"),
        layer("g", "gemm", "Float", "Float", "linear"),
    ]
    (found,) = linear_runs(quantized_linear(), kernels(["Layers:\n" + "\n".join(lines)]))
    (said,) = found.standing
    assert "DequantizeLinear is a kernel of its own" in said


def test_a_log_without_layers_is_no_kernels() -> None:
    assert kernels(["nothing", "of use"]) == ()


def test_strict_refuses_a_mismatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, _ = coded(optimized("dlrm"), "fp8")
    runs = (LinearRun("top.0", "fp8", "fp32"),)
    monkeypatch.setattr(tensorrt, "linear_runs", lambda model, built: runs)
    built = TensorRT().build(program, L40S, tmp_path, {})
    with pytest.raises(TargetError, match=r"doesn't keep the plan: top.0 was planned in fp8"):
        built.require_plan("tensorrt")


# --- bad input ------------------------------------------------------------------------------------


def device(sm: int | None) -> DeviceSpec:
    return DeviceSpec("a device", "cuda" if sm else "cpu", sm=sm)


def test_a_format_the_sm_lacks_is_told_with_who_has_it(tmp_path: Path) -> None:
    target = Target("old-fp8", device(80), formats=("fp8",), backends=("tensorrt",))
    with pytest.raises(UnsupportedError, match=r"\(SM80\) has no fp8; SM89 \(L4, L40S\), SM90"):
        TensorRT().build(optimized("dlrm"), target, tmp_path, {})
    with pytest.raises(UnsupportedError, match="builds for NVIDIA GPUs"):
        require_formats(Target("cpu", device(None)))


class Pooled(nn.Module):
    """Adds rows by index."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.pool = type("Pool", (nn.Module,), {"forward": self._add})()

    @staticmethod
    def _add(self: nn.Module, rows: Tensor, where: Tensor) -> Tensor:
        return torch.zeros(rows.shape[0], 4).index_add(0, where, rows)

    def forward(self, ids: Tensor) -> Tensor:
        return self.pool(self.table(ids), torch.arange(ids.shape[0])).sum(1)


def test_a_node_nothing_takes_is_named_with_a_rewrite(tmp_path: Path) -> None:
    program = capture(Pooled().eval(), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UnsupportedError) as caught:
        TensorRT().build(program, L40S, tmp_path, {})
    assert re.search(r"pool: TensorRT doesn't add rows by index.*padded ids", str(caught.value))


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (ir.Node("com.microsoft", "FusedMatMul", []), "is of the domain 'com.microsoft'"),
        (ir.Node("", "NonZero", []), "number depends on the data"),
        (
            ir.Node("", "ScatterND", [], attributes=[ir.AttrString("reduction", "add")]),
            "adds or compares rows by index",
        ),
        (ir.Node("", "DynamicQuantizeLinear", []), "takes its scale from the batch"),
        (ir.Node("", "SequenceEmpty", []), "sequence of tensors"),
    ],
    ids=lambda value: value.op_type if isinstance(value, ir.Node) else "",
)
def test_what_the_parser_refuses_is_refused_before_it(node: ir.Node, reason: str) -> None:
    node.name, node.metadata_props["rankc.origin"] = "n", "tower.odd"
    graph = ir.Graph([], [], nodes=[node], opset_imports={"": 21})
    with pytest.raises(UnsupportedError, match=r"tower.odd: ") as caught:
        require_legal(ir.Model(graph, ir_version=10), L40S)
    assert reason in str(caught.value)
    assert "What would help" in str(caught.value)


def test_plain_scatters_are_taken() -> None:
    assert refused_by(ir.Node("", "ScatterND", [])) is None


FACTS = EngineFacts("tensorrt_rtx", "1.7.1.116", 89, (1, 64, 512), ())


@pytest.mark.parametrize(
    ("sm", "installed", "message"),
    [
        (120, {"tensorrt_rtx": "1.7.1.116"}, "built for SM89, and this GPU is SM120"),
        (89, {}, "isn't installed: pip install tensorrt-rtx-cu13==1.7.1.116"),
        (89, {"tensorrt_rtx": "2.0"}, "and 2.0 is installed; an engine is read by the version"),
    ],
)
def test_an_engine_for_another_machine_is_refused(
    sm: int, installed: dict[str, str], message: str
) -> None:
    with pytest.raises(ArtifactError, match=re.escape(message)):
        FACTS.require(sm, installed)
    FACTS.require(89, {"tensorrt_rtx": "1.7.1.116"})


def test_a_batch_outside_the_profile_is_told() -> None:
    FACTS.require_batch(512)
    with pytest.raises(SignatureError, match=r"513 rows is outside the engine's profile, 1 to 512"):
        FACTS.require_batch(513)


def test_out_of_device_memory_says_what_would_fit() -> None:
    Memory(weights=10, activations=90).require(free=100, largest=512)
    with pytest.raises(ArtifactError, match="A batch of 256 would fit"):
        Memory(weights=2**30, activations=2**30).require(free=3 * 2**29, largest=512)
    with pytest.raises(ArtifactError, match="No batch would fit: a target with INT8 tables"):
        Memory(weights=2**30, activations=1).require(free=2**29, largest=512)


def test_a_missing_package_is_told_by_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rules.Library, "installed", lambda self: False)
    assert TensorRT().missing() == "pip install tensorrt-rtx-cu13==1.7.1.116"
    built = TensorRT().build(optimized("dlrm"), L40S, tmp_path, {})
    assert "TensorRT is missing here" in built.notes[-1]
    assert RTX.pip in built.notes[-1]
    assert TensorRT().here(L40S).built == "ONNX, not checked by TensorRT"


def test_on_the_targets_own_gpu_a_missing_package_leaves_it_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rules.Library, "installed", lambda self: False)
    monkeypatch.setattr(tensorrt, "gpu_sm", lambda: 89)
    with pytest.raises(TargetError, match=re.escape(RTX.pip)):
        TensorRT().build(optimized("dlrm"), L40S, tmp_path, {})
    assert TensorRT().here(L40S).built == ""


def test_the_full_package_builds_on_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rules.Library, "installed", lambda self: self is FULL)
    with pytest.raises(TargetError, match="builds on the GPU itself, SM90; this machine has none"):
        tensorrt._plan_for(H100)
    monkeypatch.setattr(tensorrt, "gpu_sm", lambda: 90)
    assert tensorrt._plan_for(H100) == _Plan(FULL, 90, kept=True)


def test_an_old_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = replace(RTX, minimum=(99, 0))
    with pytest.raises(UnsupportedError, match=r"tensorrt_rtx 1.7.1.116 is older than 99.0"):
        newer.load()


def test_finishing_an_engine_needs_its_gpu(tmp_path: Path) -> None:
    program: Program = optimized("dlrm")
    TensorRT().build(program, H100, tmp_path, {})
    with pytest.raises(TargetError, match=r"doesn't build for NVIDIA H100 SXM \(SM90\)"):
        TensorRT().complete(tmp_path, tmp_path, H100, (64,))
    files = TensorRT().complete(tmp_path, tmp_path, L40S, (64,))
    assert set(files) == {"fusion.json", "model.engine", "engine.json"}
    assert EngineFacts.load(tmp_path).batches == (1, 64, 64)


def test_damaged_facts_are_told(tmp_path: Path) -> None:
    (tmp_path / tensorrt_engine.FACTS).write_text("{}")
    with pytest.raises(ArtifactError, match=r"engine.json is damaged or foreign"):
        EngineFacts.load(tmp_path)


def test_a_refusal_of_the_builder_names_the_node(tmp_path: Path) -> None:
    graph = quantized_linear()
    said = tensorrt._told(graph, [("linear", "no kernel for it\nmore")], _Plan(RTX, 89, kept=True))
    assert "over.0 (Gemm): no kernel for it" in said
    assert Kernel("k", "gemm", (), (), (), ()).nodes == ()


# --- through optimize -----------------------------------------------------------------------------


def test_an_artifact_is_finished_on_its_own_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = models.zoo()["dlrm"]().eval()
    artifact = rankc.optimize(model, "l40s-fp8", batch_sizes=(32, 256), formats="none")
    assert artifact.manifest.backend == "tensorrt"
    assert {"model.onnx", "model.engine", "fusion.json"} <= set(artifact.manifest.files)
    assert "engine built by tensorrt_rtx" in str(artifact.report)
    folder = artifact.save(tmp_path / "out")
    (folder / "model.engine").unlink()
    assert main(["build", str(folder)]) == 0
    assert "built fusion.json, model.engine, engine.json" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match=r"model\.engine is compiled code"):
        rankc.load(str(folder))
    loaded = rankc.load(str(folder), trust_code=True)
    inputs = model.example_inputs(5)
    assert torch.allclose(loaded(*inputs), model(*inputs), atol=1e-6)
    assert EngineFacts.load(folder).batches == (1, 256, 256)


def test_there_is_nothing_to_build_in_other_artifacts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = rankc.optimize(models.zoo()["dlrm"]().eval(), "cpu-fp32")
    folder = artifact.save(tmp_path / "out")
    assert main(["build", str(folder)]) == 1
    assert "there is nothing left to build" in capsys.readouterr().err


def test_an_h100_artifact_says_what_its_machine_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = rankc.optimize(models.zoo()["dlrm"]().eval(), "h100-fp8")
    assert artifact.manifest.backend == "tensorrt"
    folder = artifact.save(tmp_path / "out")
    assert main(["build", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "doesn't build for NVIDIA H100 SXM (SM90)" in said
    assert 'pip install "tensorrt>=10.13"' in said
    assert main(["bench", str(folder), "--batch", "4"]) == 0
    assert capsys.readouterr().out.startswith("CPU emulation, not h100-fp8: ")
    assert main(["bench", str(folder), "--batch", "4", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["runs on"] == "CPU emulation, not h100-fp8"


def test_without_the_package_the_artifact_says_so_and_is_finished_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "rankc.models.dlrm:DLRM.small"
    with monkeypatch.context() as plain:
        plain.setattr(tensorrt_rules.Library, "installed", lambda self: False)
        artifact = rankc.optimize(models.zoo()["dlrm"]().eval(), "l40s-fp8")
        (note,) = (n for n in artifact.report.notes if "TensorRT is missing here" in n)
        assert main(["doctor", place, "--target", "l40s-fp8", "--json"]) == 0
        (examined,) = json.loads(capsys.readouterr().out)["notes"]
        folder = artifact.save(tmp_path / "out")
        assert main(["build", str(folder)]) == 1
        assert RTX.pip in capsys.readouterr().err
    assert artifact.manifest.backend == "tensorrt"
    assert "model.engine" not in artifact.manifest.files
    assert examined == note
    for said in (RTX.pip, FULL.pip, "`rankc build` makes the engine on the serving machine"):
        assert said in note
    assert main(["build", str(folder)]) == 0
    assert "model.engine" in rankc.load(str(folder), trust_code=True).manifest.files


def test_targets_tell_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["targets"]) == 0
    assert "for more, tensorrt" not in capsys.readouterr().out
    monkeypatch.setattr(tensorrt_rules.Library, "installed", lambda self: False)
    assert main(["targets"]) == 0
    assert f"for more, tensorrt: {RTX.pip}" in capsys.readouterr().out
