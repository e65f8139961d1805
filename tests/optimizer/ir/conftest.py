"""One small model, captured once, for every test of the graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.target import Target
from torch import Tensor, nn

Rows = dict[str, Tensor]


class TwoTower(nn.Module):
    """A table, two linears and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.deep = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6))
        self.click = nn.Linear(6, 1)
        self.buy = nn.Linear(6, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.deep(torch.cat([dense, self.table(ids)], dim=1))
        return {"click": self.click(hidden), "buy": self.buy(hidden).sigmoid()}


def example(rows: int = 7) -> Rows:
    generator = torch.Generator().manual_seed(1)
    return {
        "dense": torch.randn(rows, 4, generator=generator),
        "ids": torch.randint(0, 20, (rows,), generator=generator),
    }


@pytest.fixture(scope="session")
def captured() -> Program:
    torch.manual_seed(0)
    return capture(TwoTower().eval(), example())


@pytest.fixture(scope="session")
def canonical(captured: Program) -> Program:
    program = captured.clone()
    context = PassContext(target=Target.of("cpu-fp32"), strict=True)
    Pipeline.parse("canonicalize").run(program, context)
    return program


@pytest.fixture
def program(canonical: Program) -> Program:
    """A canonical copy to be changed at will."""
    return canonical.clone()


@pytest.fixture(scope="session")
def rows() -> Callable[[int], Rows]:
    return example
