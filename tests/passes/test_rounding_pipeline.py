"""The rounding passes together, on random networks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rankc.optimizer.compare.numerics import divergence, truth
from rankc.optimizer.pipeline.promises import ROUNDING_FLOOR
from support import capture_small, made_up, operators, run_passes
from torch import Tensor, nn

STEPS = ("norm", "scale", "shift", "halve", "relu", "sigmoid", "dropout")


class Random(nn.Module):
    """Linears with whatever was drawn after each of them."""

    def __init__(self, widths: list[int], steps: list[list[str]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out, after in zip(widths, widths[1:], steps, strict=False):
            layers.append(nn.Linear(fan_in, fan_out, bias=bool(seed % 2)))
            layers += [_step(step, fan_out) for step in after]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).sum(1)


class Apply(nn.Module):
    """``x·scale + shift`` with whichever is given."""

    def __init__(self, scale: Tensor | None = None, shift: Tensor | None = None) -> None:
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(scale)
        self.shift = None if shift is None else nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.scale is None else x * self.scale
        return x if self.shift is None else x + self.shift


class Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def _step(name: str, width: int) -> nn.Module:
    if name == "norm":
        norm = nn.BatchNorm1d(width)
        with torch.no_grad():
            norm.weight.uniform_(-2.0, 2.0)
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.05, 2.0)
        return norm
    made = {
        "scale": lambda: Apply(scale=torch.randn(width)),
        "shift": lambda: Apply(shift=torch.randn(1, width)),
        "halve": Halve,
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "dropout": nn.Dropout,
    }
    return made[name]()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    steps=st.lists(st.lists(st.sampled_from(STEPS), max_size=3), min_size=3, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_never_less_exact_than_the_original(
    widths: list[int], steps: list[list[str]], seed: int
) -> None:
    program = capture_small(Random(widths, steps, seed), torch.randn(3, widths[0]))
    ran = run_passes(program, "rounding")
    rows = made_up(program, 100, seed=9)
    expected = truth(program, rows)
    own = divergence(expected, program.run(rows)).relative
    error = divergence(expected, ran.program.run(rows)).relative
    assert error <= max(own, ROUNDING_FLOOR)
    assert "_native_batch_norm_legit_no_training" not in operators(ran.program)
