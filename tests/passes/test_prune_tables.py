"""prune-tables: rows that nobody looks up become one, and the data say which."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import rankc
import torch
from rankc.optimizer.data.rows import Rows, collect
from rankc.optimizer.errors import PruneError
from rankc.optimizer.ir import Program
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.registry import backend
from rankc.optimizer.report.records import Outcome
from support import (
    BIT_EQUAL,
    Ran,
    assert_same_graph,
    capture_small,
    operators,
    permissive_judge,
    run_passes,
)
from torch import Tensor, nn

ROWS, SEEN, WIDTH = 400, 100, 16
IDS = torch.arange(8)


class Table(nn.Module):
    """One table, of whose rows traffic reads the first quarter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table, self.last = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, 1)
        self.table.weight.data = torch.randn(ROWS, WIDTH, generator=generator)
        self.last.weight.data = torch.randn(1, WIDTH, generator=generator)
        self.last.bias.data.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.table(ids)).squeeze(1)


class Smaller(nn.Module):
    """The same with the rows that are read, one for the rest, and where each row went."""

    def __init__(self, whole: Table) -> None:
        super().__init__()
        rows = whole.table.weight.data
        shared = rows[SEEN:].double().mean(0, keepdim=True).float()
        self.table, self.last = nn.Embedding(SEEN + 1, WIDTH), whole.last
        self.table.weight.data = torch.cat([rows[:SEEN], shared])
        places = torch.arange(ROWS, dtype=torch.int32).clamp_max(SEEN)
        self.register_buffer("places", places)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.table(self.places[ids].to(torch.int64))).squeeze(1)


class Tied(Table):
    """Its table is multiplied by too."""

    def forward(self, ids: Tensor) -> Tensor:
        return (self.table(ids) @ self.table.weight.T).sum(1) + super().forward(ids)


def traffic(program: Program, top: int, count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(count, generator=generator) ** 4 * top).long()  # few rows, most lookups
    ids[: min(top, count)] = torch.arange(top)[:count]  # each at least once
    return collect([rankc.Batch((ids,))], program)


def pruned(module: nn.Module, top: int = SEEN, spec: str = "prune-tables", ne: float = 1e-6) -> Ran:
    program = capture_small(module, IDS)
    budget = rankc.Budget(ne=ne, max_rms_shift=None)
    return run_passes(
        program,
        f"canonicalize,{spec}",
        judge=Judge.of(program, traffic(program, top, 4000, seed=1), budget),
        calibration=[dict(traffic(program, top, 1000, seed=2).features)],
        rows={"ids": torch.arange(min(top, 64))},
    )


@functools.cache
def ran() -> Ran:
    return pruned(Table())


def test_before_and_expected() -> None:
    assert ran().outcomes[1] is Outcome.CHANGED
    assert_same_graph(ran().program, Smaller(Table()), (IDS,), tolerance=BIT_EQUAL)


def test_rows_that_were_looked_up_score_as_before() -> None:
    program = capture_small(Table(), IDS)
    ids = {"ids": torch.arange(SEEN)}
    assert torch.equal(program.run(ids)["score"], ran().program.run(ids)["score"])


def test_the_decision_is_told_by_table() -> None:
    (site,) = ran().report.sites
    assert (site.site, site.kind, site.shape) == ("table", "rows", (ROWS, SEEN + 1))
    never = site.candidates[0]
    assert (never["at most"], never["rows"], never["lookups"]) == (0, ROWS - SEEN, 0.0)
    assert never["bytes"] == (SEEN + 1) * WIDTH * 4 + ROWS * 4
    assert never["damage"] == {"score": 0.0}


def test_rows_hardly_looked_up_go_where_the_budget_allows() -> None:
    seldom = pruned(Table(), top=350, ne=0.5)
    (site,) = seldom.report.sites
    assert site.shape[1] < 350  # as many as were looked up at all
    strict = pruned(Table(), top=350, ne=1e-6)
    assert [site.chosen for site in strict.report.sites] == ["all rows"]


@pytest.mark.parametrize("name", ["onnxruntime", "eager"])
def test_backends_take_it(name: str, tmp_path: Path) -> None:
    serving = backend(name)
    target = rankc.Target.of("cpu-fp32")
    serving.build(ran().program, target, tmp_path, {})
    ids = torch.arange(0, ROWS, 7)
    scores = serving.open(tmp_path, 1)({"ids": ids.numpy()})["score"]
    torch.testing.assert_close(
        torch.from_numpy(scores), ran().program.run({"ids": ids})["score"], rtol=0.0, atol=1e-5
    )


def test_a_table_whose_rows_are_all_read_is_a_miss() -> None:
    whole = pruned(Table(), top=ROWS, spec="prune-tables{least=0.95}")
    assert whole.missed("prune-tables") == [
        "nearly all of its rows are looked up, or they are short"
    ]
    assert "index" not in operators(whole.program)


def test_a_table_that_is_read_in_another_way_is_a_miss() -> None:
    tied = pruned(Tied())
    assert tied.missed("prune-tables") == [
        "table.weight is read in another way than by lookups too"
    ]


def test_without_data_it_is_skipped() -> None:
    program = capture_small(Table(), IDS)
    given = run_passes(program, "canonicalize,prune-tables", judge=permissive_judge(program))
    assert given.missed("prune-tables") == ["there is no data to count lookups in"]


def test_a_share_that_is_none() -> None:
    with pytest.raises(PruneError, match="share and least are shares, found 2"):
        pruned(Table(), spec="prune-tables{share=2.0}")
