"""What users hand in: every way to be wrong has its message."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.data.batch import Batch, as_batch, call_of, first_inputs
from rankc.optimizer.data.checks import check_features
from rankc.optimizer.data.parquet import Parquet
from rankc.optimizer.data.rows import CALIBRATION_ROWS, Rows, collect, split
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import DataError, SignatureError
from rankc.optimizer.ir import Feature, FeatureKind, Program, Signature, TaskKind
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 3) for rows in (10, 5))
        self.click = nn.Linear(5, 1)
        self.buy = nn.Linear(5, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> dict[str, Tensor]:
        looked_up = self.tables[0](ids[:, 0]) + self.tables[1](ids[:, 1])
        hidden = torch.cat([dense, looked_up], 1)
        return {"click": self.click(hidden), "buy": self.buy(hidden)}


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Ranker().eval(), inputs(4))


@pytest.fixture(scope="module")
def single() -> Program:
    return capture(nn.Linear(2, 1).eval(), torch.zeros(3, 2))


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(count, (rows,), generator=generator) for count in (10, 5)]
    return torch.randn(rows, 2, generator=generator), torch.stack(ids, 1)


def labels(rows: int) -> dict[str, Tensor]:
    return {"click": torch.ones(rows), "buy": torch.zeros(rows)}


# --- the forms ------------------------------------------------------------------------------------

TWO, ONE = ("dense", "ids"), ("x",)
D, IDS_, Y = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), torch.ones(2)


@pytest.mark.parametrize(
    ("item", "arguments", "inputs_", "labels_"),
    [
        (((D, IDS_), Y), TWO, (D, IDS_), Y),
        ([(D, IDS_), {"click": Y}], TWO, (D, IDS_), {"click": Y}),
        ([D, IDS_, Y], TWO, (D, IDS_), Y),
        ((D, IDS_), TWO, (D, IDS_), None),
        (({"dense": D, "ids": IDS_}, Y), TWO, {"dense": D, "ids": IDS_}, Y),
        ({"dense": D, "ids": IDS_}, TWO, {"dense": D, "ids": IDS_}, None),
        ((D, Y), ONE, D, Y),
        (D, ONE, D, None),
        (D.numpy(), ONE, D.numpy(), None),
    ],
)
def test_what_data_yields(
    item: Any, arguments: tuple[str, ...], inputs_: Any, labels_: Any
) -> None:
    batch = as_batch(item, arguments)
    assert repr(batch) == repr(Batch(inputs_, labels_))
    assert as_batch(batch, arguments) is batch


@pytest.mark.parametrize(
    ("given", "arguments", "bound"),
    [
        ((1, 2), TWO, {"dense": 1, "ids": 2}),
        ({"ids": 2, "dense": 1}, TWO, {"dense": 1, "ids": 2}),
        ({"a": 1}, ONE, {"x": {"a": 1}}),
        ({"x": 1}, ONE, {"x": 1}),
        ({"x": 1, "y": 2}, ONE, {"x": {"x": 1, "y": 2}}),
        ({"a": 1}, ("features", "mode"), {"features": {"a": 1}}),
        (5, ONE, {"x": 5}),
    ],
)
def test_arguments_by_name(given: Any, arguments: tuple[str, ...], bound: dict[str, Any]) -> None:
    assert call_of(arguments, given) == bound


def test_the_first_batch_is_not_lost() -> None:
    first, again = first_inputs(iter([(D, Y), (D + 1, Y)]), ONE)
    assert torch.equal(first, D)
    assert len(list(again)) == 2
    listed = [(D, Y)]
    assert first_inputs(listed, ONE)[1] is listed
    with pytest.raises(DataError, match="it yields no batch"):
        first_inputs([], ONE)


def test_collecting(program: Program) -> None:
    parts = [inputs(5), inputs(3, seed=1)]
    data = [
        Batch(part, labels(len(part[0])), np.arange(len(part[0])), {"os": ["a"] * len(part[0])})
        for part in parts
    ]
    rows = collect(data, program)
    assert len(rows) == 8
    assert torch.equal(rows.features["dense"], torch.cat([part[0] for part in parts]))
    assert rows.labels is not None
    assert rows.group is not None
    assert rows.cohorts is not None
    assert rows.labels["click"].tolist() == [1.0] * 8
    assert rows.group.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert rows.cohorts["os"].tolist() == ["a"] * 8
    part = rows.part(4, 6)
    assert (len(part), part.group.tolist()) == (2, [4, 0])  # type: ignore[union-attr]
    assert [len(batch["ids"]) for batch in rows.batches(3)] == [3, 3, 2]
    assert len(collect(data, program, max_rows=5)) == 5


def test_a_data_loader_is_data(program: Program) -> None:
    loader = DataLoader(TensorDataset(*inputs(6), torch.ones(6, 2)), batch_size=4)
    rows = collect(loader, program)
    assert len(rows) == 6
    assert rows.labels is not None
    assert sorted(rows.labels) == ["buy", "click"]


# --- what can be wrong ----------------------------------------------------------------------------


def dense(**change: Any) -> Any:
    value = inputs(4)[0]
    for row, content in change.items():
        value[int(row[1:])] = content
    return value


GOOD_DENSE, GOOD_IDS = inputs(4)


def ids(column: int, row: int, value: int) -> Tensor:
    changed = GOOD_IDS.clone()
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"dense": GOOD_DENSE}, r"missing \['ids'\]"),
        ({"dense": GOOD_DENSE, "id": GOOD_IDS}, r"missing \['ids'\]; unexpected \['id'\]"),
        (Batch((GOOD_DENSE, GOOD_IDS, GOOD_IDS)), r"takes 2 arguments \['dense', 'ids'\], got 3"),
        ((GOOD_DENSE, None), "feature 'ids' is a NoneType, expected a tensor"),
        ((GOOD_DENSE, [["a"]]), "feature 'ids' is a list, expected a tensor"),
        (
            (GOOD_DENSE.double(), GOOD_IDS),
            r"'dense' is float64, expected float32\. Convert it, as in dense.to\(torch.float32\)",
        ),
        ((GOOD_DENSE, GOOD_IDS.int()), "'ids' is int32, expected int64"),
        ((GOOD_DENSE[:, :1], GOOD_IDS), r"'dense' has shape \[4, 1\], expected \[batch, 2\]"),
        ((GOOD_DENSE[0], GOOD_IDS), r"'dense' has shape \[2\], expected \[batch, 2\]"),
        ((GOOD_DENSE, GOOD_IDS[:3]), "'ids' has 3 rows, the others have 4"),
        ((dense(r2=math.nan), GOOD_IDS), "'dense' has NaN or Inf in 1 rows, first in row 6"),
        ((dense(r1=math.inf, r3=0.0), GOOD_IDS), "in 1 rows, first in row 5. Fill missing values"),
        (
            (GOOD_DENSE, ids(1, 2, 5)),
            "'ids', column 1 has ids beyond its table of 5 rows in 1 rows: from 5 to 5, first in "
            "row 6. Map unknown ids",
        ),
        ((GOOD_DENSE, ids(0, 3, -1)), "column 0 .* of 10 rows in 1 rows: from -1 to -1.* row 7"),
        ((GOOD_DENSE, ids(0, 0, 7)), None),
    ],
)
def test_bad_inputs_are_told(program: Program, bad: Any, message: str | None) -> None:
    data = [inputs(4), bad]
    if message is None:
        assert len(collect(data, program)) == 8
        return
    with pytest.raises(DataError, match=message):
        collect(data, program)


def test_a_list_of_numbers_is_a_tensor(single: Program) -> None:
    assert len(collect([Batch([[[1.0, 2.0]]])], single)) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(4), r"the model has 2 tasks \['click', 'buy'\]; give labels as a dict"),
        ({"clicks": torch.ones(4)}, r"unknown tasks \['clicks'\]; the model's tasks are"),
        ({"click": torch.ones(3)}, "label click has 3 rows, the inputs have 4"),
        (
            {"click": torch.tensor([0, 1, 2, 1])},
            r"'click' is outside \[0, 1\] in 1 rows.* row 2: 2",
        ),
        ({"click": torch.tensor([0, -1.0, 2, 1])}, "in 2 rows, first in row 1: -1"),
        (
            {"click": torch.tensor([0, 1, 1, math.inf])},
            "'click' is Inf in 1 rows.* row 3: inf. NaN is",
        ),
        ({"click": torch.full((4,), math.nan)}, "label 'click' is missing in every row. Leave"),
        ({"click": np.array(["a"] * 4)}, "label 'click' isn't a number"),
    ],
)
def test_bad_labels_are_told(program: Program, bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collect([Batch(inputs(4), bad)], program)


def test_labels_of_one_task_need_no_name(single: Program) -> None:
    for given in (torch.ones(3), torch.ones(3, 1), {"clicked": torch.ones(3)}, np.ones(3)):
        rows = collect([Batch(torch.zeros(3, 2), given)], single)
        assert rows.labels is not None
        assert {name: column.tolist() for name, column in rows.labels.items()} == {"score": [1] * 3}


def test_a_regression_label_is_any_number(single: Program) -> None:
    program = single.clone()
    program.signature = program.signature.with_task("score", kind=TaskKind.REGRESSION)
    rows = collect([Batch(torch.zeros(2, 2), torch.tensor([-3.0, 17.0]))], program)
    assert rows.labels is not None
    with pytest.raises(DataError, match="'score' is Inf"):
        collect([Batch(torch.zeros(1, 2), torch.tensor([math.inf]))], program)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Batch(inputs(4)), "labels 'click' is missing from some batches: 4 of 8 rows"),
        (Batch(inputs(4), labels(4)), "cohorts 'os' is missing from some batches: 4 of 8 rows"),
        (
            Batch(inputs(4), labels(4), cohorts={"os": np.zeros(4)}),
            "group is missing from some batches: 4 of 8 rows",
        ),
        (Batch(inputs(4), labels(4), np.zeros(3)), "group has 3 rows, the inputs have 4"),
        (
            Batch(inputs(4), labels(4), np.zeros(4), {"os": np.zeros(5)}),
            "cohort os has 5 rows, the inputs have 4",
        ),
    ],
)
def test_columns_must_cover_all_rows(program: Program, second: Batch, message: str) -> None:
    first = Batch(inputs(4), labels(4), np.zeros(4), {"os": np.zeros(4)})
    with pytest.raises(DataError, match=message):
        collect([first, second], program)


def test_no_rows(program: Program) -> None:
    for empty in ([], [inputs(0)]):
        with pytest.raises(DataError, match="data is empty: it has no rows"):
            collect(empty, program)


# --- splitting and making up ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [30, 1000, 30_000])
@pytest.mark.parametrize("apart", [False, True])
def test_the_three_sets_are_disjoint_and_in_order(count: int, apart: bool) -> None:
    rows = Rows({"x": torch.arange(count)}, group=np.arange(count))
    kept = Rows({"x": torch.arange(-5, 0)}) if apart else None
    parts = split(rows, kept)
    if apart:
        assert parts.calibration is kept
    sets = [parts.choice, parts.proof] if apart else [parts.calibration, parts.choice, parts.proof]
    assert all(len(part) > 0 for part in sets)
    assert torch.equal(torch.cat([part.features["x"] for part in sets]), rows.features["x"])
    assert len(parts.calibration) <= CALIBRATION_ROWS
    assert len(parts.proof) > len(parts.choice)


def test_too_few_rows_to_split() -> None:
    with pytest.raises(DataError, match="29 rows are too few to calibrate, choose and prove"):
        split(Rows({"x": torch.arange(29)}))


def feature(name: str, kind: str, dtype: str, shape: tuple[Any, ...], **more: Any) -> Feature:
    return Feature(name, FeatureKind(kind), dtype, ("batch", *shape), **more)


def test_rows_made_up_fit_the_signature() -> None:
    signature = Signature(
        (
            feature("dense", "dense", "float32", (3,)),
            feature("half", "dense", "float16", ()),
            feature("id", "id", "int64", (), cardinalities=(1,)),
            feature("ids", "id", "int32", (3,), cardinalities=(1, 2, 300)),
            feature("bags", "id list", "int64", (2, 5), cardinalities=(4, 1)),
            feature("last", "id", "int64", (5, 2), cardinalities=(4, 1), axis=2),
            feature("mask", "mask", "bool", (5,)),
            feature("count", "id", "int64", ()),
            feature("offsets", "offsets", "int64", ()),
        ),
        (),
    )
    rows = synthesize(signature, 500)
    assert rows.synthetic
    assert len(rows) == 500
    check_features(signature, rows.features)
    assert rows.features["ids"].amax(0).tolist() == [0, 1, rows.features["ids"][:, 2].max()]
    assert rows.features["ids"][:, 2].max() > 250
    assert rows.features["bags"].amax((0, 2)).tolist() == [3, 0]
    assert rows.features["last"].amax((0, 1)).tolist() == [3, 0]
    assert rows.features["mask"][:, 0].all()  # no list is empty
    assert not rows.features["mask"].all()
    assert rows.features["offsets"].tolist() == list(range(500))
    again = synthesize(signature, 500)
    assert all(torch.equal(v, again.features[n]) for n, v in rows.features.items())
    other = synthesize(signature, 500, seed=1)
    assert not torch.equal(other.features["dense"], rows.features["dense"])


# --- parquet --------------------------------------------------------------------------------------


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "rows.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


IDS = {"ids_0": [1, 2, 3], "ids_1": [4, 0, 1]}
LISTS = {"dense": [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]}


@pytest.mark.parametrize(
    "columns",
    [
        {**LISTS, **IDS},
        {"dense_0": [0.5, 2.0, 4.0], "dense_1": [1.0, 3.0, 5.0], "ids": [[1, 4], [2, 0], [3, 1]]},
    ],
)
def test_parquet_columns_and_lists(program: Program, tmp_path: Path, columns: Any) -> None:
    path = write(
        tmp_path, **columns, click=[0, 1, 1], sale=[0.0, 0.5, 1.0], u=[7, 7, 8], os=list("aab")
    )
    source = Parquet(path, labels=("click", "buy=sale"), group="u", cohorts=("os",))
    rows = collect(source.batches(program), program)
    assert rows.features["dense"].tolist() == LISTS["dense"]
    assert rows.features["ids"].tolist() == [[1, 4], [2, 0], [3, 1]]
    assert rows.labels is not None
    assert rows.cohorts is not None
    assert {name: column.tolist() for name, column in rows.labels.items()} == {
        "click": [0, 1, 1],
        "buy": [0.0, 0.5, 1.0],
    }
    assert rows.group is not None
    assert rows.group.tolist() == [7, 7, 8]
    assert rows.cohorts["os"].tolist() == ["a", "a", "b"]


def test_labels_named_like_the_tasks_are_found(program: Program, tmp_path: Path) -> None:
    path = write(tmp_path, **LISTS, **IDS, click=[0, 1, 1])
    rows = collect(Parquet(path).batches(program), program)
    assert rows.labels is not None
    assert list(rows.labels) == ["click"]


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({**IDS}, {}, "no column for feature 'dense': neither 'dense' .* nor dense_0, dense_1"),
        ({**LISTS, "ids_0": [1, 2, 3]}, {}, "no column for feature 'ids'"),
        ({**LISTS, **IDS}, {"labels": ("clicked",)}, r"has no column \['clicked'\]; it has \['den"),
        ({**LISTS, **IDS}, {"group": "user"}, r"has no column \['user'\]"),
        ({**LISTS, **IDS}, {"cohorts": ("os",)}, r"has no column \['os'\]"),
        ({"dense": [[1.0], [1.0, 2.0], [3.0, 4.0]], **IDS}, {}, "'dense' differ in length"),
        ({"dense": [[1.0]] * 3, **IDS}, {}, r"'dense' has shape \[3, 1\], expected \[batch, 2\]"),
        ({"dense": list("abc"), **IDS}, {}, "'dense' holds .*, expected float32"),
        ({**LISTS, "ids_0": [1, None, 2], "ids_1": [0, 0, 0]}, {}, "'ids' has empty values"),
        ({"dense_0": [1.0, None, 2.0], "dense_1": [0.0] * 3, **IDS}, {}, "'dense' has NaN.* row 1"),
    ],
)  # fmt: skip
def test_bad_parquet_is_told(
    program: Program, tmp_path: Path, columns: Any, asked: Any, message: str
) -> None:
    path = write(tmp_path, **columns)
    with pytest.raises(DataError, match=message):
        collect(Parquet(path, **asked).batches(program), program)


def test_no_parquet_file(program: Program, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.parquet is not a file"):
        list(Parquet(tmp_path / "gone.parquet").batches(program))
    (tmp_path / "text.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"text.parquet is no parquet file"):
        list(Parquet(tmp_path / "text.parquet").batches(program))


def test_values_of_one_column_may_be_plain_numbers(tmp_path: Path) -> None:
    program = capture(nn.Linear(1, 1).eval(), torch.zeros(3, 1))
    path = write(tmp_path, input=[1.0, 2.0])
    rows = collect(Parquet(path).batches(program), program)
    assert rows.features["input"].tolist() == [[1.0], [2.0]]


def test_signature_errors_are_data_errors() -> None:
    assert issubclass(SignatureError, DataError)
