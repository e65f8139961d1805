"""Flat rows as two-sided models take them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rankc.models.data import RankingData, batches, synthetic_flights
from rankc.models.early_stage import EarlyStage, EarlyStageConfig
from rankc.models.sides import two_sides


@pytest.fixture(scope="module")
def generated() -> RankingData:
    return synthetic_flights(3000)


def test_columns_go_to_their_side(generated: RankingData) -> None:
    data, sides = two_sides(generated, "route", ("carrier", "distance"), history=3)
    assert [data.id_names[c] for c in sides.item_ids] == ["route", "carrier"]
    assert [data.dense_names[c] for c in sides.item_dense] == ["distance"]
    assert len(sides.user_ids) + len(sides.item_ids) == len(generated.id_names)
    assert sides.item_cardinalities[0] == data.cardinalities[sides.history[0]]
    inputs, _ = next(batches(data.test, 5))
    (features,) = sides(*inputs)
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "user_dense": (5, 3),
        "user_ids": (5, 4),
        "user_history": (5, 3),
        "item_dense": (5, 1),
        "item_ids": (5, 2),
    }


def test_a_history_is_what_came_before(generated: RankingData) -> None:
    data, sides = two_sides(generated, "route", (), history=4)
    group = np.concatenate([data.train.group, data.test.group])
    ids = np.concatenate([data.train.ids, data.test.ids])
    place = data.id_names.index("route")
    for row in (0, 17, 500, 2999):
        before = ids[:row][group[:row] == group[row], place][::-1][:4]
        expected = np.pad(before, (0, 4 - len(before)))
        assert ids[row, list(sides.history)].tolist() == expected.tolist()


def test_an_early_stage_ranker_takes_them(generated: RankingData) -> None:
    data, sides = two_sides(generated, "route", ("carrier", "distance"), history=3)
    config = EarlyStageConfig(
        sides.user_cardinalities,
        len(sides.user_dense),
        sides.item_cardinalities,
        len(sides.item_dense),
        history_length=3,
        embedding_dim=4,
        user_tower=(8,),
        item_tower=(8,),
        output_dim=4,
        shared=(8,),
    )
    inputs, _ = next(batches(data.test, 5))
    scores = EarlyStage(config)(*sides(*inputs))
    assert all(bool(torch.isfinite(score).all()) for score in scores.values())


def test_unknown_columns_and_data_without_users_are_refused(generated: RankingData) -> None:
    with pytest.raises(ValueError, match=r"no columns \['color'\]"):
        two_sides(generated, "route", ("color",), history=3)
    alone = replace(generated, train=replace(generated.train, group=None))
    with pytest.raises(ValueError, match="no group"):
        two_sides(alone, "route", (), history=3)
