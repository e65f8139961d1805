"""Bad input gets a message that says what was found, where, and what to do."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rankc
import torch
from rankc.optimizer.data.rows import collect
from rankc.optimizer.errors import (
    ArtifactError,
    BudgetError,
    BudgetExceeded,
    CaptureError,
    DataError,
    PipelineError,
    SignatureError,
    TargetError,
)
from rankers import (
    EAGER,
    EAGER_FP32,
    Small,
    SmallWithExample,
    drawn_labels,
    small,
    small_inputs,
    two_tasks,
    two_tasks_inputs,
)
from torch import Tensor

Change = Callable[[Tensor], None]


def rows(count: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    dense, ids = small_inputs(count, seed=1)
    return dense, ids, drawn_labels(small(), (dense, ids))


def optimize(model: Any, data: Any = None, **options: Any) -> rankc.Artifact:
    return rankc.optimize(model, EAGER_FP32, data=data, pipeline="exact", **options)


def said(error: type[Exception], data: Any, model: Any = None, **options: Any) -> str:
    """The message that optimizing gets."""
    with pytest.raises(error) as caught:
        optimize(small() if model is None else model, data, **options)
    assert type(caught.value) is error
    return str(caught.value)


def changed(value: Tensor, place: Any, to: float) -> Tensor:
    value = value.clone()
    value[place] = to
    return value


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_data", [True, False])
def test_not_a_module(with_data: bool) -> None:
    dense, ids, labels = rows()
    message = said(
        CaptureError,
        [((dense, ids), labels)] if with_data else None,
        model=lambda dense, ids: dense,
    )
    assert message == (
        "a model is a torch.nn.Module, got function. Wrap a function in a module whose forward "
        "calls it."
    )


class Branching(Small):
    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        if dense.sum() > 0:
            dense = dense * 2
        return super().forward(dense, ids)


class Numpy(Small):
    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        clipped = torch.from_numpy(np.clip(dense.numpy(), -1, 1))
        return super().forward(clipped, ids)


@pytest.mark.parametrize(
    ("kind", "line", "construct", "remedy"),
    [
        (Branching, "if dense.sum() > 0:", "control flow that depends on", "torch.where"),
    ],
)
def test_untraceable_python(kind: type[Small], line: str, construct: str, remedy: str) -> None:
    dense, ids, labels = rows()
    message = said(CaptureError, [((dense, ids), labels)], model=small(kind))
    lines, first = inspect.getsourcelines(kind)
    (number,) = [first + index for index, text in enumerate(lines) if line in text]
    assert f"{kind.__name__} can't be captured at {__file__}:{number} `" in message
    assert line in message
    assert construct in message
    assert "What to change: " in message
    assert remedy in message


def test_numpy_in_forward_is_captured() -> None:
    model = small(Numpy)
    dense, ids, _ = rows()
    program = rankc.capture(model, (dense, ids))
    assert torch.allclose(program(dense, ids), model(dense, ids), rtol=0, atol=1e-6)


def test_a_model_without_an_example() -> None:
    message = said(CaptureError, None)
    assert "give inputs=(…)" in message
    assert "give data=" in message
    assert "example_inputs()" in message


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nowhere:model", "No module named 'nowhere'"),
        ("os:nothing", "no attribute 'nothing'"),
        ("os:", "can't be imported"),
        (":model", "can't be imported"),
        ("os:sep", "gives a str, not a torch.nn.Module"),
        ("os:getcwd", "gives a str, not a torch.nn.Module"),
        ("model.pt2", "is not a file"),
    ],
)
def test_a_place_that_holds_no_model(place: str, why: str) -> None:
    message = said(CaptureError, None, model=place)
    assert place in message
    assert why in message


def test_a_file_that_holds_no_program(tmp_path: Path) -> None:
    other, damaged = tmp_path / "model.py", tmp_path / "model.pt2"
    other.write_text("x = 1")
    damaged.write_text("x = 1")
    assert "is no .pt2 file" in said(CaptureError, None, model=other)
    assert "is damaged" in said(CaptureError, None, model=damaged)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_inf_in_weights(value: float) -> None:
    dense, ids, labels = rows()
    model = small()
    with torch.no_grad():
        model.first.weight[3, :2] = value
    message = said(DataError, [((dense, ids), labels)], model=model)
    assert message.startswith("weight 'first.weight' has 2 NaN or Inf values")


# --- inputs ---------------------------------------------------------------------------------------

WRONG_INPUTS: list[tuple[Callable[[Tensor, Tensor], Any], type[DataError], tuple[str, ...]]] = [
    (
        lambda dense, ids: {"dense": dense, "idz": ids},
        SignatureError,
        ("missing ['ids']", "unexpected ['idz']", "Expected ['dense', 'ids']"),
    ),
    (
        lambda dense, ids: (dense.double(), ids),
        SignatureError,
        ("feature 'dense' is float64, expected float32", "dense.to(torch.float32)"),
    ),
    (
        lambda dense, ids: (dense[:, :5], ids),
        SignatureError,
        ("feature 'dense' has shape [400, 5], expected [batch, 6]",),
    ),
    (
        lambda dense, ids: (dense, ids[:-1]),
        SignatureError,
        ("feature 'ids' has 399 rows, the others have 400",),
    ),
    (
        lambda dense, ids: (dense, ids, ids),
        SignatureError,
        ("takes 2 arguments ['dense', 'ids'], got 3",),
    ),
    (
        lambda dense, ids: (dense, changed(ids, [5, 7], 300)),
        SignatureError,
        ("feature 'ids' has ids beyond its table of 300 rows in 2 rows", "first in row {5}"),
    ),
    (
        lambda dense, ids: (dense, changed(ids, 5, -1)),
        SignatureError,
        ("feature 'ids' has ids beyond its table of 300 rows in 1 rows: from -1 to -1",),
    ),
    (
        lambda dense, ids: (changed(dense, ([5, 9], 2), float("nan")), ids),
        DataError,
        ("feature 'dense' has NaN or Inf in 2 rows, first in row {5}",),
    ),
    (
        lambda dense, ids: (changed(dense, (5, 2), float("-inf")), ids),
        DataError,
        ("feature 'dense' has NaN or Inf in 1 rows, first in row {5}",),
    ),
]
_NAMES = (
    "names",
    "dtype",
    "shape",
    "lengths",
    "arguments",
    "ids beyond",
    "ids negative",
    "nan",
    "inf",
)


@pytest.mark.parametrize("batch", ["first", "second"])
@pytest.mark.parametrize(("wrong", "error", "parts"), WRONG_INPUTS, ids=_NAMES)
def test_inputs_that_do_not_fit(
    wrong: Callable[[Tensor, Tensor], Any],
    error: type[DataError],
    parts: tuple[str, ...],
    batch: str,
) -> None:
    """In a later batch they are held against the signature; in the first, the model's own."""
    dense, ids, labels = rows()
    bad, good = (wrong(dense, ids), labels), ((dense, ids), labels)
    data = [bad, good] if batch == "first" else [good, bad]
    message = said(error, data, model=small(SmallWithExample))
    for part in parts:
        row = 5 if batch == "first" else 405
        assert part.replace("{5}", str(row)) in message


def test_bad_values_are_named_without_an_example_too() -> None:
    dense, ids, labels = rows()
    beyond = said(SignatureError, [((dense, changed(ids, 5, 300)), labels)])
    assert "feature 'ids' has ids beyond its table of 300 rows" in beyond
    nan = said(DataError, [((changed(dense, (5, 2), float("nan")), ids), labels)])
    assert "feature 'dense' has NaN or Inf in 1 rows, first in row 5" in nan


def test_an_example_that_does_not_fit() -> None:
    dense, ids, _ = rows()
    message = said(SignatureError, None, inputs=(dense, changed(ids, 5, 300)))
    assert "feature 'ids' has ids beyond its table of 300 rows in 1 rows" in message
    wrong = said(CaptureError, None, inputs=(dense[:, :5], ids))
    assert "doesn't run on the example" in wrong
    assert "rankers.py:" in wrong


def test_an_artifact_holds_its_inputs_against_the_signature() -> None:
    dense, ids, _ = rows()
    artifact = optimize(small(), inputs=(dense, ids))
    calls: list[tuple[tuple[Any, ...], type[DataError], str]] = [
        ((dense,), SignatureError, "missing ['ids']"),
        ((dense.numpy(),), SignatureError, "missing ['ids']"),
        ((dense, ids, ids), SignatureError, "takes 2 arguments"),
        ((dense.double(), ids), SignatureError, "'dense' is float64, expected float32"),
        ((dense[:, :5], ids), SignatureError, "has shape [400, 5], expected [batch, 6]"),
        ((dense, changed(ids, 0, 300)), SignatureError, "beyond its table of 300 rows"),
        ((changed(dense, 3, float("nan")), ids), DataError, "NaN or Inf in 1 rows, first in row 3"),
        ((None, ids), SignatureError, "'dense' is a NoneType, expected a tensor"),
        (("a", ids), SignatureError, "'dense' is a str, expected a tensor"),
    ]
    for call, error, part in calls:
        with pytest.raises(error) as caught:
            artifact(*call)
        assert part in str(caught.value)
    with pytest.raises(SignatureError, match="idz"):
        artifact(dense=dense, idz=ids)


# --- outputs --------------------------------------------------------------------------------------


class Logarithm(Small):
    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return torch.log(dense[:, 0]) + super().forward(dense, ids)


def test_nan_in_outputs() -> None:
    dense, ids, labels = rows()
    model = Logarithm()
    model.load_state_dict(small().state_dict())
    early = [((changed(dense.abs(), (5, 0), -1.0), ids), labels)]
    message = said(DataError, early, model=model)
    assert message.startswith("output 'score' is NaN or Inf in row 5 of the example")

    late = [((dense.abs(), ids), labels), ((changed(dense.abs(), (350, 0), -1.0), ids), labels)]
    message = said(DataError, late, model=model)
    assert message.startswith("output 'score' is NaN or Inf in 1 of")
    assert "first in row" in message


# --- labels and evaluation rows -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "part"),
    [
        (lambda y: changed(y, [7, 9], 1.5), "label 'score' is outside [0, 1] in 2 rows, first in"),
        (lambda y: changed(y, 7, -0.1), "label 'score' is outside [0, 1] in 1 rows, first in row"),
        (lambda y: changed(y, 7, float("inf")), "label 'score' is Inf in 1 rows"),
        (lambda y: y[:-1], "has 399 rows, the inputs have 400"),
        (lambda y: {"click": y, "buy": y}, "unknown tasks ['click', 'buy']"),
        (torch.zeros_like, "task 'score' are all 0"),
        (torch.ones_like, "task 'score' are all 1"),
    ],
    ids=["above", "below", "inf", "short", "tasks", "all 0", "all 1"],
)
def test_labels_that_cannot_be_used(label: Callable[[Tensor], Any], part: str) -> None:
    dense, ids, labels = rows()
    assert part in said(DataError, [rankc.Batch((dense, ids), label(labels))])


def test_labels_of_a_regression_say_how_to_declare_it() -> None:
    dense, ids, labels = rows()
    data = [rankc.Batch((dense, ids), changed(labels, 7, 1.5))]
    told = "with_task('score', kind=rankc.TaskKind.REGRESSION)"
    assert told in said(DataError, data)
    program = rankc.capture(small(), (dense, ids))
    signature = program.signature.with_task("score", kind=rankc.TaskKind.REGRESSION)
    collected = collect(data, replace(program, signature=signature))
    assert float(collected.labels["score"][7]) == 1.5  # type: ignore[index]


def test_proof_rows_of_one_class() -> None:
    """The rows that calibrate and choose hold both classes, the later ones that prove don't."""
    dense, ids, labels = rows()
    message = said(DataError, [((dense, ids), changed(labels, slice(176, None), 0.0))])
    assert "evaluation rows of task 'score' are all 0 (224 rows)" in message
    assert "need both classes" in message


def test_too_few_or_no_rows() -> None:
    dense, ids, labels = rows()
    assert said(DataError, []) == "data is empty: it yields no batch."
    none = [((dense[:0], ids[:0]), labels[:0])]
    assert said(DataError, none, inputs=(dense, ids)) == "data is empty: it has no rows."
    few = [((dense[:29], ids[:29]), labels[:29])]
    assert "29 rows are too few" in said(DataError, few)


def test_constant_columns_are_no_trouble() -> None:
    dense, ids, _ = rows(3000)
    dense[:, 2] = 0.7
    ids = torch.full_like(ids, 5)
    model = small()
    data = [rankc.Batch((dense, ids), drawn_labels(model, (dense, ids)))]
    artifact = rankc.optimize(model, EAGER, data=data, budget=rankc.Budget(ne=0.05))
    assert artifact.verdict.status is rankc.Status.PASS
    assert isinstance(artifact.report, rankc.Report)
    (table,) = [site for site in artifact.report.sites if site.kind == "table"]
    assert (table.site, table.chosen) == ("table", "fp32")
    assert table.reason == "calibration only ever looks up its row 5"
    assert any(site.chosen != "fp32" for site in artifact.report.sites)
    assert not [note for note in artifact.report.notes if "few for" in note]


def test_too_few_rows_for_the_budget_say_how_many_would_do() -> None:
    dense, ids, labels = rows(3000)
    data = [rankc.Batch((dense, ids), labels)]
    tight = rankc.optimize(small(), EAGER, data=data, budget=rankc.Budget(ne=1e-4))
    assert isinstance(tight.report, rankc.Report)
    (few,) = [note for note in tight.report.notes if "few for" in note]
    assert few.startswith("task 'score': 1,680 rows that prove are few for ΔNE within 0.01 %")
    needed = int(few.split("with about ")[1].split(" ")[0].replace(",", ""))
    assert 200_000 < needed < 1_000_000


def test_labels_for_some_tasks_only() -> None:
    model, inputs = two_tasks(), two_tasks_inputs(3000, seed=1)
    labels = {"click": (torch.rand(3000, generator=torch.Generator().manual_seed(0)) < 0.4).float()}
    data = [rankc.Batch((inputs,), labels)]
    artifact = rankc.optimize(model, EAGER, data=data, budget=rankc.Budget(ne=0.05))
    assert [task.labels for task in artifact.verdict.tasks] == ["labels", "soft labels"]
    assert artifact.verdict.notes[0].startswith("task 'buy': no labels, judged on the original's")


@pytest.mark.parametrize("data", [5, rankc.Batch(None)])
def test_data_that_is_no_iterable(data: Any) -> None:
    message = said(DataError, data)
    assert f"data is a {type(data).__name__}, expected batches" in message


def test_data_that_is_no_parquet_file(tmp_path: Path) -> None:
    inputs = small_inputs(4, seed=0)
    (tmp_path / "rows.parquet").write_text("a,b")
    missing = said(DataError, tmp_path / "gone.parquet", inputs=inputs)
    assert "gone.parquet is not a file" in missing
    foreign = said(DataError, tmp_path / "rows.parquet", inputs=inputs)
    assert "rows.parquet is no parquet file" in foreign


def test_calibration_rows_alone() -> None:
    inputs = small_inputs(400, seed=0)
    message = said(DataError, None, inputs=inputs, calibration=[rankc.Batch(inputs)])
    assert "give data= as well" in message


# --- budget, target, pipeline, signature ----------------------------------------------------------


def test_a_budget_nobody_can_meet() -> None:
    dense, ids, labels = rows()
    with pytest.raises(BudgetExceeded) as caught:
        rankc.optimize(
            small(),
            "cpu-fp32",
            data=[((dense, ids), labels)],
            budget=rankc.Budget(ne=0),
            pipeline="exact",
        )
    assert caught.value.smallest is not None
    assert f"smallest reachable ΔNE (upper bound) is {caught.value.smallest:.3g}" in str(
        caught.value
    )
    assert "it comes from" in str(caught.value)


def test_a_budget_for_a_task_that_is_not_there() -> None:
    dense, ids, labels = rows()
    budget = rankc.Budget(tasks={"buy": rankc.Budget(ne=1e-3)})
    with pytest.raises(BudgetError, match="limits task buy, the model has score"):
        optimize(small(), [((dense, ids), labels)], budget=budget)


@pytest.mark.parametrize(
    ("target", "near"), [("h100-fp9", "h100-fp8"), ("cpu_int8", "cpu-int8"), ("H100", "h100-fp8")]
)
def test_an_unknown_target(target: str, near: str) -> None:
    with pytest.raises(TargetError) as caught:
        rankc.optimize(small(), target)
    assert f"unknown target {target!r}" in str(caught.value)
    assert near in str(caught.value).split("?")[0]


def test_an_unknown_pass() -> None:
    with pytest.raises(PipelineError, match=r"no pass is called 'fold-constant'.*fold-constants"):
        rankc.optimize(small(), EAGER, pipeline="default,+fold-constant")


def test_a_signature_or_outputs_that_are_not_the_models() -> None:
    inputs = small_inputs(8, seed=0)
    with pytest.raises(SignatureError, match=r"outputs=\['a', 'b'\] neither names"):
        optimize(small(), inputs=inputs, outputs=["a", "b"])
    with pytest.raises(SignatureError, match=r"features are \[\], the model's are \['dense'"):
        optimize(small(), inputs=inputs, signature=rankc.Signature((), ()))


# --- artifact folders -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact folder, for tests to copy."""
    artifact = rankc.optimize(small(), "cpu-fp32", inputs=small_inputs(8, seed=0), pipeline="exact")
    return artifact.save(tmp_path_factory.mktemp("saved") / "artifact")


def test_an_output_folder_that_exists(saved: Path, tmp_path: Path) -> None:
    artifact = rankc.load(str(saved))
    for place in (tmp_path, saved, tmp_path / "file"):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ArtifactError, match=r"exists already; give a new folder"):
            artifact.save(place)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ArtifactError, match=r"can't be written: .*file is no folder"):
        artifact.save(tmp_path / "file" / "deeper" / "out")


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Changes the manifest."""

    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edit


def truncated(name: str, size: int = 100) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def garbled(folder: Path) -> None:
    """As long as before, but no ONNX."""
    model = folder / "model.onnx"
    model.write_bytes(b"\xff" * model.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (shutil.rmtree, "is no artifact: it has no manifest.json"),
        (lambda f: (f / "manifest.json").unlink(), "is no artifact: it has no manifest.json"),
        (truncated("manifest.json"), "manifest.json is damaged or foreign"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json is damaged or foreign"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is damaged or foreign"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff"), "is damaged or foreign"),
        (edited(lambda m: m.pop("signature")), "manifest.json is damaged or foreign"),
        (edited(lambda m: m.update(files=["model.onnx"])), "is damaged or foreign"),
        (
            edited(lambda m: m["files"].update({"../x": {"bytes": 0, "sha256": ""}})),
            "names files outside",
        ),
        (edited(lambda m: m.update(format=99)), "has format 99, this rankc reads 1"),
        (truncated("model.onnx.data"), "model.onnx.data has 100 bytes, the manifest says"),
        (truncated("model.onnx"), "model.onnx has 100 bytes, the manifest says"),
        (lambda f: (f / "model.onnx.data").unlink(), "incomplete: model.onnx.data is missing"),
        (lambda f: (f / "report.json").unlink(), "incomplete: report.json is missing"),
        (lambda f: (f / "report.txt").unlink(), "incomplete: report.txt is missing"),
        (truncated("report.json"), "report.json is damaged"),
        (garbled, "model.onnx isn't what was written"),
    ],
)
def test_a_folder_that_is_no_whole_artifact(
    saved: Path, tmp_path: Path, damage: Callable[[Path], object], part: str
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(ArtifactError) as caught:
        rankc.load(str(folder))
    assert str(folder) in str(caught.value)
    assert part in str(caught.value)
