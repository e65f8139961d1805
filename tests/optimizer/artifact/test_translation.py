"""Planted wrong translations are found before an artifact is returned, without data."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import rankc
import torch
from rankc import backends
from rankc.optimizer.artifact.translation import Sample, check_program
from rankc.optimizer.backend import Backend, Built
from rankc.optimizer.compare.hostile import hostile
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.errors import DataError, TranslationError
from rankc.optimizer.ir import Program
from torch import Tensor, nn

Arrays = dict[str, np.ndarray]
Run = Callable[[Mapping[str, Any]], Arrays]
#: What is wrong: takes the right runner and a batch, and scores it.
Fault = Callable[[Run, Arrays], Arrays]

BOUNDARIES = (0.5, 1.0, 2.0, 5.0, 10.0)
IDS, WORDS, FILL = 30, 40, 0.25


class Ranker(nn.Module):
    """Hours of times, buckets of prices, a history's mean, missing values and hashed counts."""

    def __init__(self, epsilon: float = 1e-8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hours = nn.Embedding(24, 4)
        self.prices = nn.Embedding(len(BOUNDARIES) + 1, 4)
        self.words = nn.Embedding(WORDS, 4, padding_idx=0)
        self.items = nn.Embedding(IDS, 4)
        self.hashed = nn.Embedding(997, 4)
        self.top = nn.Linear(5 * 4 + 3, 1)
        self.register_buffer("boundaries", torch.tensor(BOUNDARIES))
        self.epsilon = epsilon

    def forward(
        self, time: Tensor, price: Tensor, words: Tensor, item: Tensor, x: Tensor, count: Tensor
    ) -> Tensor:
        held = (words != 0).float()
        pooled = (self.words(words) * held.unsqueeze(2)).sum(1)
        pooled = pooled / (held.sum(1, keepdim=True) + self.epsilon)
        found = [
            self.hours(time // 3600 % 24),
            self.prices(torch.bucketize(price, self.boundaries)),
            pooled,
            self.items(torch.where(item < 0, 0, item)),
            self.hashed(count * 2654435 % 997),
            torch.where(x.isnan(), FILL, x),
        ]
        return self.top(torch.cat(found, 1)).squeeze(1)


def example(rows: int = 8) -> tuple[Tensor, ...]:
    """Rows in which nothing is unusual."""
    torch.manual_seed(1)
    return (
        torch.randint(1_600_000_000, 1_700_000_000, (rows,)),
        torch.rand(rows) * 12,
        torch.randint(1, WORDS, (rows, 6)),
        torch.randint(0, IDS, (rows,)),
        torch.randn(rows, 3),
        torch.randint(0, 50, (rows,)),
    )


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """A feature is taken for another one."""
    return lambda run, rows: run({**rows, name: change(rows[name])})


def scored(wrong: Callable[[Arrays], np.ndarray], value: float) -> Fault:
    """The rows a condition holds for get something added to their score."""

    def fault(run: Run, rows: Arrays) -> Arrays:
        (score,) = run(rows).values()
        return {"score": np.where(wrong(rows), score + np.float32(value), score)}

    return fault


def last(rows: Arrays) -> np.ndarray:
    return np.arange(len(rows["time"])) == len(rows["time"]) - 1


def repeats(rows: Arrays) -> np.ndarray:
    """Rows like the row before them."""
    table = np.concatenate([rows[n].reshape(len(rows["time"]), -1) for n in ("time", "x")], 1)
    same = (table[1:] == table[:-1]).all(1)
    return np.concatenate([[False], same])


def wrapped(count: np.ndarray) -> np.ndarray:
    """What is left of it where the product doesn't fit into 32 bits."""
    product = count.astype(np.int32) * np.int32(2654435)
    overflows = np.abs(count.astype(np.float64) * 2654435) >= 2**31
    return np.where(overflows, product.astype(np.int64) % 97, count)


WITHOUT_EPSILON = Ranker(epsilon=0.0).eval()


def no_epsilon(run: Run, rows: Arrays) -> Arrays:
    tensors = [torch.from_numpy(value) for value in rows.values()]
    with torch.no_grad():
        return {"score": WITHOUT_EPSILON(*tensors).numpy()}


def raises_on_nothing(run: Run, rows: Arrays) -> Arrays:
    if (rows["words"] == 0).all(1).any():
        raise RuntimeError("a mean of nothing")
    return run(rows)


def larger(rows: Arrays) -> np.ndarray:
    return np.arange(len(rows["time"])) >= 400


FAULTS: dict[str, Fault] = {
    "off by one at a bucket's boundary": changed(
        "price", lambda p: np.where(np.isin(p, BOUNDARIES), p + np.float32(1e-3), p)
    ),
    "NaN where the price is 0": scored(lambda rows: rows["price"] == 0, float("nan")),
    "integers through float32": changed(
        "time", lambda t: t.astype(np.float32).astype(np.float64).astype(np.int64)
    ),
    "an hour late at a full hour": changed("time", lambda t: np.where(t % 3600 == 0, t - 1, t)),
    "division rounds to zero, not down": changed("time", lambda t: np.where(t < 0, t + 3599, t)),
    "wrong at batch 1": scored(lambda rows: np.array(len(rows["time"]) == 1), 1e-3),
    "wrong in batches of 3": scored(lambda rows: np.array(len(rows["time"]) == 3), 1e-3),
    "wrong from 400 rows on": scored(larger, 1e-3),
    "wrong where a row repeats": scored(repeats, 1e-3),
    "wrong for an empty history": scored(lambda rows: (rows["words"] == 0).all(1), 1e-3),
    "raises for an empty history": raises_on_nothing,
    "the epsilon is dropped": no_epsilon,
    "negative ids count from the end": changed("item", lambda i: np.where(i < 0, IDS + i, i)),
    "an integer product overflows": changed("count", wrapped),
    "wrong where all values are equal": scored(
        lambda rows: rows["x"][:, 0] == rows["x"][:, 1], 1e-3
    ),
    "wrong in the last row": scored(last, 1e-3),
    "a missing value becomes 0": changed("x", np.nan_to_num),
    "large values saturate": changed("x", lambda x: np.clip(x, -1e5, 1e5)),
    "the last id of a table is another": changed(
        "item", lambda i: np.where(i == IDS - 1, IDS - 2, i)
    ),
    "short histories are taken for full ones": changed(
        "words", lambda w: np.where((w == 0) & (w != 0).any(1, keepdims=True), 1, w)
    ),
}


class Planted(Backend):
    """Runs programs in PyTorch, wrong in one way."""

    name: ClassVar[str] = "planted"
    fault: ClassVar[Fault | None] = None
    programs: ClassVar[dict[str, Program]] = {}

    def supports(self, node: Any, target: Any) -> str | None:
        return None

    def build(self, program: Program, target: Any, folder: Path, metadata: Any) -> Built:
        self.programs[str(folder)] = program.clone()
        (folder / "model.txt").write_text("in memory")
        return Built(("model.txt",), {})

    def open(self, folder: Path, threads: int | None = None) -> Run:
        program, fault = self.programs[str(folder)], type(self).fault

        def run(features: Mapping[str, Any]) -> Arrays:
            given = {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in features.items()}
            return {n: v.numpy() for n, v in program.run(given).items()}

        return run if fault is None else lambda features: fault(run, dict(features))


class Right(Planted):
    """Runs programs in PyTorch as they are."""

    name: ClassVar[str] = "right"
    fault: ClassVar[Fault | None] = None


TARGET = replace(rankc.Target.of("cpu-fp32"), backends=("planted",))


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("rankc.backends.planted")
    module.Planted, module.Right = Planted, Right  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(backends.BACKENDS, "planted", "planted:Planted")
    monkeypatch.setitem(backends.BACKENDS, "right", "planted:Right")
    monkeypatch.setattr(Planted, "fault", None)


@pytest.fixture(scope="module")
def ranker() -> Program:
    return rankc.capture(Ranker(), example())


def test_what_is_right_is_returned(ranker: Program) -> None:
    artifact = rankc.optimize(ranker, TARGET, inputs=example(), pipeline="canonicalize")
    assert "hostile rows" in str(artifact.report)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(
    name: str, ranker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planted, "fault", staticmethod(FAULTS[name]))
    with pytest.raises(TranslationError, match="otherwise than the model") as found:
        rankc.optimize(ranker, TARGET, inputs=example(), pipeline="canonicalize")
    assert found.value.row


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_without_an_example(
    name: str, ranker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planted, "fault", staticmethod(FAULTS[name]))
    with pytest.raises(TranslationError, match="otherwise than the model"):
        rankc.optimize(ranker, TARGET, pipeline="canonicalize")


def plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    monkeypatch.setattr(Planted, "fault", staticmethod(fault))


FREE = scored(lambda rows: rows["price"] == 0, 1e-3)


def test_rows_that_never_come_are_kept_out_by_bounds(
    ranker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, FREE)
    with pytest.raises(TranslationError, match=r"hostile row \d+ .*price: all -?0") as found:
        rankc.optimize(ranker, TARGET, inputs=example(), pipeline="canonicalize")
    assert "bounds=(least, most)" in str(found.value)
    bounded = ranker.signature.with_feature("price", bounds=(0.01, 12.0))
    artifact = rankc.optimize(
        ranker, TARGET, inputs=example(), signature=bounded, pipeline="canonicalize"
    )
    with pytest.raises(DataError, match=r"outside of 0\.01 to 12"):
        artifact(*example()[:1], torch.zeros(8), *example()[2:])


def test_the_next_backend_is_tried_and_the_report_says_why(
    ranker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, FREE)
    both = replace(TARGET, backends=("planted", "right"))
    artifact = rankc.optimize(ranker, both, inputs=example(), pipeline="canonicalize")
    assert artifact.manifest.backend == "right"
    assert "planted at batch" in " ".join(artifact.report.notes)


def test_what_the_model_cannot_score_is_left_out_and_told(ranker: Program) -> None:
    artifact = rankc.optimize(ranker, TARGET, inputs=example(), pipeline="canonicalize")
    (told,) = [note for note in artifact.report.notes if "hostile rows" in note]
    assert "words -1, missing, in one place: IndexError: index out of range" in told


def labelled(rows: int) -> list[rankc.Batch]:
    labels = (torch.rand(rows, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    return [rankc.Batch(example(rows), labels)]


def test_with_data_rows_that_prove_are_compared_as_well(
    ranker: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that only rows which prove hold: no row made from the graph has it."""
    data = labelled(2000)
    data[0].inputs[5][1500:1700] = 77_077
    plant(monkeypatch, scored(lambda rows: rows["count"] == 77_077, float("nan")))
    with pytest.raises(TranslationError, match=r"planted scores row 1\d\d\d otherwise") as found:
        rankc.optimize(ranker, TARGET, data=data, pipeline="canonicalize")
    assert "is nan, and" in str(found.value)
    plant(monkeypatch, FREE)
    with pytest.raises(TranslationError, match="hostile row"):
        rankc.optimize(ranker, TARGET, data=labelled(200), pipeline="canonicalize")


def test_a_row_of_the_data_that_the_model_cannot_score_is_named(ranker: Program) -> None:
    data = labelled(200)
    data[0].inputs[3][123] = IDS
    with pytest.raises(DataError, match=r"row 123: .*beyond a table of 30 rows"):
        rankc.optimize(ranker, TARGET, data=data, pipeline="canonicalize")


class LastOfList(nn.Module):
    """The last value of a list of given length: NaN, or an error, where there is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 4)
        self.top = nn.Linear(4, 1)

    def forward(self, words: Tensor, length: Tensor) -> Tensor:
        held = torch.arange(6).unsqueeze(0) < length.unsqueeze(1)
        pooled = (self.table(words) * held.unsqueeze(2)).sum(1)
        return self.top(pooled / length.unsqueeze(1)).squeeze(1)


class OneMore(rankc.Pass):
    """Adds 1 to the last bias, and says it doesn't."""

    name: ClassVar[str] = "one-more"
    exactness: ClassVar[rankc.Exactness] = rankc.Exactness.ROUNDING

    def run(self, program: Program, ctx: Any) -> None:
        rw = ctx.rewriter(program)
        if rw.site("top.bias"):
            rw.set_value("top.bias", program.tensor("top.bias") + 1)


@pytest.mark.parametrize("given", [True, False])
def test_a_wrong_pass_is_undone_where_made_up_lengths_would_score_nan(given: bool) -> None:
    rows = (torch.randint(0, 50, (8, 6)), torch.randint(1, 7, (8,)))
    program = rankc.capture(LastOfList(), rows)
    steps = rankc.Pipeline((*rankc.Pipeline.parse("canonicalize").passes, OneMore()))
    artifact = rankc.optimize(program, TARGET, inputs=rows if given else None, pipeline=steps)
    (record,) = [r for r in artifact.report.records if r.spec == "one-more"]
    assert record.outcome.value == "rolled back"
    with torch.no_grad():
        assert torch.allclose(artifact(*rows), LastOfList()(*rows), atol=1e-6)


class Remote(nn.Module):
    """Scores no number that anybody would make up."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.sqrt(x - 1000)).squeeze(1)


def test_a_model_without_a_finite_score_asks_for_rows() -> None:
    with pytest.raises(DataError, match=r"none of 256 made-up rows .*Give inputs="):
        rankc.optimize(rankc.capture(Remote(), 2e3 * torch.ones(4, 3)), TARGET)
    rankc.optimize(Remote(), TARGET, inputs=2e3 * torch.ones(4, 3), pipeline="canonicalize")


class Plain(nn.Module):
    """One linear."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(x).squeeze(1)


def test_an_example_that_is_nan_is_named() -> None:
    bad = torch.full((4, 3), float("nan"))
    with pytest.raises(DataError, match="NaN"):
        rankc.optimize(Plain(), TARGET, inputs=bad, pipeline="canonicalize")


class Spoiled(nn.Module):
    """Missing values spoil the score; ``change`` is what is made of it."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top = nn.Linear(3, 1)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.top(x).squeeze(1))


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        (lambda s: s, True),
        (lambda s: s + 0.01, True),  # as a lower format moves scores
        (torch.nan_to_num, False),
        (lambda s: s.clamp(-1e6, 1e6), False),
        (lambda s: torch.where(s.isinf(), -s, s), False),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_lower_formats_may_not_hide_what_is_no_number(
    change: Callable[[Tensor], Tensor], fine: bool, value: float
) -> None:
    rows = torch.randn(20, 3)
    rows[7, 1] = value
    captured, other = (rankc.capture(Spoiled(f), rows[:5]) for f in (lambda s: s, change))
    sample = Sample(Rows({"x": rows}), tuple(f"row {i}" for i in range(20)), 20)
    hides = not torch.equal(other(rows)[7].isnan(), captured(rows)[7].isnan())
    hides |= bool(captured(rows)[7].isinf()) and not torch.equal(other(rows)[7], captured(rows)[7])
    assert hides <= (not fine)
    if not hides:
        check_program(captured, other, sample, lossy=True)
        return
    with pytest.raises(TranslationError, match=r"scores row 7 otherwise .*(nan|inf) is right"):
        check_program(captured, other, sample, lossy=True)


class Columns(nn.Module):
    """Many ids whose tables end early, so that most of what is tried of them is beyond."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(3, 2) for _ in range(count))

    def forward(self, *ids: Tensor) -> Tensor:
        rows = [table(column // 2 * 2) for table, column in zip(self.tables, ids, strict=True)]
        return torch.stack(rows).sum((0, 2))


def test_hostile_rows_are_left_where_most_single_values_are_refused() -> None:
    """Finding out which are took all the runs, and nothing was compared at the edges."""
    columns = tuple(torch.randint(0, 3, (8,)) for _ in range(40))
    program = rankc.capture(Columns(40).eval(), columns)
    base = Rows(dict(zip(program.signature.names, columns, strict=True)))
    assert len(hostile(program, base).rows) > 80
