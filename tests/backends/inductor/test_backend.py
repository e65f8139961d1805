"""AOTInductor packages on the CPU, the kernels of a GPU on the CPU, and the choice among them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from placed import coded, optimized
from rankc.backends.inductor import backend as inductor
from rankc.backends.inductor.backend import (
    Inductor,
    PackageFacts,
    _dispatched,
    _exported,
    _plain_batches,
)
from rankc.backends.inductor.gpu_kernels import BF16, KERNELS, Kernel, choose, dispatch, time_on_gpu
from rankc.optimizer.analysis.sites import linear_sites
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import ArtifactError, TargetError
from rankc.optimizer.ir import Precision, Rewriter, sweep
from rankc.optimizer.ir.pattern import shape_of
from rankc.optimizer.precision.linear_formats import realise
from rankc.optimizer.target import Target
from torch import Tensor

CPU = Target.of("cpu-fp32")
DEVICE = torch.device("cpu")
HAS_GPU = torch.cuda.is_available()


# --- kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
@pytest.mark.parametrize("shape", [(5, 32, 16), (3, 30, 10), (40, 17, 1)], ids=str)
def test_every_kernel_multiplies(kernel: Kernel, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    step = x.abs().max() / (448.0 if kernel.format == "fp8" else 127.0)
    exact = torch.nn.functional.linear(x, weight, bias)
    got = kernel.run(x, kernel.prepare(weight), bias, step)
    assert got.shape == exact.shape
    assert got.dtype == x.dtype
    # E4M3 has 3 bits after the leading one, int8 a step of 1/127 of the largest, BF16 7 bits.
    allowed = {"fp8": 2**-4, "int8": 2**-5, "bf16": 2**-7}[kernel.format]
    assert float((got - exact).norm() / exact.norm()) <= allowed


def test_rows_of_their_own_scale_do_not_see_one_another() -> None:
    kernel = next(k for k in KERNELS if k.name == "int8-rows")
    x, weight = torch.randn(4, 32), torch.randn(16, 32)
    alone = kernel.run(x[:1], kernel.prepare(weight), None, None)
    louder = torch.cat([x[:1], 1000.0 * x[1:]])
    assert torch.equal(kernel.run(louder, kernel.prepare(weight), None, None)[:1], alone)


# --- dispatch -------------------------------------------------------------------------------------

SECONDS = {"bf16": 1.0, "fp8-tensor": 0.5, "fp8-rows": 0.6, "int8-rows": 0.7}
ERRORS = {"bf16": 0.003, "fp8-tensor": 0.04, "fp8-rows": 0.03, "int8-rows": 0.01}


@pytest.mark.parametrize(
    ("limit", "kernel", "reason"),
    [
        (0.05, "fp8-tensor", "2.00 times as fast as BF16"),
        (0.035, "fp8-rows", "1.67 times as fast as BF16"),
        (0.02, "int8-rows", "1.43 times as fast as BF16"),
        (0.001, "bf16", "stays in BF16: every lower format is off by over 0.001"),
    ],
)
def test_the_fastest_within_the_share_of_the_error(limit: float, kernel: str, reason: str) -> None:
    found = choose(SECONDS, ERRORS, limit)
    assert (found.kernel, found.reason) == (kernel, reason)
    assert found.seconds == SECONDS


def test_what_hardly_gains_stays_in_bf16() -> None:
    found = choose({"bf16": 1.0, "fp8-tensor": 0.97}, {"fp8-tensor": 0.0}, 1.0)
    assert found.kernel == "bf16"
    assert found.reason == (
        "stays in BF16: the fastest lower kernel, fp8-tensor, is 1.03 times as fast"
    )


def test_candidates_are_measured_on_their_own_output() -> None:
    exact = torch.ones(2, 2)
    calls = {"bf16": lambda: exact, "good": lambda: exact, "bad": lambda: 2.0 * exact}
    clock = {"bf16": 1.0, "good": 0.5, "bad": 0.1}

    def timer(call: object) -> float:
        return next(clock[name] for name, known in calls.items() if known is call)

    found = dispatch(calls, exact, 0.1, timer)
    assert found.kernel == "good"
    assert found.errors == {"bf16": 0.0, "good": 0.0, "bad": 1.0}


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_kernels_are_timed_on_a_gpu_only() -> None:
    with pytest.raises(TargetError, match="this machine has none"):
        time_on_gpu(lambda: torch.ones(1))


# --- lowering -------------------------------------------------------------------------------------


def run_exported(number_format: str) -> tuple[str, float]:
    program, planned = coded(optimized("dlrm"), number_format)
    kernels = _dispatched(program, CPU, DEVICE, 64)
    assert len(kernels) == len(planned)
    exported = _exported(program, kernels, DEVICE)
    features = synthesize(program.signature, 7, 1).features
    (got,) = exported.module()(*(features[name] for name in program.signature.names))
    (want,) = program.run(features).values()
    return str(exported.graph), float((got - want).abs().max())


@pytest.mark.parametrize(("number_format", "op"), [("fp8", "_scaled_mm"), ("int8", "_int_mm")])
def test_coded_linears_become_products_of_codes(number_format: str, op: str) -> None:
    graph, off = run_exported(number_format)
    assert op in graph
    assert off <= 1e-6


def test_linears_with_a_scale_per_row_run_so() -> None:
    program = optimized("dlrm")
    rw = Rewriter(program, "test")
    sites = [n for n in linear_sites(program) if min(shape_of(n.args[1])) >= 16]
    rows = Precision("int8-rows", input_dtype="uint8", weight_dtype="int8")
    for node in sites:
        realise(rw, node, rows)
    sweep(program)
    kernels = _dispatched(program, CPU, DEVICE, 64)
    assert {found.kernel for found in kernels.values()} == {"int8-rows"}
    exported = _exported(program, kernels, DEVICE)
    features = synthesize(program.signature, 7, 1).features
    (got,) = exported.module()(*(features[name] for name in program.signature.names))
    (want,) = program.run(features).values()
    assert "_int_mm" in str(exported.graph)
    assert float((got - want).abs().max()) <= 1e-6


def test_a_linear_that_stays_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = replace(choose({"bf16": 1.0}, {}, 1.0), kernel=BF16.name)
    monkeypatch.setattr(inductor, "_measured", lambda kernels, weight, rows: chosen)
    program, _ = coded(optimized("dlrm"), "fp8")
    kernels = dict.fromkeys(_dispatched(program, CPU, DEVICE, 64), chosen)
    graph = str(_exported(program, kernels, DEVICE).graph)
    assert "bfloat16" in graph
    assert "_scaled_mm" not in graph


def test_batches_of_plain_rows_can_be_padded() -> None:
    assert _plain_batches(optimized("dlrm"))


@pytest.mark.slow
@pytest.mark.parametrize("number_format", ["fp8", "int8"])
def test_a_package_scores_like_the_program(number_format: str, tmp_path: Path) -> None:
    program, _ = coded(optimized("dlrm"), number_format)
    built = Inductor().build(program, CPU, tmp_path, {"rankc.batch_sizes": "64"})
    assert built.files == ("model.pt2", "inductor.json")
    run = Inductor().open(tmp_path, 1)
    for rows in (1, 7, 64):
        features = synthesize(program.signature, rows, rows).features
        got = run({key: value.numpy() for key, value in features.items()})
        for key, want in program.run(features).items():
            assert abs(got[key] - want.numpy()).max() <= 1e-6


# --- bad input ------------------------------------------------------------------------------------

FACTS = PackageFacts("cuda", 90, torch.__version__, (64,), ("x",), ("score",))


@pytest.mark.parametrize(
    ("facts", "sm", "message"),
    [
        (FACTS, None, "compiled for SM90, and there is no GPU here"),
        (FACTS, 80, "compiled for SM90, and this GPU is SM80; optimize again"),
        (replace(FACTS, torch="2.11.0+cu130"), 90, "pip install torch==2.11.0, or optimize again"),
    ],
)
def test_a_package_for_another_machine_is_refused(
    facts: PackageFacts, sm: int | None, message: str
) -> None:
    with pytest.raises(ArtifactError, match=re.escape(message)):
        facts.require(sm)
    FACTS.require(90)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_another_device_is_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"NVIDIA H100 SXM \(SM90\), and this machine has none"):
        Inductor().build(optimized("dlrm"), Target.of("h100-fp8"), tmp_path, {})
    assert Inductor().here(Target.of("h100-fp8")).built == ""


def test_a_missing_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(TargetError, match=r"no g\+\+: apt-get install g\+\+"):
        Inductor().build(optimized("dlrm"), CPU, tmp_path, {})


def test_damaged_facts_are_told(tmp_path: Path) -> None:
    (tmp_path / "inductor.json").write_text("[]")
    with pytest.raises(ArtifactError, match="damaged or foreign"):
        PackageFacts.load(tmp_path)


# --- with a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_every_kernel_multiplies_on_the_gpu(kernel: Kernel) -> None:
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < kernel.sm:
        pytest.skip(f"{kernel.name} needs SM{kernel.sm}")
    x, weight = torch.randn(64, 100, device="cuda"), torch.randn(48, 100, device="cuda")
    step = x.abs().max() / (448.0 if kernel.format == "fp8" else 127.0)
    exact: Tensor = x @ weight.T
    got = kernel.run(x, kernel.prepare(weight), None, step)
    assert float((got - exact).norm() / exact.norm()) <= 2**-4
