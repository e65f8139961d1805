"""Planted damage: an outlier channel breaks blanket INT8 and FP8, and not the plan."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import rankc
import torch
from placed import coded
from rankc.frontends.export import capture
from rankc.models.dlrm import DLRM
from rankc.optimizer.data.rows import collect, split
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.verdict import Status
from rankc.optimizer.target import Target
from rankers import EAGER, batches, dlrm, dlrm_inputs, drawn_labels

#: FP8 has three bits of mantissa, and this model a few hundred weights to average over.
BUDGET = rankc.Budget(ne=2e-2, max_rms_shift=0.2, find_cohorts=False)
COLUMN, SIZE = 5, 1e5


def with_outlier() -> DLRM:
    """A DLRM with one hidden unit that is far larger, and weights that make up for it."""
    model = copy.deepcopy(dlrm())
    with torch.no_grad():
        model.top[0].weight[COLUMN] *= SIZE
        model.top[0].bias[COLUMN] = SIZE  # it is on in every row
        model.top[2].weight[:, COLUMN] /= SIZE
    return model


@pytest.mark.parametrize("number_format", ["int8", "fp8"])
def test_an_outlier_channel_breaks_blanket_formats_and_not_the_plan(number_format: str) -> None:
    model, inputs = with_outlier(), dlrm_inputs(12_000, seed=1)
    rows = batches(inputs, drawn_labels(model, inputs), 2000)
    program = capture(model, inputs)
    judge = Judge.of(program, split(collect(rows, program)).proof, BUDGET)
    Pipeline.parse("rounding").run(program, PassContext(target=Target.of("cpu-fp32")))
    blanket, linears = coded(program, number_format)
    assert len(linears) > 2
    assert judge(blanket).status is Status.FAIL

    device = replace(EAGER.device, peaks=(("fp32", 1e-3), (number_format, 1.0)))
    target = replace(EAGER, formats=(number_format,), device=device)
    artifact = rankc.optimize(model, target, data=rows, budget=BUDGET)
    assert artifact.verdict.status is Status.PASS
    tried = [site for site in artifact.sites if site.kind == "linear" and site.candidates]
    low = [site for site in tried if site.chosen != "fp32"]
    assert len(low) >= 0.9 * len(tried) > 0
    (spoilt,) = [site for site in tried if site.site == "top.2"]
    assert spoilt.chosen not in (number_format, "fp32")  # scaled, or but for a few columns
