"""Ids whose number differs from row to row: captured, built, cut into batches, judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rankc
import torch
from rankc.frontends.export import capture
from rankc.optimizer.data.delimiters import Delimits, ragged_of
from rankc.optimizer.data.ragged import find_ragged, join, take
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import SignatureError
from rankc.optimizer.ir import FeatureKind, Signature
from rankc.optimizer.quality.verdict import Status
from torch import Tensor, nn

LENGTHS = torch.tensor([2, 0, 3, 1, 4])
BOUNDS = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])
IDS = torch.arange(10) * 7 % 50
DENSE = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


class Bags(nn.Module):
    """Dense features beside one bag of ids."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(50, 8, **options)
        self.score = nn.Linear(12, 1)

    def forward(self, dense: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.score(torch.cat([self.bag(ids, offsets), dense], 1))  # type: ignore[no-any-return]


class Weighted(Bags):
    def forward(  # type: ignore[override]
        self, dense: Tensor, ids: Tensor, weights: Tensor, offsets: Tensor
    ) -> Tensor:
        pooled = self.bag(ids, offsets, per_sample_weights=weights)
        return self.score(torch.cat([pooled, dense], 1))  # type: ignore[no-any-return]


class Lengths(Bags):
    """Lengths instead of offsets, two lists of ids, in dicts as a loader gives them."""

    def forward(self, rows: dict[str, Tensor], lists: dict[str, dict[str, Tensor]]) -> Tensor:  # type: ignore[override]
        pooled = [
            self.bag(one["values"], one["lengths"].cumsum(0) - one["lengths"])
            for one in lists.values()
        ]
        return self.score(torch.cat([sum(pooled), rows["dense"]], 1))  # type: ignore[no-any-return]


def check_everywhere(model: nn.Module, inputs: tuple[Any, ...]) -> rankc.Artifact:
    """The program and the artifact score like the model: all rows, some rows, one, an empty one."""
    program = capture(model, inputs)
    artifact = rankc.optimize(model, target="cpu-fp32", inputs=inputs)
    ragged = ragged_of(program.signature)
    leaves = program.inputs.flatten(program.bind(inputs, {}))
    for rows in (slice(0, 5), slice(0, 1), slice(1, 2), slice(2, 5)):
        few = program.inputs.unflatten(take(leaves, ragged, rows))
        want = model(**few)
        assert torch.allclose(program(**few), want, atol=1e-6)
        assert torch.allclose(artifact(**few), want, atol=1e-6)
    return artifact


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
def test_bags_with_offsets(mode: str, last: bool) -> None:
    model = Bags(mode=mode, include_last_offset=last).eval()
    check_everywhere(model, (DENSE, IDS, BOUNDS if last else BOUNDS[:-1]))


def test_padding_ids_are_left_out() -> None:
    check_everywhere(Bags(mode="mean", padding_idx=0).eval(), (DENSE, IDS, BOUNDS[:-1]))


def test_ids_have_weights() -> None:
    weights = torch.rand(10, generator=torch.Generator().manual_seed(1))
    check_everywhere(Weighted(mode="sum").eval(), (DENSE, IDS, weights, BOUNDS[:-1]))


def test_lengths_in_dicts() -> None:
    others = torch.tensor([1, 1, 0, 2, 2])
    lists = {
        "clicks": {"values": IDS, "lengths": LENGTHS},
        "likes": {"values": IDS[:6], "lengths": others},
    }
    model = Lengths(mode="sum").eval()
    program = capture(model, ({"dense": DENSE}, lists))
    kinds = {f.name: (f.kind, f.delimiter) for f in program.signature}
    assert kinds["lists_clicks_values"] == (FeatureKind.JAGGED, "lists_clicks_lengths")
    assert kinds["lists_likes_lengths"] == (FeatureKind.LENGTHS, "")
    check_everywhere(model, ({"dense": DENSE}, lists))


def test_no_ids_at_all() -> None:
    model = Bags(mode="mean").eval()
    artifact = rankc.optimize(model, target="cpu-fp32", inputs=(DENSE, IDS, BOUNDS[:-1]))
    none = DENSE, IDS[:0], torch.zeros(5, dtype=torch.int64)
    assert torch.allclose(artifact(*none), model(*none), atol=1e-6)


def test_the_signature_says_what_delimits_what() -> None:
    signature = capture(Bags().eval(), (DENSE, IDS, BOUNDS[:-1])).signature
    ids, offsets = signature.feature("ids"), signature.feature("offsets")
    assert (ids.kind, ids.shape, ids.delimiter) == (
        FeatureKind.JAGGED,
        ("ids of offsets",),
        "offsets",
    )
    assert ids.cardinalities == (50,)
    assert (offsets.kind, offsets.shape) == (FeatureKind.OFFSETS, ("batch",))
    assert Signature.from_json(signature.to_json()) == signature
    made = synthesize(signature, 7)
    assert len(made) == 7
    assert len(made.features["ids"]) == 14


def test_rows_are_taken_and_joined() -> None:
    signature = capture(Bags(include_last_offset=True).eval(), (DENSE, IDS, BOUNDS)).signature
    ragged = ragged_of(signature)
    whole = {"dense": DENSE, "ids": IDS, "offsets": BOUNDS}
    parts = [take(whole, ragged, rows) for rows in (slice(0, 2), slice(2, 2), slice(2, 5))]
    again = join(parts, ragged)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    picked = take(whole, ragged, torch.tensor([4, 0, 4]))
    assert picked["offsets"].tolist() == [0, 4, 6, 10]
    assert picked["ids"].tolist() == [*IDS[6:], *IDS[:2], *IDS[6:]]


def test_optimized_on_data() -> None:
    """Batches of different numbers of ids, calibrated, chosen and proved on rows of their own."""
    torch.manual_seed(3)
    model = Bags(mode="mean").eval()
    batches = []
    for _ in range(6):
        lengths = torch.randint(0, 5, (200,))
        inputs = (
            torch.rand(200, 4),
            torch.randint(0, 50, (int(lengths.sum()),)),
            lengths.cumsum(0) - lengths,
        )
        labels = torch.bernoulli(torch.sigmoid(model(*inputs))[:, 0])
        batches.append(rankc.Batch(inputs, labels.detach()))
    budget = rankc.Budget(ne=0.05)
    # Whether tables are worth 4 bits is measured: here they aren't asked for.
    target = replace(rankc.Target.of("cpu-int8"), table_formats=("int8",))
    artifact = rankc.optimize(model, target=target, data=batches, budget=budget)
    assert artifact.verdict.status is Status.PASS
    inputs = batches[0].inputs
    scores = artifact(*(value.numpy() for value in inputs))
    assert np.allclose(scores, model(*inputs).detach().numpy(), atol=0.05)


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        (IDS, torch.tensor([0, 5, 3, 6, 7]), "isn't rising from 0: row 1 would begin at 5"),
        (IDS, torch.tensor([1, 2, 3, 6, 7]), "isn't rising from 0"),
        (IDS, BOUNDS[:4], "'offsets' has 4 rows, the others have 5"),
        (IDS + 50, BOUNDS[:-1], "ids beyond its table of 50 rows"),
    ],
)
def test_what_does_not_fit_is_told(ids: Tensor, offsets: Tensor, message: str) -> None:
    model = Bags().eval()
    inputs = (
        torch.rand(50, 4),
        IDS.repeat(10),
        (BOUNDS[:-1] + 10 * torch.arange(10)[:, None]).flatten(),
    )
    bad = rankc.Batch((DENSE, ids, offsets), torch.ones(5))
    good = rankc.Batch(inputs, torch.ones(50))
    with pytest.raises(SignatureError, match=message):
        rankc.optimize(model, target="cpu-fp32", data=[good, bad])


def test_sizes_that_nothing_delimits_are_told() -> None:
    with pytest.raises(SignatureError, match="need offsets or lengths"):
        capture(Bags().eval(), (DENSE, IDS, torch.tensor([3, 1, 0, 0, 0])))


@pytest.mark.parametrize(
    ("delimiter", "delimits"),
    [
        (BOUNDS, Delimits.BOUNDS),
        (LENGTHS, Delimits.LENGTHS),
        (BOUNDS[:-1], Delimits.STARTS),
    ],
)
def test_delimiters_are_found_by_their_values(delimiter: Tensor, delimits: Delimits) -> None:
    (found,) = find_ragged({"x": DENSE, "a": IDS, "b": delimiter})
    assert (found.delimiter, found.delimits, found.values) == ("b", delimits, ("a",))
    (alone,) = find_ragged({"a": IDS, "b": delimiter})
    assert alone == found


def test_the_names_say_what_is_jagged_where_every_row_has_one_id() -> None:
    """Sizes can't tell: ids, lengths and dense rows are all as many."""
    one = torch.ones(5, dtype=torch.int64)
    lists = {name: {"values": IDS[:5], "lengths": one} for name in ("clicks", "likes")}
    model = Lengths(mode="sum").eval()
    program = capture(model, ({"dense": DENSE}, lists))
    assert program.signature.feature("lists_clicks_values").kind is FeatureKind.JAGGED
    check_everywhere(
        model,
        (
            {"dense": DENSE},
            {
                "clicks": {"values": IDS, "lengths": LENGTHS},
                "likes": {"values": IDS[:6], "lengths": torch.tensor([1, 1, 0, 2, 2])},
            },
        ),
    )
    artifact = rankc.optimize(model, target="cpu-fp32", inputs=({"dense": DENSE}, lists))
    lists["clicks"] = {"values": IDS, "lengths": LENGTHS}
    want = model({"dense": DENSE}, lists)
    assert torch.allclose(artifact({"dense": DENSE}, lists), want, atol=1e-6)
