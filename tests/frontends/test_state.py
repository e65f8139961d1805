"""Capture leaves a model as it was: weights, attributes, modes, hooks."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from rankc.frontends.export import capture
from torch import Tensor, nn

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))


class Drifts(nn.Module):
    """``forward`` adds to a temperature in place, in eval mode too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(4, 1)
        self.step = 1e-6
        start = torch.ones(1)
        if how == "buffer":
            self.register_buffer("warmth", start)
        elif how == "parameter":
            self.warmth = nn.Parameter(start, requires_grad=False)
        else:
            self.warmth = start

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.warmth += self.step
        return (self.score(x) * self.warmth).squeeze(1)  # type: ignore[no-any-return]


class Keeps(nn.Module):
    """``forward`` sets attributes, counts, and fills a list and a dict."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 4, max_norm=0.5)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.score = nn.Linear(4, 1)
        self.calls = 0
        self.seen: list[int] = []
        self.kept: dict[str, Tensor] = {}
        self.register_forward_hook(lambda module, args, score: None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(self.seen))
        x = self.norm(x) + self.table((x[:, 0] * 10).long())
        self.kept["last"] = self.last = x
        return self.score(self.drop(x)).squeeze(1)  # type: ignore[no-any-return]


def state_of(model: nn.Module) -> str:
    """A hash of everything a model holds."""
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        members = [vars(module), module._parameters, module._buffers]
        for name, value in (pair for held in members for pair in held.items()):
            digest.update(f"{path}.{name} {_text(value)}".encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.requires_grad} {value.tolist()}"
    return repr(value) if isinstance(value, (bool, int, float, str, list)) else str(id(value))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "model", [Drifts("attribute"), Drifts("buffer"), Drifts("parameter"), Keeps()]
)
def test_capture_leaves_it_as_it_was(model: nn.Module, mode: bool) -> None:
    model.train(mode)
    model.score.eval()  # a part may be frozen in another mode  # type: ignore[union-attr]
    before = state_of(model)
    capture(model, (X,))
    assert state_of(model) == before


@pytest.mark.parametrize("how", ["attribute", "parameter", "buffer"])
def test_what_forward_writes_is_told(how: str) -> None:
    program = capture(Drifts(how).eval(), (X,))
    assert "forward writes into 'warmth'" in program.notes[0]


def test_a_model_that_writes_into_its_inputs() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x *= 2
            x[:, 0] = 0
            x.t().add_(1)
            x.clamp_(max=2.0)
            return self.score(x).squeeze(1)  # type: ignore[no-any-return]

    model, given = Writes().eval(), X.clone()
    program = capture(model, (given,))
    assert torch.equal(given, X)
    with torch.no_grad():
        assert torch.equal(program(given), model(X.clone()))
