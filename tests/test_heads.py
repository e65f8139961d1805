"""Random multi-task models, through everything that is done to heads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import rankc
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multi_task import multi_task
from rankc.frontends.export import capture
from rankc.optimizer.compare.numerics import divergence, truth
from rankc.optimizer.ir import Program, verify
from rankc.optimizer.pipeline.promises import ROUNDING_FLOOR, ROUNDING_SLACK
from support import made_up, run_passes
from torch import nn

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
_FEW = settings(max_examples=3, deadline=None, derandomize=True)


@_FEW
@given(multi_task(), st.data())
@pytest.mark.slow
def test_served_outputs_stay_bit_for_bit(model: nn.Module, data: st.DataObject) -> None:
    program = capture(model, (X,))
    tasks = [task.name for task in program.signature.tasks]
    auxiliary = data.draw(st.sets(st.sampled_from(tasks), max_size=len(tasks) - 1))
    for name in auxiliary:
        program.signature = program.signature.with_task(name, auxiliary=True)
    ran = run_passes(program, "strip-train-only")
    verify(ran.program)
    assert set(ran.program.signature.outputs) == set(tasks) - auxiliary
    rows = made_up(program, 50, seed=3)
    assert divergence(program.run(rows), ran.program.run(rows)).bit_equal
    holds_rounding(program, run_passes(program, "strip-train-only,rounding,structure").program)


@_FEW
@given(st.lists(multi_task(), min_size=2, max_size=3), st.data())
@pytest.mark.slow
def test_models_in_one_score_as_they_do_apart(
    models: Sequence[nn.Module], data: st.DataObject
) -> None:
    first, *others = models
    for other in others:  # some of what has the same place and shape is the same
        own = dict(first.state_dict())
        for name, value in other.state_dict().items():
            if name in own and own[name].shape == value.shape and data.draw(st.booleans()):
                value.copy_(own[name])
    names = [f"m{index}" for index in range(len(models))]
    joint = rankc.consolidate(models, names, inputs=[(X,)] * len(models))
    scores = joint(X)
    with torch.no_grad():
        for name, model in zip(names, models, strict=True):
            assert all(torch.equal(scores[name][t], s) for t, s in model(X).items())
    assert "bit for bit" in joint.notes[1]
    holds_rounding(joint, run_passes(joint, "rounding,structure").program)


def holds_rounding(before: Program, after: Program) -> None:
    """The error against fp64 is of the original's own size."""
    rows = made_up(before, 50, seed=4)
    expected = truth(before, rows)
    own = divergence(expected, before.run(rows)).relative
    error = divergence(expected, after.run(rows)).relative
    assert error <= max(ROUNDING_SLACK * own, ROUNDING_FLOOR)
