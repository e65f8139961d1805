"""Whom a feature describes, read off its name."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.ir import Signature
from rankc.optimizer.ir.infer import side_of
from rankc.optimizer.ir.signature import Side
from support import capture_small
from torch import Tensor, nn


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("user_id", Side.USER),
        ("userAge", Side.USER),
        ("users", Side.USER),
        ("item_category", Side.ITEM),
        ("ads", Side.ITEM),
        ("hist_item_ids", Side.USER),
        ("clickedAds", Side.USER),
        ("hour", Side.CONTEXT),
        ("device_type", Side.CONTEXT),
        ("music", Side.UNKNOWN),
        ("address", Side.UNKNOWN),
        ("usage", Side.UNKNOWN),
        ("user_item_distance", Side.UNKNOWN),
        ("x", Side.UNKNOWN),
    ],
)
def test_is_read_word_by_word(name: str, side: Side) -> None:
    assert side_of(name) is side


class TwoSided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(10, 4), nn.Embedding(20, 4)

    def forward(self, user_id: Tensor, item_id: Tensor, price: Tensor) -> Tensor:
        return (self.users(user_id) * self.items(item_id)).sum(1) + price


def test_a_captured_model_has_sides_that_can_be_overridden_and_stored() -> None:
    ids = torch.tensor([1, 2, 3])
    signature = capture_small(TwoSided(), ids, ids, torch.rand(3)).signature
    assert [f.side for f in signature] == [Side.USER, Side.ITEM, Side.UNKNOWN]
    given = signature.with_feature("price", side=Side.ITEM)
    assert Signature.from_json(given.to_json()).feature("price").side is Side.ITEM
