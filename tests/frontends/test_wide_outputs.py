"""Outputs of several dimensions, or of many scores a row: a task a column of the flattened row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import rankc
import torch
from rankc.frontends.export import capture
from rankc.optimizer.quality.verdict import Status
from torch import Tensor, nn


class Ensemble(nn.Module):
    """TabM's form: each of k members scores a row, ``[B, k, 1]``."""

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.randn(k, 6))
        self.hidden, self.head = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x[:, None] * self.scale)))  # type: ignore[no-any-return]


class Next(nn.Module):
    """Scores of every item at every step of a history, ``[B, L, items]``."""

    def __init__(self, steps: int = 3, items: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = steps
        self.hidden, self.head = nn.Linear(6, 16 * steps), nn.Linear(16, items)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).unflatten(1, (self.steps, 16)).relu())  # type: ignore[no-any-return]


class Beside(nn.Module):
    """A score, and the attention beside it, which is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = Next()
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), self.rows(x).softmax(-1)


def data(rows: int = 2000) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Ensemble, ["score_0", "score_1", "score_2", "score_3"]),
        (lambda: Ensemble(1), ["score"]),
        (Next, [f"score_{step}_{item}" for step in range(3) for item in range(5)]),
        (Beside, ["score_0"]),
    ],
)
def test_a_task_is_a_column_of_the_flattened_row(
    model: Callable[[], nn.Module], names: list[str]
) -> None:
    made = model().eval()
    program = capture(made, (data(4),))
    assert [task.name for task in program.signature.tasks] == names
    artifact = rankc.optimize(made, "cpu-int8", data=[data()], budget=rankc.Budget(ne=0.05))
    assert artifact.verdict.status is Status.PASS
    assert [task.task for task in artifact.verdict.tasks] == names
    for rows in (1, 3, 64):
        want, got = made(data(rows)), artifact(data(rows))
        pairs = zip(want, got, strict=True) if isinstance(want, tuple) else [(want, got)]
        for right, found in pairs:
            assert found.shape == right.shape
            assert np.abs(np.asarray(found) - right.detach().numpy()).max() < 0.05


def test_of_many_columns_some_are_judged_and_all_are_served() -> None:
    made = Next(steps=4, items=50).eval()
    program = capture(made, (data(4),))
    assert len(program.signature.tasks) == 64
    assert program.signature.tasks[1].name == "score_0_3"
    assert any("has 200 scores a row: 64 of them, evenly spaced" in note for note in program.notes)
    artifact = rankc.optimize(made, "cpu-fp32", inputs=(data(8),))
    assert torch.allclose(torch.as_tensor(artifact(data(5))), made(data(5)), atol=1e-5)
