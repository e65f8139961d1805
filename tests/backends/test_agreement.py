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
from rankc.backends.onnx import to_onnx
from rankc.backends.onnxruntime import OnnxRuntime
from rankc.frontends.export import capture
from rankc.optimizer.context import PassContext
from rankc.optimizer.data import synthesize
from rankc.optimizer.errors import ArtifactError, UnsupportedError
from rankc.optimizer.instruments import Verify
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline import Pipeline
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


@pytest.fixture(scope="module", params=sorted(models.ZOO))
def program(request: pytest.FixtureRequest) -> Program:
    torch.manual_seed(0)
    return legal(capture(models.zoo()[request.param]().eval()))


@dataclass(frozen=True)
class Built:
    name: str
    folder: Path
    files: tuple[str, ...]


@pytest.fixture(scope="module", params=BACKENDS)
def built(
    request: pytest.FixtureRequest, program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    folder = tmp_path_factory.mktemp("built")
    made = backend(request.param).build(program, TARGET, folder, METADATA)
    assert made.versions
    return Built(request.param, folder, made.files)


def compare(runner: Any, program: Program, rows: int, tolerance: float) -> None:
    features = synthesize(program.signature, rows, seed=rows).features
    got = runner({name: value.numpy() for name, value in features.items()})
    want = program.run(features)
    assert tuple(got) == program.signature.outputs
    for name, expected in want.items():
        assert got[name].shape == tuple(expected.shape)
        assert got[name].dtype == expected.numpy().dtype
        error = abs(got[name] - expected.numpy()).max()
        assert error <= tolerance * expected.abs().max().item()


def test_it_scores_like_the_program_at_every_batch(built: Built, program: Program) -> None:
    runner = backend(built.name).open(built.folder, threads=1)
    for rows in (1, 3, 64):
        compare(runner, program, rows, TOLERANCE[built.name])


def test_the_files_are_those_it_names(built: Built) -> None:
    assert sorted(built.files) == sorted(path.name for path in built.folder.iterdir())


def test_the_file_says_what_it_is(built: Built, program: Program) -> None:
    if built.name == "eager":
        pytest.skip("it writes no ONNX")
    model = onnx.load(built.folder / "model.onnx", load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Loop", "If", "Scan"}
    assert not [kind for kind in kinds if "Sequence" in kind]
    assert not model.functions
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
    sites = {name.rpartition(".")[0] for name, _ in program.tensors()}
    named = [origin["rankc.origin"] for origin in origins if "rankc.origin" in origin]
    # A product of two inputs, such as DLRM's dots, has no module of its own.
    assert len(named) >= len(origins) - 1
    assert set(named) <= sites
    assert all(set(p.key for p in node.metadata_props) <= {"rankc.origin"} for node in layers)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_the_same_model_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.zoo()["dlrm-multihot"]().eval()
    for attempt in ("one", "two"):
        (tmp_path / attempt).mkdir()
        program = legal(capture(module))
        backend(name).build(program, TARGET, tmp_path / attempt, METADATA)
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
    with pytest.raises(UnsupportedError, match=r"aten.special_bessel_j0.default, used at special"):
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
