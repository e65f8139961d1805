"""Formats whose scales are of blocks: codes, programs, ONNX, the gate, TensorRT's kernels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import rankc
import torch
from rankc.backends.onnx.backend import PlainOnnx
from rankc.optimizer.analysis.sites import inputs_of, linear_sites
from rankc.optimizer.errors import UnsupportedError
from rankc.optimizer.formats import LINEAR
from rankc.optimizer.ir import Precision, Program, Rewriter, sweep
from rankc.optimizer.ir.ops import nv_rounded, nv_values
from rankc.optimizer.precision.candidates import choose_input, output_of
from rankc.optimizer.precision.linear_format import linear_format
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.target import Target
from support import capture_small
from torch import Tensor, nn

FORMATS = ("mxfp8", "nvfp4")
ROWS = torch.Generator().manual_seed(3)


class Net(nn.Module):
    """Linears over rows, one of which are no whole blocks, and over steps of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.steps = nn.Linear(72, 64), nn.Linear(24, 32, bias=False)
        self.head = nn.Linear(64 + 32, 16)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.steps(x.reshape(-1, 3, 24)).sum(1)
        both = torch.cat([torch.relu(self.wide(x)), steps], -1)
        return self.head(both)


def rows(count: int) -> Tensor:
    """Columns of sizes from a thousandth to a thousand."""
    return torch.randn(count, 72, generator=ROWS) * torch.logspace(-3, 3, 72)


def placed(number_format: str) -> Program:
    program = capture_small(Net(), rows(8))
    rw = Rewriter(program, "test")
    samples = inputs_of(program, linear_sites(program), [{program.signature.names[0]: rows(64)}])
    for node in linear_sites(program):
        weight = program.tensor(str(node.args[1].target))
        realise(rw, node, choose_input(samples[node], weight, number_format, "int8")[0])
    sweep(program)
    return program


def low(number_format: str, x: Tensor, weight: Tensor, like: Tensor | None = None) -> Tensor:
    """What a linear gives in a format whose ranges are those of ``like``, or of the rows."""
    precision, _ = choose_input(x if like is None else like, weight, number_format, "int8")
    return output_of(x, weight, precision)


def decoded(number_format: str, weight: Tensor) -> Tensor:
    """What a weight ``[N, K]`` is in a format: what the identity's rows are multiplied to."""
    return low(number_format, torch.eye(weight.shape[1]), weight).T


# --- codes ----------------------------------------------------------------------------------------


def test_mxfp8_is_what_the_standard_says() -> None:
    """Against ml_dtypes: codes of E4M3 times powers of two, to half a step of the code."""
    one = linear_format("mxfp8")
    weight = torch.randn(16, 96, generator=ROWS) * torch.logspace(-20, 20, 16)[:, None]
    coded = one.coded(weight, Precision("mxfp8"))
    scales = coded.scale.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    blocks = weight.numpy().reshape(16, 3, 32)
    peak = np.abs(blocks).max(2)
    assert bool((peak / scales <= 448.0).all())
    assert bool((peak / scales > 224.0).all())
    expected = (blocks / scales[..., None]).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(coded.codes.float().numpy().reshape(16, 3, 32), expected)


def test_nvfp4_rounds_as_the_standard_says() -> None:
    """Against ml_dtypes: ties to even, saturation, and the codes as they are stored."""
    values = torch.cat([torch.linspace(-8, 8, 1601), torch.randn(63, generator=ROWS)])
    found = nv_rounded(values.reshape(-1, 16), torch.ones(104)).flatten()
    expected = values.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(found.numpy(), expected)
    codes = torch.arange(16, dtype=torch.uint8)
    stored = codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(nv_values(codes[None] | codes[None] << 4).numpy()[0, ::2], stored)


@pytest.mark.parametrize("number_format", FORMATS)
def test_what_was_decoded_is_coded_as_it_is(number_format: str) -> None:
    once = decoded(number_format, torch.randn(24, 96, generator=ROWS))
    # The unit of a tensor's scales is a quotient, which is rounded each time.
    assert torch.allclose(decoded(number_format, once), once, rtol=2**-20, atol=0.0)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("width", [1, 15, 16, 31, 33, 64])
def test_blocks_need_not_divide_the_width(number_format: str, width: int) -> None:
    weight, x = torch.randn(8, width, generator=ROWS), torch.randn(5, width, generator=ROWS)
    found, exact = low(number_format, x, weight), x @ weight.T
    assert found.shape == exact.shape
    assert float((found - exact).norm()) < 0.2 * float((x.abs() @ weight.abs().T).norm())


@pytest.mark.parametrize("number_format", FORMATS)
def test_zeros_and_denormals_stay_finite(number_format: str) -> None:
    weight = torch.randn(8, 64, generator=ROWS)
    weight[0], weight[1], weight[2, :32] = 0.0, 1e-42, 0.0
    x = torch.randn(6, 64, generator=ROWS)
    x[0], x[1], x[2] = 0.0, 1e-42, 3e38
    found = low(number_format, x, weight, x[3:])
    assert bool(torch.isfinite(found[[0, 1, 3, 4, 5]]).all())
    assert not found[0].any()
    assert not found[:, 0].any()
    assert bool((found[:2].abs() < 1e-30).all())


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_scores_nan_and_no_other_does(
    number_format: str, value: float
) -> None:
    weight, x = torch.randn(8, 64, generator=ROWS), torch.randn(6, 64, generator=ROWS)
    typical = x.clone()
    before = low(number_format, x, weight, typical)
    x[2, 7] = value
    found = low(number_format, x, weight, typical)
    assert bool(found[2].isnan().all())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[others], before[others])


# --- programs and files ---------------------------------------------------------------------------


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_emulated_file_scores_as_the_reference(
    number_format: str, batch: int, tmp_path: Path
) -> None:
    program, x = placed(number_format), rows(batch)
    x[0, 3] = float("nan")
    built = PlainOnnx().build(program, Target.of("b200-fp8"), tmp_path, {})
    assert "emulated.onnx" in built.files
    (found,) = PlainOnnx().open(tmp_path, 1)({program.signature.names[0]: x.numpy()}).values()
    (expected,) = program.run({program.signature.names[0]: x}).values()
    assert bool(np.isnan(found[0]).all())
    assert bool(expected[0].isnan().all())
    # The same values are multiplied; only the order they are added up in differs.
    off = np.abs(found - expected.numpy())[1:]
    assert batch == 1 or float(off.max()) <= 1e-5 * float(expected[1:].abs().max())


@pytest.mark.parametrize("number_format", FORMATS)
def test_the_file_is_standard_onnx_with_the_types_of_its_opset(
    number_format: str, tmp_path: Path
) -> None:
    PlainOnnx().build(placed(number_format), Target.of("b200-fp8"), tmp_path, {})
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} <= {"", "rankc.codes"}
    assert {(f.domain, f.name) for f in model.functions} == {
        (node.domain, node.op_type) for node in model.graph.node if node.domain
    }
    stored = {onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    data = LINEAR[number_format]
    assert data.weight.onnx in stored
    assert data.scale.onnx in stored


# --- the gate -------------------------------------------------------------------------------------


class Ranker(nn.Module):
    """A table and dense features, wide enough to gain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(300, 48)
        self.over, self.score = nn.Linear(80, 256), nn.Linear(256, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        both = torch.cat([torch.tanh(dense), self.table(ids)], 1)
        return self.score(torch.relu(self.over(both))).squeeze(1)


def labelled(count: int) -> list[rankc.Batch]:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(count, 32, generator=generator)
    ids = torch.randint(0, 300, (count,), generator=generator)
    with torch.no_grad():
        chance = torch.sigmoid(Ranker()(dense, ids))
    return [rankc.Batch((dense, ids), (torch.rand(count, generator=generator) < chance).float())]


def emulated(name: str, number_format: str) -> rankc.Target:
    return dataclasses.replace(
        Target.of(name), formats=(number_format,), table_formats=(), backends=("onnx",)
    )


@pytest.mark.parametrize("number_format", FORMATS)
def test_the_gate_proves_what_is_within_the_budget(number_format: str) -> None:
    budget = rankc.Budget(ne=0.02, max_rms_shift=0.3)
    target = emulated("b200-fp4", number_format)
    made = rankc.optimize(Ranker(), target, data=labelled(4_000), budget=budget)
    assert {site.site: site.chosen for site in made.report.sites}["over"] == number_format
    assert made.verdict.status is rankc.Status.PASS
    assert any("verified by emulation" in note for note in made.report.notes)


def test_by_default_no_plan_moves_scores_as_four_bits_do() -> None:
    """A tenth of the scores' spread is what a budget allows; FP8 is within it."""
    target = dataclasses.replace(Target.of("b200-fp4"), table_formats=(), backends=("onnx",))
    inputs = labelled(64)[0].inputs
    made = rankc.optimize(Ranker(), target, inputs=inputs, budget=rankc.Budget(ne=0.02))
    (site,) = (site for site in made.report.sites if site.site == "over")
    assert site.chosen == "fp8"
    assert "Not nvfp4, though faster" in made.explain("over")
    assert str(made.verdict).startswith("UNVERIFIED")


# --- TensorRT -------------------------------------------------------------------------------------


def engine(number_format: str, folder: Path) -> dict[str, tuple[str, str]]:
    """What each linear runs in, in an engine for SM120."""
    pytest.importorskip("tensorrt_rtx")
    from rankc.backends.tensorrt.backend import FUSION, TensorRT

    target = dataclasses.replace(Target.of("rtx6000-fp8"), formats=(number_format,))
    built = TensorRT().build(placed(number_format), target, folder, {})
    assert "model.engine" in built.files

    report = json.loads((folder / FUSION).read_text())
    return {run["site"]: (run["planned"], run["runs"]) for run in report["linears"]}


def test_rtx_decodes_mxfp8_and_multiplies_in_fp32(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7.1.116 has no product of such blocks for SM120: its build log says so."""
    found = engine("mxfp8", tmp_path)
    assert set(found) == {"wide", "steps", "head"}
    assert {planned for planned, _ in found.values()} == {"fp8"}
    assert all(runs != "fp8" for _, runs in found.values())


def test_rtx_multiplies_nvfp4_in_codes(tmp_path: Path) -> None:
    """Its build log: each product is a gemm of FP4 by FP4."""
    found = engine("nvfp4", tmp_path)
    assert found == dict.fromkeys(("wide", "steps", "head"), ("fp4", "fp4"))


@pytest.mark.parametrize("number_format", FORMATS)
def test_a_gpu_without_it_says_who_has_it(number_format: str, tmp_path: Path) -> None:
    from rankc.backends.tensorrt.backend import TensorRT

    lacking = dataclasses.replace(Target.of("h100-fp8"), formats=(number_format, "bf16"))
    with pytest.raises(UnsupportedError, match=r"has no \w+; SM100 \(B200\) and SM120") as refused:
        TensorRT().build(placed(number_format), lacking, tmp_path, {})
    named = [word.strip(",.") for word in str(refused.value).split() if "b200" in word]
    assert named
    for name in named:  # the remedy
        assert number_format in Target.of(name).formats
