from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rankc.models.data import RankingData, Rows, batches, synthetic_flights
from rankc.models.dcn import DCNv2, DCNv2Config
from rankc.models.dlrm import DLRM, DLRMConfig
from rankc.models.early_stage import EarlyStage, EarlyStageConfig
from rankc.models.esmm import ESMM, ESMMConfig
from rankc.models.mmoe import MMoE, MMoEConfig
from rankc.models.ple import PLE, PLEConfig
from rankc.models.sides import two_sides
from rankc.models.train import train
from torch import Tensor, nn


@pytest.fixture(scope="module")
def generated() -> RankingData:
    return synthetic_flights(20_000)


def make_dlrm(data: RankingData) -> DLRM:
    torch.manual_seed(0)
    return DLRM(
        DLRMConfig(
            data.cardinalities, len(data.dense_names), embedding_dim=8, bottom=(32,), top=(64,)
        )
    )


def make_dcn(data: RankingData) -> DCNv2:
    torch.manual_seed(0)
    return DCNv2(
        DCNv2Config(
            data.cardinalities, len(data.dense_names), embedding_dim=8, cross_layers=2, deep=(64,)
        )
    )


class TwoHeads(nn.Module):
    def __init__(self, data: RankingData) -> None:
        super().__init__()
        self.first, self.second = make_dlrm(data), make_dlrm(data)

    def forward(self, dense: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {"late_arr": self.first(dense, ids), "late_dep": self.second(dense, ids)}


@torch.no_grad()
def scores(model: nn.Module, rows: Rows) -> Tensor:
    return torch.cat([model(*inputs) for inputs, _ in batches(rows, 4096)])


def log_loss(logits: Tensor, rows: Rows, task: str) -> float:
    return F.binary_cross_entropy_with_logits(logits, torch.from_numpy(rows.labels[task])).item()


def constant_log_loss(rows: Rows, task: str) -> float:
    rate = torch.tensor(float(rows.labels[task].mean()))
    return log_loss(torch.logit(rate).expand(len(rows)), rows, task)


def auc(logits: Tensor, rows: Rows, task: str) -> float:
    positive = torch.from_numpy(rows.labels[task]).bool()
    rank = logits.argsort().argsort().double() + 1
    ones, zeros = positive.sum(), (~positive).sum()
    return ((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)).item()


@pytest.mark.parametrize("make", [make_dlrm, make_dcn])
def test_training_beats_the_constant_score(make, generated: RankingData) -> None:
    model = make(generated)
    train(model, generated.train, task="late_arr", epochs=3, batch_size=512, lr=3e-3)
    logits = scores(model, generated.test)
    constant = constant_log_loss(generated.test, "late_arr")
    assert log_loss(logits, generated.test, "late_arr") < 0.95 * constant
    assert auc(logits, generated.test, "late_arr") > 0.68
    assert not model.training


def test_the_same_seed_gives_the_same_weights(generated: RankingData) -> None:
    few = generated.train.take(slice(2000))
    first, second, other = (make_dlrm(generated) for _ in range(3))
    for model, seed in ((first, 5), (second, 5), (other, 6)):
        train(model, few, task="late_dep", batch_size=500, seed=seed)
    inputs, _ = next(batches(few, 64))
    assert torch.equal(first(*inputs), second(*inputs))
    assert not torch.equal(first(*inputs), other(*inputs))


def test_training_leaves_the_callers_random_state_alone(generated: RankingData) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    model = DLRM(DLRMConfig(generated.cardinalities, 4, embedding_dim=4, bottom=(), top=()))
    torch.random.set_rng_state(before)
    train(model, generated.train.take(slice(100)), task="late_arr")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_unknown_row_of_every_table_is_trained(generated: RankingData) -> None:
    model = make_dlrm(generated)
    untrained = [table.weight[0].clone() for table in model.tables]
    train(model, generated.train.take(slice(4000)), task="late_arr", batch_size=500)
    for before, table in zip(untrained, model.tables, strict=True):
        assert not torch.equal(before, table.weight[0])


def test_a_dict_of_outputs_learns_every_task(generated: RankingData) -> None:
    model, tasks = TwoHeads(generated), ("late_arr", "late_dep")
    train(model, generated.train, task=tasks, epochs=3, batch_size=512, lr=3e-3)
    with torch.no_grad():
        outputs = [model(*inputs) for inputs, _ in batches(generated.test, 4096)]
    for task in tasks:
        logits = torch.cat([output[task] for output in outputs])
        constant = constant_log_loss(generated.test, task)
        assert log_loss(logits, generated.test, task) < 0.97 * constant, task


TASKS = ("late_arr", "late_dep", "cancelled")


def multi_task(name: str, data: RankingData) -> tuple[nn.Module, dict[str, Any]]:
    """A small multi-task model for the generated flights, and how it is trained."""
    sizes = {"embedding_dim": 8, "tower": (16,)}
    torch.manual_seed(0)
    if name == "mmoe":
        config = MMoEConfig(data.cardinalities, 4, tasks=TASKS, experts=3, expert=(32,), **sizes)
        return MMoE(config), {"task": TASKS}
    if name == "ple":
        return PLE(PLEConfig(data.cardinalities, 4, tasks=TASKS, expert=(32,), **sizes)), {
            "task": TASKS
        }
    if name == "esmm":
        labels = {"click": "late_dep", "click_and_conversion": "both"}
        return ESMM(ESMMConfig(data.cardinalities, 4, **sizes)), {
            "task": labels,
            "probabilities": True,
        }
    _, sides = two_sides(data, "route", ("carrier", "distance"), history=3)
    early = EarlyStageConfig(
        sides.user_cardinalities,
        len(sides.user_dense),
        sides.item_cardinalities,
        len(sides.item_dense),
        history_length=3,
        embedding_dim=8,
        user_tower=(32,),
        item_tower=(32,),
        output_dim=8,
        shared=(32,),
        tasks=TASKS,
        auxiliary=("final_arr",),
        head=(16,),
    )
    labels = {task: task for task in TASKS} | {"aux_final_arr": "final"}
    return EarlyStage(early), {"task": labels, "arrange": sides}


@pytest.mark.parametrize("name", ["mmoe", "ple", "esmm", "early-stage"])
def test_multi_task_models_learn_all_their_tasks(name: str, generated: RankingData) -> None:
    data, _ = two_sides(generated, "route", ("carrier", "distance"), history=3)
    flat = generated if name != "early-stage" else data
    train_rows, test_rows = (with_more_labels(part) for part in (flat.train, flat.test))
    model, options = multi_task(name, generated)
    train(model, train_rows, epochs=4, batch_size=512, lr=5e-3, **options)
    arrange = options.get("arrange", lambda *inputs: inputs)
    with torch.no_grad():
        outputs = [model(*arrange(*inputs)) for inputs, _ in batches(test_rows, 4096)]
    names = options["task"] if isinstance(options["task"], dict) else {t: t for t in TASKS}
    for output, label in names.items():
        found = torch.cat([scores[output] for scores in outputs])
        logits = found.logit() if options.get("probabilities") else found
        known = label if label in test_rows.labels else "late_arr"
        constant = constant_log_loss(test_rows, known)
        # Few flights are cancelled, and a soft label has an entropy of its own.
        most = 1.0 if known in ("cancelled", "final") else 0.97
        assert log_loss(logits, test_rows, known) < most * constant, output


def with_more_labels(rows: Rows) -> Rows:
    """With a step that follows another, and a soft label such as a final stage's prediction."""
    both = rows.labels["late_dep"] * rows.labels["late_arr"]
    soft = 0.1 + 0.8 * rows.labels["late_arr"]
    return replace(rows, labels={**rows.labels, "both": both, "final": soft})


def test_progress_counts_every_step(generated: RankingData) -> None:
    steps: list[tuple[int, int]] = []
    train(
        make_dlrm(generated),
        generated.train.take(slice(1000)),
        task="late_arr",
        epochs=2,
        batch_size=300,
        progress=lambda done, total, loss: steps.append((done, total)),
    )
    assert steps == [(i, 8) for i in range(1, 9)]


def test_an_unknown_task_is_refused_with_the_known_ones(generated: RankingData) -> None:
    with pytest.raises(ValueError, match=r"no label \['clicks'\].*cancelled.*late_arr"):
        train(make_dlrm(generated), generated.train, task="clicks")


def test_one_output_cannot_learn_two_tasks(generated: RankingData) -> None:
    with pytest.raises(ValueError, match="one output"):
        train(make_dlrm(generated), generated.train, task=("late_arr", "cancelled"))
