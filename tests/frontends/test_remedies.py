"""What messages say to change is changed, and the model scores as it did."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import rankc
import torch
from rankc.optimizer.errors import CaptureError
from torch import Tensor, nn
from torch.nn import functional as F

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
TWOS = torch.full((5,), 2)
IDS = torch.tensor([0, 3, 9, 1, 2])
COUNTRIES = ["de", "fr", "it", "de", "fr"]
NUMBERS = {"de": 0, "fr": 1, "it": 2}
Forward = Callable[..., Tensor]


class Scorer(nn.Module):
    """Linears; a forward is added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.wide = nn.Linear(4, 1), nn.Linear(10, 1)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0, 3.0]))


def ranker(forward: Forward) -> nn.Module:
    kind: type[nn.Module] = type("Ranker", (Scorer,), {"forward": forward})
    return kind().eval()


def open_one_hot(self: Any, ids: Tensor) -> Tensor:
    return self.wide(F.one_hot(ids).float())  # HERE


def sized_one_hot(self: Any, ids: Tensor) -> Tensor:
    return self.wide(F.one_hot(ids, num_classes=10).float())


def gradient(self: Any, x: Tensor) -> Tensor:
    slope = torch.func.grad(lambda v: self.linear(v).sigmoid().sum())(x)  # HERE
    return self.linear(x * slope)


def formula(self: Any, x: Tensor) -> Tensor:
    chance = self.linear(x).sigmoid()
    return self.linear(x * (chance * (1 - chance) * self.linear.weight))


def number(self: Any, x: Tensor) -> Tensor:
    score = self.linear(x)
    return torch.stack([s * (2.0 if s.item() > 0 else 0.5) for s in score])  # HERE


def chosen(self: Any, x: Tensor) -> Tensor:
    score = self.linear(x)
    return score * torch.where(score > 0, 2.0, 0.5)


def one_scale(self: Any, x: Tensor, n: Tensor) -> Tensor:
    scale = float(n[0]) + int(n.max())  # HERE
    return self.linear(x * scale)


def a_scale_each(self: Any, x: Tensor, n: Tensor) -> Tensor:
    return self.linear(x * (n + n).unsqueeze(1))


def one_choice(self: Any, x: Tensor, n: Tensor) -> Tensor:
    return self.linear(x).squeeze(1) * bool(n[0])  # HERE


def a_choice_each(self: Any, x: Tensor, n: Tensor) -> Tensor:
    return torch.where(n > 0, self.linear(x).squeeze(1), 0.0)


def by_name(self: Any, x: Tensor, countries: list[str]) -> Tensor:
    return self.linear(x) * self.scale[[NUMBERS[c] for c in countries]].unsqueeze(1)  # HERE


def by_number(self: Any, x: Tensor, countries: Tensor) -> Tensor:
    return self.linear(x) * self.scale[countries].unsqueeze(1)


@pytest.mark.parametrize(
    ("forward", "inputs", "said", "mended", "given"),
    [
        (open_one_hot, (IDS,), "as the batch's largest id.*num_classes=10", sized_one_hot, (IDS,)),
        (gradient, (X,), "such as a gradient, inside.*as a formula", formula, (X,)),
        (number, (X,), "What to change", chosen, (X,)),
        (
            one_scale,
            (X, TWOS),
            r"one Python number of 'n'.*n.unsqueeze\(1\)",
            a_scale_each,
            (X, TWOS),
        ),
        (one_choice, (X, TWOS), r"number of 'n'.*torch.where\(n > 0", a_choice_each, (X, TWOS)),
        (
            by_name,
            (X, COUNTRIES),
            "'de' of the example.*encode them as integers",
            by_number,
            (X, torch.tensor([NUMBERS[c] for c in COUNTRIES])),
        ),
    ],
)
def test_what_a_message_says_helps(
    forward: Forward, inputs: Any, said: str, mended: Forward, given: Any
) -> None:
    model = ranker(forward)
    want = model(*inputs).detach()
    with pytest.raises(CaptureError, match=f"(?s){said}") as caught:
        rankc.optimize(model, "cpu-fp32", inputs=inputs)
    lines, start = inspect.getsourcelines(forward)
    here = next(i for i, line in enumerate(lines) if "# HERE" in line)
    assert f"{__file__}:{start + here} `" in str(caught.value)
    artifact = rankc.optimize(ranker(mended), "cpu-fp32", inputs=given)
    assert torch.allclose(artifact(*given), want, rtol=1e-6, atol=1e-6)


def test_a_number_that_only_cuts_padding_is_captured() -> None:
    def trimmed(self: Any, x: Tensor, n: Tensor) -> Tensor:
        kept = x[:, : int(n.max())]
        held = torch.arange(kept.shape[1]) < n.unsqueeze(1)
        return (kept * held).sum(1)

    model = ranker(trimmed)
    program = rankc.capture(model, (X, TWOS))
    rows = torch.tensor([4, 0, 1, 3, 2])
    assert torch.allclose(program(X, rows), model(X, rows))
