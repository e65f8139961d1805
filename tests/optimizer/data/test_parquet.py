"""Parquet files whose columns hold a list of ids per row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
import rankc
import torch
from pyarrow import parquet
from rankc.frontends.export import capture
from rankc.optimizer.data.parquet import Parquet
from rankc.optimizer.data.rows import collect
from rankc.optimizer.errors import DataError
from torch import Tensor, nn

CLICKS = [[1, 2, 3], [], [4], None, [5, 6]]
WEIGHTS = [[0.5, 1.0, 2.0], [], [1.0], None, [0.25, 4.0]]
AGE = [[0.1], [0.2], [0.3], [0.4], [0.5]]


class Bagged(nn.Module):
    """Clicked items with weights, by where each row begins, beside a dense column."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(10, 4, mode="sum")
        self.score = nn.Linear(5, 1)

    def forward(self, age: Tensor, clicks: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        pooled = self.bag(clicks, starts, per_sample_weights=weights)
        return self.score(torch.cat([pooled, age], 1)).squeeze(1)  # type: ignore[no-any-return]


class Pairs(Bagged):
    """The same as dicts of values and lengths."""

    def forward(self, age: Tensor, clicks: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        lengths = clicks["lengths"]
        starts = lengths.cumsum(0) - lengths
        return super().forward(age, clicks["values"], starts, clicks["weights"])


EXAMPLE = (
    torch.tensor(AGE),
    torch.tensor([1, 2, 3, 4, 5, 6]),
    torch.tensor([0, 3, 3, 4, 4]),
    torch.tensor([0.5, 1.0, 2.0, 1.0, 0.25, 4.0]),
)


def write(folder: Path, **columns: Any) -> Parquet:
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return Parquet(path)


def test_one_column_of_lists_per_feature(tmp_path: Path) -> None:
    data = write(tmp_path, age=AGE, clicks=CLICKS, weights=WEIGHTS, score=[0, 1, 0, 1, 1])
    model = Bagged().eval()
    program = capture(model, EXAMPLE)
    rows = collect(data.batches(program), program)
    assert [rows.features[name].tolist() for name in ("clicks", "starts")] == [
        EXAMPLE[1].tolist(),
        EXAMPLE[2].tolist(),
    ]
    assert rows.labels is not None
    assert len(rows) == 5
    (scores,) = program.run(rows.features).values()
    assert torch.allclose(scores, model(*EXAMPLE), rtol=0.0, atol=1e-6)


def test_columns_are_called_like_the_values_or_the_feature(tmp_path: Path) -> None:
    lengths = torch.tensor([3, 0, 1, 0, 2])
    pair = {"values": EXAMPLE[1], "lengths": lengths, "weights": EXAMPLE[3]}
    model = Pairs().eval()
    program = capture(model, (EXAMPLE[0], pair))
    for name in ("clicks", "clicks_values"):
        data = write(tmp_path, age=AGE, clicks_weights=WEIGHTS, **{name: CLICKS})
        rows = collect(data.batches(program), program)
        assert rows.features["clicks_lengths"].tolist() == lengths.tolist()
        (scores,) = program.run(rows.features).values()
        assert torch.allclose(scores, model(EXAMPLE[0], pair), rtol=0.0, atol=1e-6)


def test_a_model_is_optimized_on_lists(tmp_path: Path) -> None:
    copies = 40
    labels = [float(row % 2) for row in range(5 * copies)]
    data = write(
        tmp_path,
        age=AGE * copies,
        clicks=CLICKS * copies,
        weights=WEIGHTS * copies,
        score=labels,
    )
    artifact = rankc.optimize(
        Bagged().eval(), "cpu-fp32", inputs=EXAMPLE, data=data, budget=rankc.Budget(ne=0.5)
    )
    assert artifact.verdict.rows > 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "has no column for feature 'clicks': a list per row, in a column called 'clicks'"),
        ({"clicks": [1, 2, 3, 4, 5]}, "holds int64, expected a list of ids per row"),
        ({"clicks": [["a"]] * 5}, "holds lists of string, expected int64. Encode them as numbers"),
        ({"clicks": [[0.5]] * 5}, "holds lists of double, expected int64. Convert them first"),
        ({"clicks": [[1, None]] * 5}, "has empty values within its lists. Leave them out, or fill"),
        ({"clicks": [[1]] * 5}, "'clicks' and 'weights' belong together .* 1 and 3 in row 0"),
        ({"clicks": [[1, 2, 99], [], [4], None, [5, 6]]}, "beyond its table of 10 rows"),
    ],
)
def test_columns_that_are_no_lists_of_ids(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    data = write(tmp_path, age=AGE, weights=WEIGHTS, **columns)
    program = capture(Bagged().eval(), EXAMPLE)
    with pytest.raises((DataError, rankc.optimizer.errors.SignatureError), match=message):
        collect(data.batches(program), program)
