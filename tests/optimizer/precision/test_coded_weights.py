"""Linears whose weights alone are coded: from the choice of the format to TensorRT's kernels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
import rankc
import torch
from rankc.backends.inductor.backend import Inductor
from rankc.backends.onnx.backend import PlainOnnx
from rankc.backends.onnx.files import MODEL
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.backends.openvino import OpenVino
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import UnsupportedError
from rankc.optimizer.formats import weight_width
from rankc.optimizer.ir import Program, Rewriter, sweep
from rankc.optimizer.ir.ops import CODED_LINEAR, decoded_weight
from rankc.optimizer.precision.candidates import candidates, choose_input, output_of
from rankc.optimizer.precision.codes import BLOCK, quantize_weights_alone
from rankc.optimizer.precision.kernel_times import Kernel, estimate
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.target import Target
from rankc.optimizer.training.trainable import Trainable
from support import canonical
from torch import Tensor, nn

X = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
L40S, H100 = Target.of("l40s-fp8"), Target.of("h100-fp8")
WEIGHTS_ALONE = {"int8-weights": 8, "int4-weights": 4}


class Net(nn.Module):
    """Two linears over one input, as an interaction beside a deep part, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cross, self.deep = nn.Linear(256, 256), nn.Linear(256, 128, bias=False)
        self.head = nn.Linear(384, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x * self.cross(x), torch.relu(self.deep(x))], -1)
        return self.head(both).squeeze(-1)


def coded(number_format: str) -> tuple[Program, Program]:
    """The canonical program, and a copy with both wide linears in the format."""
    program = canonical(Net(), X)
    copy = program.clone()
    rw = Rewriter(copy, "test")
    linears = list(copy.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default))
    for linear in linears[:2]:
        weight = copy.tensor(str(linear.args[1].target))
        realise(rw, linear, choose_input(X, weight, number_format, "int8")[0])
    sweep(copy)
    return program, copy


# --- codes ----------------------------------------------------------------------------------------


def test_codes_are_right_to_half_a_step() -> None:
    weight = torch.randn(24, 2 * BLOCK)
    weight[0] = 0.0
    weight[1, :BLOCK] = 1e-44  # on its way to zero by weight decay
    codes, scale = quantize_weights_alone(weight, 8)
    off = (decoded_weight(codes, scale.float()) - weight).abs()
    # half a step, and the rounding of the scale to bf16 times the largest code
    peak = weight.abs().amax(1, keepdim=True)
    assert bool((off <= peak * (0.5 / 127 + 2**-8)).all())
    codes, scale = quantize_weights_alone(weight, 4)
    assert scale.shape == (24, 2)
    assert int(codes.abs().max()) <= 7
    decoded = decoded_weight(codes, scale.float())
    assert not decoded[0].any()
    assert bool(torch.isfinite(decoded).all())


def test_a_range_that_is_searched_leaves_less_error() -> None:
    weight = torch.randn(64, BLOCK)
    codes, scale = quantize_weights_alone(weight, 4)
    step = weight.abs().amax(1, keepdim=True) / 7.0
    plain = (weight / step).round() * step
    found = decoded_weight(codes, scale.float())
    assert float((found - weight).norm()) < 0.98 * float((plain - weight).norm())


@pytest.mark.parametrize("number_format", WEIGHTS_ALONE)
def test_the_program_computes_what_was_predicted(number_format: str) -> None:
    weight = torch.randn(128, 256)
    ((precision, errors),) = candidates(X, weight, [number_format], "int8")
    assert precision.recipe == number_format
    low = output_of(X, weight, precision)
    exact = X @ weight.T
    assert errors["relative"] == pytest.approx(float((low - exact).norm() / exact.norm()), rel=0.05)
    assert errors["relative"] < {"int8-weights": 0.01, "int4-weights": 0.13}[number_format]


def test_four_bits_need_whole_blocks_of_inputs() -> None:
    weight, x = torch.randn(64, BLOCK + 1), torch.randn(32, BLOCK + 1)
    assert candidates(x, weight, ["int4-weights"], "int8") == []
    assert len(candidates(x, weight, ["int8-weights"], "int8")) == 1


def test_they_are_estimated_by_what_they_read() -> None:
    assert [weight_width(name) for name in ("fp32", "bf16", "fp8", *WEIGHTS_ALONE)] == [
        *(4.0, 2.0, 1.0),
        *(1.0, 0.5),
    ]
    kernels = {
        name: Kernel(4096, 4096, 8, True, False, name) for name in ("bf16", "fp8", *WEIGHTS_ALONE)
    }
    seconds = {name: estimate(kernel, H100) for name, kernel in kernels.items()}
    # Few rows: a linear takes as long as its weights take to be read.
    assert seconds["int4-weights"] < seconds["fp8"] < seconds["bf16"]
    assert seconds["int8-weights"] == pytest.approx(seconds["fp8"], rel=0.05)


# --- backends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_format", WEIGHTS_ALONE)
def test_tensorrt_multiplies_codes_that_it_decodes_as_it_reads(
    number_format: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from rankc.backends.tensorrt.backend import RTX, TensorRT, _engine, _Plan

    _, program = coded(number_format)
    built = TensorRT().build(program, L40S, tmp_path, {})
    assert built.unmet == ()
    planned = f"int{WEIGHTS_ALONE[number_format]} weights"
    linears = json.loads((tmp_path / "fusion.json").read_text())["linears"]
    assert [(one["site"], one["planned"], one["runs"]) for one in linears] == [
        ("cross", planned, planned),
        ("deep", planned, planned),
    ]
    runs, _ = _engine(tmp_path / MODEL, tmp_path, _Plan(RTX, 120, kept=True), (64, 512))
    assert [run.runs for run in runs] == [planned, planned]


@pytest.mark.parametrize("number_format", WEIGHTS_ALONE)
def test_the_onnx_file_holds_the_codes_and_scores_alike(number_format: str, tmp_path: Path) -> None:
    exact, program = coded(number_format)
    PlainOnnx().build(program, H100, tmp_path, {})
    model = ir.load(tmp_path / "model.onnx")
    kinds = [node.inputs[0].dtype for node in model.graph if node.op_type == "DequantizeLinear"]
    assert kinds == [{8: ir.DataType.INT8, 4: ir.DataType.INT4}[WEIGHTS_ALONE[number_format]]] * 2
    weights = 384 * 256 * WEIGHTS_ALONE[number_format] // 8
    assert sum(file.stat().st_size for file in tmp_path.glob("model.onnx*")) < 1.2 * weights + 12e3
    run = PlainOnnx().open(tmp_path, 1)
    for rows in (1, 7, 64):
        features = synthesize(program.signature, rows, rows).features
        (name,) = program.signature.outputs
        got = torch.from_numpy(run({key: value.numpy() for key, value in features.items()})[name])
        # A sum within a rounding of half a step of bf16, 2⁻⁸, may take the other value.
        torch.testing.assert_close(got, program.run(features)[name], rtol=1e-2, atol=1e-4)
        moved = (program.run(features)[name] - exact.run(features)[name]).norm()
        assert 0.0 < float(moved / exact.run(features)[name].norm()) < 0.2


@pytest.mark.parametrize("number_format", WEIGHTS_ALONE)
def test_a_package_scores_alike(number_format: str, tmp_path: Path) -> None:
    _, program = coded(number_format)
    Inductor().build(program, Target.of("cpu-fp32"), tmp_path, {})
    features = synthesize(program.signature, 16, 1).features
    (name,) = program.signature.outputs
    got = Inductor().open(tmp_path)({key: value.numpy() for key, value in features.items()})[name]
    torch.testing.assert_close(
        torch.from_numpy(got), program.run(features)[name], rtol=1e-2, atol=1e-3
    )


def test_backends_of_the_cpu_leave_them_out() -> None:
    """They have no product of such codes that is faster than INT8 rows or fp32."""
    target = replace(Target.of("cpu-int8"), formats=("int8", "int8-weights", "int4-weights"))
    for backend in (OnnxRuntime(), OpenVino()):
        assert backend.formats(target) == ("int8",)


def test_a_format_that_no_backend_has_is_told() -> None:
    target = replace(
        Target.of("cpu-int8"), formats=("int8-rows", "int4-weights"), backends=("onnxruntime",)
    )
    artifact = rankc.optimize(Net().eval(), target, inputs=(X,))
    (told,) = [note for note in artifact.report.notes if note.startswith("no linear was tried")]
    assert told == (
        "no linear was tried in int4-weights: no backend of cpu-int8 (onnxruntime) has a product "
        "in it"
    )


def test_a_gpu_without_bf16_is_told() -> None:
    pytest.importorskip("tensorrt_rtx")
    from rankc.backends.tensorrt.rules import require_formats

    turing = replace(L40S, device=replace(L40S.device, sm=75), formats=("int4-weights",))
    with pytest.raises(UnsupportedError, match="has no int4-weights; SM80"):
        require_formats(turing)


# --- the whole ------------------------------------------------------------------------------------


def test_a_plan_takes_them_where_weights_are_what_takes_time() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Net().eval()
    batches = []
    for _ in range(6):
        x = torch.randn(2000, 256, generator=generator)
        with torch.no_grad():
            labels = torch.rand(2000, generator=generator) < torch.sigmoid(model(x))
        batches.append(rankc.Batch((x,), labels.float()))
    target = replace(H100, formats=("int4-weights", "bf16"), backends=("onnx",))
    budget = rankc.Budget(ne=5e-2, max_rms_shift=None)
    artifact = rankc.optimize(model, target, data=batches, budget=budget, batch_sizes=(1,))
    chosen = {site.site: site.chosen for site in artifact.report.sites}
    assert chosen["cross"] == chosen["deep"] == "int4-weights"
    assert artifact.verdict.status.value == "pass"


@pytest.mark.parametrize("number_format", WEIGHTS_ALONE)
def test_they_are_finetuned_as_codes(number_format: str) -> None:
    _, program = coded(number_format)
    trainable = Trainable(program)
    features = {"x": X}
    codes = [leaf for name, leaf in trainable.leaves.items() if name.endswith("_codes")]
    assert len(codes) == 2
    optimizer = torch.optim.Adam(codes, lr=0.6)
    (before,) = trainable(features).values()
    torch.testing.assert_close(before, next(iter(program.run(features).values())))
    for _ in range(4):
        (scores,) = trainable(features).values()
        optimizer.zero_grad()
        scores.square().mean().backward()
        optimizer.step()
    made = trainable.trained()
    (after,) = made.run(features).values()
    assert float(after.square().mean()) < float(before.detach().square().mean())
    torch.testing.assert_close(after, next(iter(trainable(features).values())))
    for node in made.graph.find_nodes(op="call_function", target=CODED_LINEAR.op):
        codes = made.tensor(str(node.args[1].target))
        assert codes.dtype is torch.int8
        assert int(codes.abs().max()) <= {8: 127, 4: 7}[WEIGHTS_ALONE[number_format]]
