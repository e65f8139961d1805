"""A small canonical program, and the surroundings of passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.instruments import Verify
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.target import Target
from torch import Tensor, nn


class Chain(nn.Module):
    """Five linears with relus between, so that a pass has five sites."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.head = nn.Linear(6, 1)

    def forward(self, dense: Tensor) -> Tensor:
        for layer in self.layers:
            dense = layer(dense).relu()
        return self.head(dense).squeeze(1)


@pytest.fixture(scope="session")
def chain() -> Program:
    torch.manual_seed(0)
    program = capture(Chain().eval(), torch.randn(3, 6))
    context = PassContext(target=Target.of("cpu-fp32"), strict=True)
    Pipeline.parse("canonicalize").run(program, context)
    return program


@pytest.fixture
def program(chain: Program) -> Program:
    return chain.clone()


@pytest.fixture
def context(chain: Program) -> Callable[..., PassContext]:
    def make(**more: Any) -> PassContext:
        settings = {
            "target": Target.of("cpu-fp32"),
            "rows": synthesize(chain.signature, 64).features,
            "original": chain,
            "instruments": (Verify(),),
        }
        return PassContext(**{**settings, **more})

    return make
