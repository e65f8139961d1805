"""The structural passes on random small models, each pass held to its promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from interactions import Ranker, interacting_models
from rankc.frontends.export import capture
from rankc.optimizer.numerics import ROUNDING_FLOOR, ROUNDING_SLACK, divergence, truth
from support import made_up, run_passes

_PIPELINE = "rounding,structure,grouping"
_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
#: A model that fails is small already; making it smaller takes minutes.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def check(model: Ranker) -> None:
    """Runs the pipeline, which raises where a pass breaks its promise, and compares other rows."""
    torch.manual_seed(0)
    program = capture(model)
    ran = run_passes(program, _PIPELINE)
    for batch in (1, 7):
        rows = made_up(program, batch, seed=batch)
        expected = truth(program, rows)
        own = divergence(expected, program.run(rows)).relative
        error = divergence(expected, ran.program.run(rows)).relative
        assert error <= max(ROUNDING_SLACK * own, ROUNDING_FLOOR)


@settings(
    max_examples=5, deadline=None, suppress_health_check=_SLOW, derandomize=True, phases=_PHASES
)
@given(model=interacting_models)
def test_a_few_random_models_keep_their_scores(model: Ranker) -> None:
    check(model)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=_SLOW, phases=_PHASES)
@given(model=interacting_models)
def test_random_models_keep_their_scores(model: Ranker) -> None:
    check(model)
