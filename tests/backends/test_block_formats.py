"""Formats whose scales are of blocks: codes, programs, ONNX, the gate, TensorRT's kernels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from rankc.backends.onnxruntime.backend import PlainOnnx
from rankc.optimizer.analysis.sites import linear_sites
from rankc.optimizer.errors import UnsupportedError
from rankc.optimizer.formats import LINEAR
from rankc.optimizer.ir import Precision, Program, Rewriter, sweep
from rankc.optimizer.precision.linear_format import linear_format
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.target import Target
from support import capture_small
from torch import Tensor, nn

FORMATS = ("mxfp8",)
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
    for node in linear_sites(program):
        realise(rw, node, linear_format(number_format).precision())
    sweep(program)
    return program


def decoded(number_format: str, weight: Tensor) -> Tensor:
    """What a weight ``[N, K]`` is in a format: what the identity's rows are multiplied to."""
    one, precision = linear_format(number_format), Precision(number_format)
    return one.output(torch.eye(weight.shape[1]), weight, precision, one.coded(weight, precision)).T


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


@pytest.mark.parametrize("number_format", FORMATS)
def test_what_was_decoded_is_coded_as_it_is(number_format: str) -> None:
    once = decoded(number_format, torch.randn(24, 96, generator=ROWS))
    assert torch.equal(decoded(number_format, once), once)


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("width", [1, 15, 16, 31, 33, 64])
def test_blocks_need_not_divide_the_width(number_format: str, width: int) -> None:
    weight, x = torch.randn(8, width, generator=ROWS), torch.randn(5, width, generator=ROWS)
    one, precision = linear_format(number_format), Precision(number_format)
    low = one.output(x, weight, precision, one.coded(weight, precision))
    exact = x @ weight.T
    assert low.shape == exact.shape
    assert float((low - exact).norm()) < 0.2 * float((x.abs() @ weight.abs().T).norm())


@pytest.mark.parametrize("number_format", FORMATS)
def test_zeros_and_denormals_stay_finite(number_format: str) -> None:
    weight = torch.randn(8, 64, generator=ROWS)
    weight[0], weight[1], weight[2, :32] = 0.0, 1e-42, 0.0
    x = torch.randn(6, 64, generator=ROWS)
    x[0], x[1], x[2] = 0.0, 1e-42, 3e38
    one, precision = linear_format(number_format), Precision(number_format)
    low = one.output(x, weight, precision, one.coded(weight, precision))
    assert bool(torch.isfinite(low[[0, 1, 3, 4, 5]]).all())
    assert not low[0].any()
    assert not low[:, 0].isnan().any()
    assert bool((low[:2].abs() < 1e-30).all())


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_scores_nan_and_no_other_does(
    number_format: str, value: float
) -> None:
    weight, x = torch.randn(8, 64, generator=ROWS), torch.randn(6, 64, generator=ROWS)
    one, precision = linear_format(number_format), Precision(number_format)
    coded = one.coded(weight, precision)
    before = one.output(x, weight, precision, coded)
    x[2, 7] = value
    low = one.output(x, weight, precision, coded)
    assert bool(low[2].isnan().all())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(low[others], before[others])


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
