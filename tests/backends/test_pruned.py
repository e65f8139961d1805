"""Programs without a part of their units go through every backend, the contract unchanged."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from placed import halved
from rankc import models
from rankc.frontends.export import capture
from rankc.optimizer.analysis.cost import total
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.registry import backend
from rankc.optimizer.target import Target
from support import made_up

MODELS = ("dlrm", "mmoe")
#: By backend: what it needs, a target of its, and the largest difference over the largest score.
SERVED = {
    "onnxruntime": ("onnxruntime", "cpu-fp32", 64 * torch.finfo(torch.float32).eps),
    "openvino": ("openvino", "cpu-fp32", 1e-5),
    "mlir": ("iree.compiler", "mlir-cpu", 1e-5),
}
ROWS = (1, 7, 64)


@functools.cache
def captured(name: str) -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(models.zoo()[name]().eval())


@functools.cache
def pruned(name: str) -> Program:
    """A model of the zoo without a third of its FLOPs, fused; it needn't score well."""
    program = captured(name).clone()
    free = Budget(ne=0.99, two_sided=False, max_rms_shift=None)
    context = PassContext(
        target=Target.of("cpu-fp32"),
        judge=Judge.of(program, synthesize(program.signature, 512, seed=2), free),
        calibration=(made_up(program, 256, seed=5),),
        strict=True,
    )
    text = "rounding,prune-channels{flops=0.33},structure,grouping"
    Pipeline.parse(text).run(program, context)
    return program


@pytest.mark.parametrize("name", MODELS)
def test_units_are_gone_and_the_contract_stays(name: str) -> None:
    assert total(pruned(name), 64).flops <= 0.68 * total(captured(name), 64).flops
    assert pruned(name).signature == captured(name).signature


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "server",
    [
        "onnxruntime",
        pytest.param("openvino", marks=pytest.mark.openvino),
        pytest.param("mlir", marks=pytest.mark.slow),
    ],
)
def test_it_is_served_as_it_scores(server: str, name: str, tmp_path: Path) -> None:
    needed, target, tolerance = SERVED[server]
    pytest.importorskip(needed)
    program, serving = pruned(name), backend(server)
    serving.build(program, Target.of(target), tmp_path, {})
    run = serving.open(tmp_path, 1)
    for rows in ROWS:
        features = made_up(program, rows, seed=rows)
        got = run({key: value.numpy() for key, value in features.items()})
        assert tuple(got) == captured(name).signature.outputs
        for key, want in program.run(features).items():
            off = float(abs(got[key] - want.numpy()).max())
            assert off <= tolerance * max(1.0, float(want.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tensorrt_builds_an_engine_for_sm89(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from rankc.backends.tensorrt.engine import EngineFacts

    program = halved(pruned(name), torch.float16)
    built = backend("tensorrt").build(program, Target.of("l40s-fp8"), tmp_path, {})
    assert built.unmet == ()
    facts = EngineFacts.load(tmp_path)
    assert facts.sm == 89
