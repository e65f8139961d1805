"""Scores as logits."""

from __future__ import annotations

import torch
from rankc.optimizer.ir.signature import Score, Task, TaskKind
from rankc.optimizer.quality.scores import task_logits


def test_probabilities_become_logits_and_values_stay() -> None:
    binary = Task("ctr", "out", None, TaskKind.BINARY, Score.PROBABILITY)
    value = Task("price", "out", None, TaskKind.REGRESSION, Score.LOGIT)
    outputs = {"out": torch.tensor([0.5, 0.75])}
    assert task_logits(binary, outputs).tolist() == torch.logit(outputs["out"]).tolist()
    assert task_logits(value, outputs).tolist() == [0.5, 0.75]


def test_a_column_is_a_tasks() -> None:
    task = Task("b", "out", 1, TaskKind.BINARY, Score.LOGIT)
    assert task_logits(task, {"out": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}).tolist() == [2.0, 4.0]
