"""Ill-conditioned scores are told from scores that depend on the other rows."""

from __future__ import annotations

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import CaptureError
from torch import Tensor, nn
from torch.nn.utils import parametrizations

X = torch.rand(9, 8, generator=torch.Generator().manual_seed(0))


class Sine(nn.Module):
    """A score that turns round many times: its last digits are all that is left of it."""

    def __init__(self, mixes: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(8, 64)
        self.score = nn.Linear(64, 1)
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(self.hidden(x)).squeeze(1) * 1e5
        return torch.sin(score) + self.mixes * x.mean()


def test_rounding_is_told_and_float64_settles_it() -> None:
    model = Sine().eval()
    program = capture(model, (X,))
    assert "output 'score' is ill-conditioned" in program.notes[0]
    assert "model.double()" in program.notes[0]
    assert capture(model.double(), (X.double(),)).notes == ()


@pytest.mark.parametrize("mixes", [1e-2, 1.0])
def test_what_mixes_rows_is_refused_however_ill_conditioned(mixes: float) -> None:
    with pytest.raises(CaptureError, match="depends on the other rows"):
        capture(Sine(mixes).eval(), (X,))


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("dim", [0, None])
def test_the_weight_norm_of_a_vector(old: bool, dim: int | None) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).sum(1)

    norm = nn.utils.weight_norm if old else parametrizations.weight_norm
    model = norm(Weighted(), dim=dim).eval()
    with torch.no_grad():
        assert torch.allclose(capture(model, (X,))(X), model(X), atol=1e-6)
