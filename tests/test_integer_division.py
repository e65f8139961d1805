"""Features divided by features: zeros, and the least number over -1, which ends processes."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import rankc
import torch
from rankc.optimizer.errors import DataError
from torch import Tensor, nn

_LEAST = torch.iinfo(torch.int64).min


class Rate(nn.Module):
    """A score of every integer quotient and remainder of two counts."""

    def __init__(self, *, truncated: bool) -> None:
        super().__init__()
        self.truncated = truncated
        self.score = nn.Linear(4, 1)

    def forward(self, clicks: Tensor, shows: Tensor) -> Tensor:
        parts = [clicks // shows, clicks % shows, torch.fmod(clicks, shows)]
        mode = "trunc" if self.truncated else "floor"
        parts.append(torch.div(clicks, shows, rounding_mode=mode))
        return self.score(torch.stack(parts, 1).float()).squeeze(-1)


@functools.cache
def built(*, truncated: bool) -> tuple[Rate, rankc.Artifact]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Rate(truncated=truncated).eval()
        example = (torch.randint(0, 50, (8,)), torch.randint(1, 99, (8,)))
        target = dataclasses.replace(rankc.Target.of("cpu-fp32"), backends=("onnxruntime",))
        return model, rankc.optimize(model, target, inputs=example)


@pytest.mark.parametrize("truncated", [False, True])
def test_hostile_rows_are_those_that_the_model_takes(truncated: bool) -> None:
    model, artifact = built(truncated=truncated)
    clicks, shows = torch.tensor([7, -7, 7, -7, 0, -(2**62)]), torch.tensor([2, 2, -2, -2, 5, -1])
    with torch.no_grad():
        torch.testing.assert_close(artifact(clicks, shows), model(clicks, shows))


def test_the_least_number_over_minus_one_wraps() -> None:
    model, artifact = built(truncated=False)
    clicks, shows = torch.tensor([_LEAST, 1]), torch.tensor([-1, -1])
    with torch.no_grad():
        torch.testing.assert_close(artifact(clicks, shows), model(clicks, shows))


def test_served_it_wraps_where_eager_would_end_the_process() -> None:
    _, artifact = built(truncated=True)
    assert bool(artifact(torch.tensor([_LEAST]), torch.tensor([-1])).isfinite().all())


@pytest.mark.parametrize("truncated", [False, True])
def test_a_served_zero_is_told(truncated: bool, capfd: pytest.CaptureFixture[str]) -> None:
    _, artifact = built(truncated=truncated)
    clicks, shows = torch.tensor([3, 4]), torch.tensor([1, 0])
    with pytest.raises(DataError, match="an integer is divided by 0") as told:
        artifact(clicks, shows)
    assert "ONNXRuntimeError" not in str(told.value)
    names = artifact.signature.names
    with pytest.raises(DataError, match="divided by 0"):
        artifact.run(dict(zip(names, (clicks.numpy(), np.zeros(2, np.int64)), strict=True)))
    assert not capfd.readouterr().err


def test_the_remedy_for_a_zero_holds() -> None:
    class Clamped(Rate):
        def forward(self, clicks: Tensor, shows: Tensor) -> Tensor:
            return super().forward(clicks, shows.clamp(min=1))

    model = Clamped(truncated=True).eval()
    example = (torch.tensor([3, 4]), torch.tensor([1, 0]))
    artifact = rankc.optimize(model, "cpu-fp32", inputs=example)
    with torch.no_grad():
        torch.testing.assert_close(artifact(*example), model(*example))
