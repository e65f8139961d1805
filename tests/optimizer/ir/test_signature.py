"""The contract, and reading it off small models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.data.checks import check_features
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import SignatureError
from rankc.optimizer.ir import Feature, FeatureKind, Score, Side, Signature, Task, TaskKind
from rankc.optimizer.ir.program import with_defaults
from torch import Tensor, nn

SIGNATURE = Signature(
    (
        Feature("dense", FeatureKind.DENSE, "float32", ("batch", 4)),
        Feature(
            "ids", FeatureKind.ID, "int64", ("batch", 2), Side.ITEM, ("a", "b"), (3, 9), axis=1
        ),
    ),
    (Task("click", "out", 0), Task("buy", "out", 1, TaskKind.REGRESSION, Score.VALUE, True)),
    ("out",),
)


def test_json_round_trip() -> None:
    assert Signature.from_json(json.loads(json.dumps(SIGNATURE.to_json()))) == SIGNATURE


def test_defaults_and_bounds() -> None:
    feature = Feature(
        "window", FeatureKind.DENSE, "float32", ("batch",), default=7.0, bounds=(1.0, 28.0)
    )
    signature = Signature((*SIGNATURE.features, feature), SIGNATURE.tasks, SIGNATURE.outputs)
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature
    assert signature.optional == ("window",)
    rows = synthesize(signature, 200).features
    assert 1.0 <= float(rows["window"].min()) <= float(rows["window"].max()) <= 28.0
    given = {name: value for name, value in rows.items() if name != "window"}
    assert with_defaults(signature, given)["window"].tolist() == [7.0] * 200
    rows["window"][3] = 0.5
    with pytest.raises(SignatureError, match=r"'window' is 0\.5 in row 3, outside of 1 to 28"):
        check_features(signature, rows)


def test_defaults_are_a_row_each_where_another_feature_has_more_values_than_rows() -> None:
    window = Feature("window", FeatureKind.DENSE, "float32", ("batch",), default=7.0)
    values = Feature("values", FeatureKind.ID_LIST, "int64", ("values",), delimiter="lengths")
    lengths = Feature("lengths", FeatureKind.DENSE, "int64", ("batch",))
    signature = Signature((values, lengths, window), (), ())
    given = {"values": torch.zeros(9, dtype=torch.int64), "lengths": torch.tensor([4, 5])}
    assert with_defaults(signature, given)["window"].tolist() == [7.0, 7.0]


def test_looking_up_and_changing() -> None:
    assert SIGNATURE.names == ("dense", "ids")
    assert [task.name for task in SIGNATURE.served] == ["click"]
    assert SIGNATURE.feature("ids").is_integer
    assert SIGNATURE.feature("ids").describe() == "ids: id int64 [batch, 2]"
    changed = SIGNATURE.with_feature("dense", side=Side.USER).with_task("buy", auxiliary=False)
    assert changed.feature("dense").side is Side.USER
    assert changed.feature("ids") == SIGNATURE.feature("ids")
    assert [task.name for task in changed.served] == ["click", "buy"]
    assert SIGNATURE.feature("dense").side is Side.UNKNOWN


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.feature("x"), r"no feature is called 'x'; there are \['dense', 'ids'\]"),
        (lambda s: s.with_feature("x", side=Side.USER), "no feature is called 'x'"),
        (lambda s: s.with_task("x", auxiliary=True), r"no task is called 'x'.*\['click', 'buy'\]"),
    ],
)
def test_unknown_names_are_told(ask: Callable[[Signature], object], message: str) -> None:
    with pytest.raises(KeyError, match=message):
        ask(SIGNATURE)


class Ids(nn.Module):
    """Two tables, read in a way the test gives."""

    def __init__(self, read: Callable[[Ids, Tensor], Tensor], rows: tuple[int, int]) -> None:
        super().__init__()
        self.a, self.b = (nn.Embedding(count, 3) for count in rows)
        self.read = read

    def each(self, columns: Sequence[Tensor]) -> Tensor:
        return self.a(columns[0]) + self.b(columns[1])

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self, ids).flatten(1).sum(1)


PAIR = torch.tensor([[0, 1], [2, 0], [1, 2]])
CUBE = torch.zeros(3, 2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("read", "ids", "rows", "kind", "cardinalities", "axis"),
    [
        (lambda m, i: m.a(i[:, 0]) + m.b(i[:, 1]), PAIR, (30, 9), "id", (30, 9), 1),
        (lambda m, i: m.a(i[:, -2]) + m.b(i[:, -1]), PAIR, (30, 9), "id", (30, 9), 1),
        (lambda m, i: m.a(i[:, 0]) + m.b(i[:, 0]) + i[:, 1:], PAIR, (30, 9), "id", (9, 0), 1),
        (lambda m, i: m.a(i + torch.tensor([0, 20])), PAIR, (30, 9), "id", (20, 10), 1),
        (lambda m, i: m.a((i + i.new_tensor([20, 0]))[:, 0]), PAIR, (30, 9), "id", (10, 0), 1),
        (lambda m, i: m.a(i * 4 + 3), PAIR, (31, 9), "sequence", (7,), 1),
        (lambda m, i: m.a(i % 30) + m.b(i[:, 1:]), PAIR, (30, 9), "id", (0, 9), 1),
        (lambda m, i: m.a(i[:, :1]) + m.b(i[:, 1:]), PAIR, (30, 9), "id", (30, 9), 1),
        (lambda m, i: m.a(i[:, 1:][:, 0]) + m.b(i[:, 0]), PAIR, (30, 9), "id", (9, 30), 1),
        (lambda m, i: m.each(i.unbind(1)), PAIR, (30, 9), "id", (30, 9), 1),
        (lambda m, i: m.each(i.split(1, 1)), PAIR, (30, 9), "id", (30, 9), 1),
        (lambda m, i: m.a(i) + m.b(i), PAIR, (30, 9), "id", (9,), 1),
        (lambda m, i: m.a(i), PAIR, (30, 9), "sequence", (30,), 1),
        (lambda m, i: m.a(i).sum(1), PAIR, (30, 9), "id list", (30,), 1),
        (lambda m, i: m.a(i).mean(1) + m.b(i[:, 1]), PAIR, (30, 9), "id list", (30, 9), 1),
        (lambda m, i: m.a(i.t()[0]) + m.b(i.t()[1]), PAIR, (30, 9), "id", (), 1),
        (lambda m, i: m.a(i.t()[0]) + m.b(i.t()[1]), PAIR, (9, 9), "id", (9,), 1),
        (lambda m, i: m.each([i[:, 0], i[:, 1]]).sum(1), CUBE, (30, 9), "id", (30, 9), 1),
        (
            lambda m, i: sum((m.a, m.b, m.b, m.b, m.a)[c](i[:, :, c]) for c in range(5)),
            CUBE, (30, 9), "id", (30, 9, 9, 9, 30), 2,
        ),
    ],
)  # fmt: skip
def test_ids_and_their_limits(
    read: Callable[[Ids, Tensor], Tensor],
    ids: Tensor,
    rows: tuple[int, int],
    kind: str,
    cardinalities: tuple[int, ...],
    axis: int,
) -> None:
    program = capture(Ids(read, rows).eval(), ids)
    (feature,) = program.signature
    assert (feature.kind, feature.cardinalities, feature.axis) == (kind, cardinalities, axis)
    assert set(feature.tables) <= {"a.weight", "b.weight"}
    made = synthesize(program.signature, 200).features
    check_features(program.signature, made)
    program.run(made)
    if len(cardinalities) > 1:
        for column, limit in enumerate(cardinalities):
            if limit == 0:
                continue
            value = made["ids"].clone()
            value.select(axis, column)[5] = limit
            message = rf"column {column} has ids beyond its table of {limit} rows in 1 rows.*row 5"
            with pytest.raises(SignatureError, match=message):
                check_features(program.signature, {"ids": value})


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, dense: Tensor, mask: Tensor, unused: Tensor, count: Tensor) -> list[Tensor]:
        hidden = torch.where(mask, dense, -dense)
        heads = self.head(hidden)
        return [
            heads,
            heads[:, :1].sigmoid(),
            (heads[:, 0] + count).sigmoid() * heads[:, 1].sigmoid(),
        ]


def test_other_kinds_and_tasks() -> None:
    rows = 4
    example = (
        torch.randn(rows, 4),
        torch.ones(rows, 4, dtype=torch.bool),
        torch.randn(rows, 2),
        torch.ones(rows, dtype=torch.int64),
    )
    signature = capture(Mixed().eval(), example).signature
    kinds = [(f.name, f.kind.value, f.dtype, f.shape) for f in signature]
    assert kinds == [
        ("dense", "dense", "float32", ("batch", 4)),
        ("mask", "mask", "bool", ("batch", 4)),
        ("unused", "unused", "float32", ("batch", 2)),
        ("count", "id", "int64", ("batch",)),
    ]
    assert signature.optional == signature.unused == ("unused",)
    assert [(t.name, t.output, t.column, t.score.value) for t in signature.tasks] == [
        ("score_0_0", "score_0", 0, "logit"),
        ("score_0_1", "score_0", 1, "logit"),
        ("score_0_2", "score_0", 2, "logit"),
        ("score_1", "score_1", None, "probability"),
        ("score_2", "score_2", None, "probability"),
    ]
