"""Scores of programs, in logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.errors import DataError
from rankc.optimizer.ir import Program, Score, Signature, Task, TaskKind
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.scores import score
from rankc.optimizer.quality.verdict import Status
from torch import Tensor

X = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.25]])
ROWS = Rows({"x": X})


def signature(*tasks: Task) -> Signature:
    return Signature((), tasks, ("out",))


def give(value: Any) -> Any:
    def run(features: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"out": value(features["x"])}

    return run


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_columns_and_batches(batch: int) -> None:
    tasks = signature(Task("a", "out", 1), Task("b", "out", 0), Task("c", "out", 0, auxiliary=True))
    found = score(give(lambda x: x), ROWS, tasks, batch)
    assert {name: values.tolist() for name, values in found.items()} == {
        "a": [1.0, -1.0, 0.25],
        "b": [0.0, 2.0, 0.5],
    }
    assert all(values.dtype == np.float64 for values in found.values())


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.numpy()])
def test_outputs_may_be_tensors_or_arrays(shape: tuple[int, ...], convert: Any) -> None:
    run = give(lambda x: convert(x[:, 0].reshape(shape)))
    assert score(run, ROWS, signature(Task("a", "out")))["a"].tolist() == [0.0, 2.0, 0.5]


def test_probabilities_become_logits() -> None:
    task = Task("a", "out", score=Score.PROBABILITY)
    found = score(give(lambda x: x[:, 0].double().sigmoid()), ROWS, signature(task))
    assert np.allclose(found["a"], [0.0, 2.0, 0.5], rtol=0.0, atol=1e-12)
    value = Task("a", "out", kind=TaskKind.REGRESSION, score=Score.PROBABILITY)
    assert score(give(lambda x: x[:, 0]), ROWS, signature(value))["a"].tolist() == [0.0, 2.0, 0.5]


def test_a_probability_outside_of_its_range_is_told() -> None:
    task = Task("a", "out", score=Score.PROBABILITY)
    with pytest.raises(DataError, match="output 'a'"):
        score(give(lambda x: x[:, 0]), ROWS, signature(task))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_scores_are_told(bad: float) -> None:
    def run(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] == 2.0, bad, x[:, 0])

    message = "output 'a' is NaN or Inf in 1 of 3 rows, first in row 1"
    with pytest.raises(DataError, match=message):
        score(give(run), ROWS, signature(Task("a", "out")), 2)


def test_a_program_judged_against_itself_passes(chain: Program) -> None:
    generator = torch.Generator().manual_seed(0)
    count = 4000
    features = {"dense": torch.randn(count, 6, generator=generator)}
    clicked = (torch.rand(count, generator=generator) < 0.3).double().numpy()
    rows = Rows(features, {"score": clicked})
    judge = Judge.of(chain, rows, Budget(ne=1e-3))
    assert judge(chain).status is Status.PASS
    moved = {"score": judge.reference["score"] + 3.0}
    assert judge.on(moved).status is Status.FAIL


def test_a_row_is_named_by_its_place_in_the_users_data() -> None:
    rows = Rows({"x": torch.zeros(10, 2)}).part(4, 10)
    broken = give(lambda x: torch.where(torch.arange(len(x)) == 2, math.nan, 0.0))
    with pytest.raises(DataError, match="first in row 6"):
        score(broken, rows, signature(Task("out", "out")))
