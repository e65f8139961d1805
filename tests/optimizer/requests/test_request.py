"""What a request shares: named, checked on rows, and taken once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rankc import Request, Side, Signature
from rankc.optimizer.amendments import with_requests
from rankc.optimizer.data.rows import Rows
from rankc.optimizer.errors import DataError, SignatureError
from rankc.optimizer.ir import Program
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.requests.entry import Entry, one_user, without_copies
from rankc.optimizer.requests.request import as_flat, as_request, check_shared, replicated
from support import canonical, made_up, run_passes
from torch import Tensor, nn

ROUNDING = 1e-6


class Pairs(nn.Module):
    """A user's and an item's linear, and a top over both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item, self.top = nn.Linear(24, 16), nn.Linear(4, 8), nn.Linear(24, 1)

    def forward(self, user_dense: Tensor, item_dense: Tensor) -> Tensor:
        user = torch.relu(self.user(user_dense))
        item = torch.relu(self.item(item_dense))
        return self.top(torch.cat([user, item], dim=1)).squeeze(1)


@pytest.fixture(scope="module")
def program() -> Program:
    return canonical(Pairs(), torch.randn(3, 24), torch.randn(3, 4))


def known(program: Program) -> Signature:
    return program.signature.with_feature("user_dense", side=Side.USER)


def test_the_users_features_are_shared_when_none_are_named(program: Program) -> None:
    assert Request().features(known(program)) == ("user_dense",)


def test_a_dotted_name_is_a_feature_of_a_nested_input(program: Program) -> None:
    assert Request(["user.dense"]).features(program.signature) == ("user_dense",)


def test_an_unknown_name_is_told_with_the_nearest(program: Program) -> None:
    with pytest.raises(SignatureError, match=r"'user_dens'.*Did you mean 'user_dense'"):
        Request(["user_dens"]).features(program.signature)


def test_sharing_nothing_or_everything_is_refused(program: Program) -> None:
    with pytest.raises(SignatureError, match="shares nothing"):
        Request([]).features(program.signature)
    with pytest.raises(SignatureError, match="all features are shared"):
        Request(["user_dense", "item_dense"]).features(program.signature)
    unknown = program.signature.with_feature("user_dense", side=Side.UNKNOWN)
    with pytest.raises(SignatureError, match="say which are"):
        Request().features(unknown)
    with pytest.raises(SignatureError, match="a list of names"):
        Request("user_dense")


def test_a_feature_without_a_row_per_candidate_is_not_shared(program: Program) -> None:
    odd = program.signature.with_feature("user_dense", shape=(24,))
    with pytest.raises(SignatureError, match="no row per candidate to begin with"):
        Request(["user_dense"]).features(odd)
    odd = program.signature.with_feature("item_dense", shape=(4,))
    with pytest.raises(SignatureError, match="number of candidates"):
        Request(["user_dense"]).features(odd)


def test_ids_of_uneven_lengths_are_not_shared(program: Program) -> None:
    odd = program.signature.with_feature("user_dense", delimiter="item_dense")
    with pytest.raises(SignatureError, match="different numbers of ids"):
        Request(["user_dense"]).features(odd)


def test_a_request_program_scores_requests_and_flat_rows(program: Program) -> None:
    made = as_request(program, ("user_dense",))
    assert made.signature.feature("user_dense").shape == (1, 24)
    rows = made_up(program, 7, seed=0)
    assert torch.equal(made.run(rows)["score"], program.run(rows)["score"])
    once = one_user(rows, ("user_dense",))
    alike = replicated(once, ("user_dense",), 7)
    assert torch.equal(made.run(once)["score"], program.run(alike)["score"])


def test_as_flat_takes_rows_of_many_users_again(program: Program) -> None:
    made = as_request(program, ("user_dense",))
    ran = run_passes(made, "share-user-side,split-sides").program
    flat = as_flat(ran, ("user_dense",))
    assert flat.signature == program.signature
    rows = made_up(program, 9, seed=0)
    assert (flat.run(rows)["score"] - program.run(rows)["score"]).abs().max() < ROUNDING


def rows_of(user: Tensor, group: list[int] | None) -> Rows:
    features = {"user_dense": user, "item_dense": torch.randn(len(user), 4)}
    return Rows(features, group=None if group is None else np.array(group), first=100)


def test_a_shared_feature_that_varies_within_a_group_is_named_with_its_rows() -> None:
    user = torch.zeros(5, 24)
    check_shared(rows_of(user, [7, 8, 7, 8, 7]), ("user_dense",))
    user[4, 3] = 1.0
    with pytest.raises(DataError, match=r"'user_dense'.*\(group\) 7: rows 10[02] and 104"):
        check_shared(rows_of(user, [7, 8, 7, 8, 7]), ("user_dense",))


def test_rows_without_a_group_prove_nothing_and_are_taken() -> None:
    check_shared(rows_of(torch.randn(5, 24), None), ("user_dense",))


def test_copies_of_the_user_are_taken_once(program: Program) -> None:
    features = {"user_dense": torch.ones(3, 24), "item_dense": torch.randn(3, 4)}
    once = without_copies(program.signature, features, ("user_dense",))
    assert once["user_dense"].shape == (1, 24)
    assert once["item_dense"] is features["item_dense"]


def test_a_shared_feature_that_varies_in_a_request_is_named_with_its_row(program: Program) -> None:
    features = {"user_dense": torch.ones(3, 24), "item_dense": torch.randn(3, 4)}
    features["user_dense"][2, 0] = 2.0
    with pytest.raises(DataError, match=r"'user_dense'.*row 2 differs"):
        without_copies(program.signature, features, ("user_dense",))


def test_a_request_without_candidates_is_refused(program: Program) -> None:
    features = {"user_dense": torch.ones(1, 24), "item_dense": torch.randn(0, 4)}
    with pytest.raises(DataError, match="without candidates"):
        without_copies(program.signature, features, ("user_dense",))


def test_passes_for_requests_run_before_formats_are_placed() -> None:
    names = [p.name for p in with_requests(Pipeline.parse("default")).passes]
    place = names.index("place-precision")
    assert names[place - 3 : place] == ["share-user-side", "split-sides", "stack-candidates"]
    again = with_requests(Pipeline.parse("canonicalize,split-sides"))
    assert again.spec() == "canonicalize,split-sides,share-user-side,stack-candidates"


def test_an_entry_goes_to_json_and_back() -> None:
    entry = Entry(("user_dense",), ("item_top",))
    assert Entry.from_json(entry.to_json()) == entry
