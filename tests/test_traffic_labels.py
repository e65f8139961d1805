"""Labels and rows as traffic has them: missing ones, sentinels, weights, labels among features."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rankc
import torch
from numpy.typing import NDArray
from rankc.frontends.export import capture
from rankc.optimizer.cli import main
from rankc.optimizer.data.batch import Batch
from rankc.optimizer.data.parquet import Parquet
from rankc.optimizer.data.rows import collect
from rankc.optimizer.errors import DataError
from rankc.optimizer.ir import Program, TaskKind
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.gate import judge
from rankc.optimizer.quality.verdict import Status, TaskResult, Verdict
from rankc.optimizer.training.distill import loss_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

ROWS = 4000
FloatArray = NDArray[np.float64]


def sigmoid(logits: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + np.exp(-logits))


class Scored:
    """Scores of two models on rows, a conversion's label where there was a click."""

    def __init__(self, rows: int = ROWS, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.before = draw.normal(size=rows) - 1.0
        self.after = self.before + 0.02 * draw.normal(size=rows)
        self.label = (draw.random(rows) < sigmoid(self.before)).astype(np.float64)
        self.clicked = draw.random(rows) < 0.4
        self.group = draw.integers(200, size=rows)
        self.weights = np.where(self.label > 0.5, 1.0, 3.0)
        self.plane = draw.integers(3, size=rows).astype(str)

    def verdict(self, places: Any = slice(None), label: Any = None, **more: Any) -> Verdict:
        limits = Budget(
            ne=0.01, auc=0.01, gauc=0.05, calibration=0.05, max_rms_shift=0.5, max_shift=None
        )
        return judge(
            {"buy": self.before[places]},
            {"buy": self.after[places]},
            {"buy": self.label[places] if label is None else label},
            limits,
            group=self.group[places],
            time=np.arange(len(self.before))[places],
            **more,
        )


def numbers(task: TaskResult) -> dict[str, tuple[float, float]]:
    """What a verdict says of a task's labelled rows, and how surely."""
    checks = (check for check in task.checks if check.name != "max_rms_shift")
    return {check.name: (check.interval.estimate, check.interval.high) for check in checks}


def test_rows_without_a_label_are_as_if_they_were_not_there() -> None:
    scored = Scored()
    label = np.where(scored.clicked, scored.label, math.nan)
    whole = scored.verdict(label=label, cohorts={"plane": scored.plane})
    kept = np.flatnonzero(scored.clicked)
    alone = scored.verdict(kept, cohorts={"plane": scored.plane[kept]})
    mine, theirs = numbers(whole.tasks[0]), numbers(alone.tasks[0])
    assert {name: found[0] for name, found in mine.items()} == {
        name: found[0] for name, found in theirs.items()
    }
    assert whole.tasks[0].after == alone.tasks[0].after
    assert whole.tasks[0].delta_ne.estimate == alone.tasks[0].delta_ne.estimate
    assert whole.tasks[0].delta_ne.rows == len(kept)
    assert [(c.value, c.rows) for c in whole.cohorts] == [(c.value, c.rows) for c in alone.cohorts]
    assert [c.delta_ne and c.delta_ne.estimate for c in whole.cohorts] == [
        c.delta_ne and c.delta_ne.estimate for c in alone.cohorts
    ]
    assert f"judged on the {len(kept):,} of {ROWS:,} rows that have a label" in whole.notes[0]


def test_shifts_and_what_a_request_keeps_are_of_all_rows() -> None:
    scored = Scored()
    label = np.where(scored.clicked, scored.label, math.nan)
    far = int(np.flatnonzero(~scored.clicked)[7])
    scored.after[far] += 9.0
    shift = scored.verdict(label=label).tasks[0].shift
    assert shift.largest_row == far


def test_weights_are_as_if_rows_came_so_often() -> None:
    scored = Scored()
    weighted = scored.verdict(weights=scored.weights).tasks[0]
    often = np.repeat(np.arange(ROWS), scored.weights.astype(int))
    repeated = scored.verdict(often).tasks[0]
    for name in ("loss", "ne", "auc", "gauc", "calibration"):
        mine, theirs = getattr(weighted.after, name), getattr(repeated.after, name)
        assert mine == pytest.approx(theirs, rel=2e-3 if name in ("auc", "gauc") else 1e-9), name
    assert weighted.delta_ne.estimate == pytest.approx(repeated.delta_ne.estimate, rel=1e-9)
    assert weighted.delta_ne.standard_error == pytest.approx(
        repeated.delta_ne.standard_error, rel=0.05
    )


def test_a_weighted_verdict_is_what_sums_say() -> None:
    scored = Scored()
    w, y = scored.weights, scored.label
    task = scored.verdict(weights=w).tasks[0]
    before, after = (w * (np.logaddexp(0.0, z) - y * z) for z in (scored.before, scored.after))
    assert task.delta_ne.estimate == pytest.approx((after - before).sum() / before.sum())
    mean = (w * y).sum() / w.sum()
    entropy = -mean * math.log(mean) - (1 - mean) * math.log(1 - mean)
    assert task.after.ne == pytest.approx(after.sum() / w.sum() / entropy)
    assert task.after.calibration == pytest.approx(
        (w * sigmoid(scored.after)).sum() / (w * y).sum()
    )


def test_one_weight_for_all_changes_nothing() -> None:
    scored = Scored()
    same, plain = scored.verdict(weights=np.full(ROWS, 10.0)).tasks[0], scored.verdict().tasks[0]
    assert same.delta_ne.high == pytest.approx(plain.delta_ne.high, rel=1e-9)
    assert same.delta_ne.standard_error == pytest.approx(plain.delta_ne.standard_error, rel=1e-9)


@pytest.mark.parametrize("soft", [False, True])
def test_finetuning_leaves_missing_labels_out_and_counts_by_weight(soft: bool) -> None:
    program = capture(nn.Linear(2, 1).eval(), torch.zeros(3, 2))
    (task,) = program.signature.served
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1], requires_grad=True)
    target = torch.tensor([0.0, 1.0, math.nan, 1.0])
    weights = torch.tensor([1.0, 2.0, 5.0, 1.0])
    known = [0, 1, 1, 3]
    loss = loss_of(task, scores, target, soft=soft, weights=weights)
    assert torch.allclose(loss, loss_of(task, scores[known], target[known], soft=soft))
    loss.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert scores.grad[2] == 0.0
    assert bool(scores.grad.isfinite().all())


# --- read -----------------------------------------------------------------------------------------


class Traffic(nn.Module):
    """Clicks, conversions after clicks, and how long was watched."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(50, 8)
        self.hidden = nn.Linear(12, 32)
        self.heads = nn.ModuleDict({name: nn.Linear(32, 1) for name in ("click", "buy", "watch")})

    def forward(self, dense: Tensor, item: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.hidden(torch.cat([dense, self.table(item)], 1)))
        return {name: head(hidden).squeeze(1) for name, head in self.heads.items()}


def traffic(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Features, labels and weights, by name."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, 4, generator=generator)
    item = torch.randint(50, (rows,), generator=generator)
    scores = Traffic().eval()(dense, item)
    draws = torch.rand(2, rows, generator=generator)
    click = (draws[0] < scores["click"].sigmoid()).float()
    buy = (draws[1] < scores["buy"].sigmoid()).float()
    buy = torch.where(click > 0, buy, math.nan)
    watch = 3.0 + scores["watch"].detach() + torch.randn(rows, generator=generator)
    weights = torch.where(click > 0, 1.0, 4.0)
    return {
        "dense": dense,
        "item": item,
        "click": click,
        "buy": buy,
        "watch": watch,
        "weights": weights,
    }


@pytest.fixture(scope="module")
def program() -> Program:
    rows = traffic(4)
    found = capture(Traffic().eval(), (rows["dense"], rows["item"]))
    found.signature = found.signature.with_task("watch", kind=TaskKind.REGRESSION)
    return found


def given(rows: dict[str, Tensor]) -> Batch:
    labels = {name: rows[name] for name in ("click", "buy", "watch")}
    return Batch((rows["dense"], rows["item"]), labels, weights=rows["weights"])


class Dicts(Dataset[dict[str, Tensor]]):
    """Rows as dicts, labels among the features, as many teams' loaders yield them."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        self.rows = {name: column for name, column in rows.items() if name != "weights"}

    def __len__(self) -> int:
        return len(self.rows["click"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.rows.items()}


def test_the_same_rows_from_a_batch_a_loader_and_parquet(program: Program, tmp_path: Path) -> None:
    rows = traffic(300)
    plain = {name: column.numpy() for name, column in rows.items() if name != "dense"}
    frame = pd.DataFrame({**plain, **{f"dense_{i}": rows["dense"][:, i] for i in range(4)}})
    frame["buy"] = frame["buy"].astype("boolean").where(frame["buy"].notna(), None)
    frame.to_parquet(tmp_path / "rows.parquet")
    parquet = Parquet(tmp_path / "rows.parquet", weights="weights")
    ways = {
        "batch": collect([given(rows)], program),
        "loader": collect(DataLoader(Dicts(rows), batch_size=64), program),
        "parquet": collect(parquet.batches(program), program),
    }
    for way, found in ways.items():
        assert found.labels is not None
        for name in ("click", "buy", "watch"):
            want = rows[name].double().numpy()
            assert np.array_equal(found.labels[name], want, equal_nan=True), (way, name)
        assert torch.equal(found.features["item"], rows["item"]), way
        weights = found.weights
        assert (weights is None) == (way == "loader")
        assert weights is None or np.array_equal(weights, rows["weights"].numpy()), way


def test_one_dict_as_the_only_argument_brings_its_labels() -> None:
    class Dicted(Traffic):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(batch["dense"], batch["item"])

    rows = Dicts(traffic(40)).rows
    features = {name: rows[name] for name in ("dense", "item")}
    for example in (features, rows):  # the labels may have been there at capture, or not
        program = capture(Dicted().eval(), (example,))
        watch = next(task.name for task in program.signature.tasks if "watch" in task.name)
        program.signature = program.signature.with_task(watch, kind=TaskKind.REGRESSION)
        found = collect([rows], program)
        assert found.labels is not None
        assert {name.removesuffix("_out") for name in found.labels} == {"click", "buy", "watch"}


def test_a_sentinel_is_offered_and_the_offer_works(program: Program) -> None:
    rows = traffic(60)
    rows["buy"] = rows["buy"].nan_to_num(nan=-1.0)
    with pytest.raises(DataError, match=r"If -1 stands for a missing label.*'buy', missing=-1\)"):
        collect([given(rows)], program)
    declared = program.clone()
    declared.signature = program.signature.with_task("buy", missing=-1)
    found = collect([given(rows)], declared)
    assert found.labels is not None
    assert int(np.isnan(found.labels["buy"]).sum()) == int((rows["click"] == 0).sum())
    kept = type(declared.signature).from_json(declared.signature.to_json())
    assert kept == declared.signature


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            torch.full((20,), -1.0),
            "the weights are negative, NaN or Inf in 20 rows, first in row 0",
        ),
        (torch.full((20,), math.nan), "Give each row the number of rows it stands for"),
        (np.array(["a"] * 20), "the weights aren't numbers"),
        (torch.ones(19), "weights has 19 rows, the inputs have 20"),
    ],
)
def test_bad_weights_are_told(program: Program, bad: Any, message: str) -> None:
    rows = traffic(20)
    with pytest.raises(DataError, match=message):
        collect([Batch((rows["dense"], rows["item"]), weights=bad)], program)


def test_weights_of_some_batches_only(program: Program) -> None:
    rows = traffic(20)
    plain = Batch((rows["dense"], rows["item"]))
    with pytest.raises(DataError, match="weights are missing from some batches: 20 of 40 rows"):
        collect([plain, Batch(plain.inputs, weights=torch.ones(20))], program)


def test_ids_with_fractions_are_not_cut(program: Program, tmp_path: Path) -> None:
    rows = traffic(5)
    frame = pd.DataFrame({f"dense_{i}": rows["dense"][:, i] for i in range(4)})
    frame["item"] = [1.0, 2.0, 3.5, 4.0, 5.0]
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"'item' holds float64 with fractions, 3\.5 in row 2"):
        collect(Parquet(tmp_path / "rows.parquet").batches(program), program)
    frame["item"] = frame["item"].astype("int64")
    frame.to_parquet(tmp_path / "rows.parquet")
    found = collect(Parquet(tmp_path / "rows.parquet").batches(program), program)
    assert found.features["item"].tolist() == [1, 2, 3, 4, 5]


def test_a_model_of_traffic_is_optimized_on_what_its_tasks_have(program: Program) -> None:
    rows = traffic(9000, seed=5)
    artifact = rankc.optimize(
        Traffic().eval(),
        "cpu-int8",
        data=[given(rows)],
        budget=rankc.Budget(ne=0.02),
        signature=program.signature,
    )
    verdict = artifact.verdict
    assert verdict is not None
    assert verdict.status is Status.PASS
    judged = {task.task: task.delta_ne.rows for task in verdict.tasks}
    assert judged["click"] == judged["watch"] == verdict.rows
    known = int((~rows["buy"][-verdict.rows :].isnan()).sum())
    assert judged["buy"] == known
    assert any(
        f"the {known:,} of {verdict.rows:,} rows that have a label" in note
        for note in verdict.notes
    )
    assert any("rows count by their weights, 1 to 4" in note for note in verdict.notes)
    w = rows["weights"][-verdict.rows :].double()
    y = rows["watch"][-verdict.rows :].double()
    before = Traffic().eval()(rows["dense"], rows["item"])["watch"][-verdict.rows :].double()
    (watch,) = (task for task in verdict.tasks if task.task == "watch")
    right = float((w * (before.detach() - y).square()).sum() / w.sum())
    assert watch.before.loss == pytest.approx(right, rel=1e-5)


def ranker() -> nn.Module:
    """What the command line is given."""
    return Traffic().eval()


def example_inputs() -> tuple[Tensor, Tensor]:
    rows = traffic(4)
    return rows["dense"], rows["item"]


def test_the_command_line_declares_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Traffic, "example_inputs", staticmethod(example_inputs), raising=False)
    monkeypatch.setitem(sys.modules, "a_ranker", sys.modules[__name__])
    rows = traffic(6000, seed=7)
    frame = pd.DataFrame({k: v.numpy() for k, v in rows.items() if k != "dense"})
    frame = frame.assign(**{f"dense_{i}": rows["dense"][:, i] for i in range(4)})
    frame["buy"] = frame["buy"].fillna(-1.0)
    frame.to_parquet(tmp_path / "rows.parquet")
    given = ["optimize", "a_ranker:ranker", "--data", str(tmp_path / "rows.parquet"), "--quiet"]
    given += ["--out", str(tmp_path / "out"), "--weights", "weights", "--budget", "ne=0.05"]
    assert main([*given, "--regression", "watch"]) == 1
    assert "missing=-1" in capsys.readouterr().err
    assert main([*given, "--regression", "seconds"]) == 1
    assert "no task is called 'seconds'; there are ['click'" in capsys.readouterr().err
    assert main([*given, "--missing", "buy"]) == 1
    assert "--missing takes task=value, such as buy=-1" in capsys.readouterr().err
    assert main([*given, "--regression", "watch", "--missing", "buy=-1"]) == 0
    assert "rows that have a label" in capsys.readouterr().out
