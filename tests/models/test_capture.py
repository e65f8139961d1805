"""Every model of the zoo is captured as it is, and scores the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import rankc
import torch
from rankc import models
from torch import Tensor, nn


@cache
def captured(name: str) -> tuple[nn.Module, rankc.Program]:
    """The model and its program."""
    torch.manual_seed(0)
    model = models.zoo()[name]().eval()
    return model, rankc.capture(model)


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_captures_and_scores_the_same(name: str) -> None:
    model, program = captured(name)
    for batch_size in (1, 3, 17):
        inputs = model.example_inputs(batch_size)
        with torch.no_grad():
            expected, got = scores(model(*inputs)), scores(program(*inputs))
        assert got.keys() == expected.keys()
        for task, want in expected.items():
            scale = want.abs().max().item()
            torch.testing.assert_close(got[task], want, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("mmoe", ("click", "like", "share")),
        ("ple", ("click", "like")),
        ("esmm", ("click", "click_and_conversion")),
        ("early-stage", ("click", "quality", "aux_final_click", "aux_final_quality")),
    ],
)
def test_tasks_keep_their_names(name: str, outputs: tuple[str, ...]) -> None:
    assert captured(name)[1].signature.outputs == outputs


@pytest.mark.parametrize("name", ["two-tower", "early-stage", "two-sided"])
def test_features_of_two_sides_keep_their_names(name: str) -> None:
    model, program = captured(name)
    (features,) = model.example_inputs()
    assert program.signature.names == tuple(features)


def scores(output: Any) -> dict[str, Tensor]:
    return output if isinstance(output, dict) else {"": output}
