"""Every backend scores like the program, and writes a file that says what it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from rankc import models
from rankc.backends.onnx.translate import to_onnx
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.frontends.export import capture
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import ArtifactError, UnsupportedError
from rankc.optimizer.ir import Program, facts_of
from rankc.optimizer.pipeline.instruments import Verify
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.registry import backend
from rankc.optimizer.target import Target
from torch import Tensor, nn

TARGET = Target.of("cpu-fp32")
BACKENDS = ("eager", "onnx", "onnxruntime")
#: Largest difference over the largest score. Eager runs the same kernels on the same graph; ONNX
#: Runtime sums products in another order: 64 steps of fp32.
TOLERANCE = {
    "eager": 0.0,
    "onnx": 64 * torch.finfo(torch.float32).eps,
    "onnxruntime": 64 * torch.finfo(torch.float32).eps,
}
METADATA = {"rankc.version": "test"}


def legal(program: Program) -> Program:
    context = PassContext(target=TARGET, instruments=(Verify(),), strict=True)
    Pipeline.parse("canonicalize,lower-embedding-bag").run(program, context)
    return program


def files_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


#: Models that every backend builds, and those that the default one builds. Together they hold every
#: operator of the zoo; building all of it takes minutes.
EVERYWHERE = ("dlrm", "dlrm-multihot", "din", "mmoe")
DEFAULT_ONLY = (
    "dcnv2-moe",
    "deepfm",
    "dhen",
    "dlrm-dcnv2",
    "fibinet",
    "masknet",
    "two-sided",
    "two-tower",
    "xdeepfm",
)
CASES = [
    *((model, name) for model in EVERYWHERE for name in BACKENDS),
    *((model, "onnxruntime") for model in DEFAULT_ONLY),
]


@dataclass(frozen=True)
class Built:
    name: str
    program: Program
    folder: Path
    files: tuple[str, ...]


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    return {}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def built(
    request: pytest.FixtureRequest,
    programs: dict[str, Program],
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    model, name = request.param
    if model not in programs:
        torch.manual_seed(0)
        programs[model] = legal(capture(models.zoo()[model]().eval()))
    folder = tmp_path_factory.mktemp("built")
    made = backend(name).build(programs[model], TARGET, folder, METADATA)
    assert made.versions
    return Built(name, programs[model], folder, made.files)


def compare(runner: Any, program: Program, rows: int, tolerance: float) -> None:
    features = synthesize(program.signature, rows, seed=rows).features
    got = runner({name: value.numpy() for name, value in features.items()})
    want = program.run(features)
    # One row's score may happen to be near zero: errors are relative to what scores usually are.
    usual = program.run(synthesize(program.signature, 64, seed=64).features)
    assert tuple(got) == program.signature.outputs
    for name, expected in want.items():
        assert got[name].shape == tuple(expected.shape)
        assert got[name].dtype == expected.numpy().dtype
        error = abs(got[name] - expected.numpy()).max()
        scale = max(expected.abs().max().item(), usual[name].abs().max().item())
        assert error <= tolerance * scale


def test_it_scores_like_the_program_at_every_batch(built: Built) -> None:
    runner = backend(built.name).open(built.folder, threads=1)
    for rows in (1, 3, 64):
        compare(runner, built.program, rows, TOLERANCE[built.name])


def test_the_files_are_those_it_names(built: Built) -> None:
    assert sorted(built.files) == sorted(path.name for path in built.folder.iterdir())


def test_the_file_says_what_it_is(built: Built) -> None:
    program = built.program
    if built.name == "eager":
        pytest.skip("it writes no ONNX")
    model = onnx.load(built.folder / "model.onnx", load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    kinds = {node.op_type for node in nodes}
    assert not kinds & {"Loop", "If", "Scan"}
    assert not [kind for kind in kinds if "Sequence" in kind]
    assert {function.domain for function in model.functions} <= {"rankc"}
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
    assert tuple(value.name for value in model.graph.input) == program.signature.names
    assert tuple(value.name for value in model.graph.output) == program.signature.outputs
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in dims[1:])
    layers = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul", "FusedGemm")]
    origins = [{p.key: p.value for p in node.metadata_props} for node in layers]
    assert origins
    sites = {origin for node in program.graph.nodes for origin in facts_of(node).origin}
    named = [origin["rankc.origin"] for origin in origins if "rankc.origin" in origin]
    # A product in the model's own forward, such as DLRM's dots, has no module to name.
    assert named
    assert set(named) <= sites
    gemms = [node for node in layers if node.op_type != "MatMul"]
    assert all("rankc.origin" in {p.key for p in node.metadata_props} for node in gemms)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.zoo()["dlrm-multihot"]().eval()
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        program = legal(capture(module))
        backend("onnxruntime").build(program, TARGET, tmp_path / attempt, METADATA)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


class Odd(nn.Module):
    """A forward that the test gives."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.call = forward

    def forward(self, linear: Tensor, sigmoid: Tensor, unused: Tensor) -> Any:
        return self.call(self, linear, sigmoid)


@pytest.mark.parametrize(
    "forward",
    [
        # Inputs called like the values inside; two outputs that are one value; an input that is
        # an output; a constant output.
        lambda m, x, y: (m.linear(x) + y[:, :1]).sigmoid(),
        lambda m, x, y: [m.linear(x + y)] * 2,
        lambda m, x, y: (x, m.linear(y)),
    ],
)
@pytest.mark.parametrize("name", BACKENDS)
def test_names_and_outputs_that_clash(name: str, forward: Any, tmp_path: Path) -> None:
    program = legal(capture(Odd(forward).eval(), (torch.ones(2, 4),) * 3))
    made = backend(name)
    made.build(program, TARGET, tmp_path, {})
    compare(made.open(tmp_path, 1), program, 3, TOLERANCE[name])


class Refused(nn.Module):
    """Uses an operator ONNX has no form for."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.tower = nn.Linear(4, 3)
        self.special = type("Special", (nn.Module,), {"forward": lambda self, x: call(x)})()

    def forward(self, x: Tensor) -> Tensor:
        return self.special(self.tower(x)).sum(1)


def test_an_operator_without_a_form_is_named(tmp_path: Path) -> None:
    program = legal(capture(Refused(torch.special.bessel_j0).eval(), torch.zeros(2, 4)))
    with pytest.raises(
        UnsupportedError,
        match=r"no form for aten.special_bessel_j0.default, used at special: No ONN",
    ):
        to_onnx(program)
    with pytest.raises(UnsupportedError, match="used at special"):
        backend("onnxruntime").build(program, TARGET, tmp_path, {})


def test_what_supports_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = legal(capture(Refused(torch.tanh).eval(), torch.zeros(2, 4)))

    def no_tanh(self: Any, node: Any, target: Target) -> str | None:
        return "no tanh here" if node.target is torch.ops.aten.tanh.default else None

    monkeypatch.setattr(OnnxRuntime, "supports", no_tanh)
    message = r"onnxruntime can't build 1 nodes for cpu-fp32:\n  special: no tanh here"
    with pytest.raises(UnsupportedError, match=message):
        backend("onnxruntime").build(program, TARGET, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"model.onnx can't be opened"):
        backend("onnxruntime").open(tmp_path)
