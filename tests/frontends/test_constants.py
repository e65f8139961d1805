"""What forward reads off its own weights is constant: numbers, flags, places of masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rankc.frontends.export import capture
from torch import Tensor, nn

FIELDS = 4
PAIRS = FIELDS * (FIELDS - 1) // 2


def ids(count: int) -> Tensor:
    """Ids ``[count, FIELDS]``, without padding."""
    drawn = torch.Generator().manual_seed(count)
    return torch.randint(1, 30, (count, FIELDS), generator=drawn)


class Pairs(nn.Module):
    """Products of fields, of which a constant mask picks each pair once."""

    def __init__(self, pick: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(30, 8)
        self.score = nn.Linear(PAIRS, 1)
        self.pick = pick
        self.register_buffer("mask", torch.triu(torch.ones(FIELDS, FIELDS), 1).bool())

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.items(ids)
        picked = self.pick(self, rows @ rows.transpose(1, 2))
        return self.score(picked.reshape(ids.shape[0], -1)).squeeze(1)  # type: ignore[no-any-return]


def made(self: Any, products: Tensor) -> Tensor:
    return products[:, torch.triu(torch.ones(FIELDS, FIELDS), 1).bool()]


def by_nonzero(self: Any, products: Tensor) -> Tensor:
    places = self.mask.nonzero()
    return products[:, places[:, 0], places[:, 1]]


def by_where(self: Any, products: Tensor) -> Tensor:
    left, right = torch.where(self.mask)
    return products[:, left, right]


PICKS: list[Callable[[Any, Tensor], Tensor]] = [
    lambda self, products: products[:, self.mask],
    lambda self, products: products[:, ~self.mask.t() & self.mask],
    lambda self, products: products.masked_select(self.mask),
    made,
    by_nonzero,
    by_where,
]


@pytest.mark.parametrize("pick", PICKS)
def test_a_constant_mask_has_constant_places(pick: Callable[[Any, Tensor], Tensor]) -> None:
    model = Pairs(pick).eval()
    program = capture(model, (ids(5),))
    assert program.module.meta["route"] == "export"
    for count in (1, 3, 64):
        with torch.no_grad():
            assert torch.allclose(program(ids(count)), model(ids(count)), atol=1e-6)


class Columns(nn.Module):
    """pytorch-tabnet's way: a loop over flags says which columns are ids."""

    def __init__(self, flags: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(30, 3)
        self.score = nn.Linear(6, 1)
        self.flags = flags
        self.scale = nn.Parameter(torch.tensor([2.0, 0.5]))

    def forward(self, ids: Tensor) -> Tensor:
        columns = [
            ids[:, i].float().unsqueeze(1) if dense else self.table(ids[:, i])
            for i, dense in enumerate(self.flags)
        ]
        factor = float(self.scale.exp().sum()) if self.scale[1] < 1 else self.scale.max().item()
        return self.score(torch.cat(columns, 1)).squeeze(1) * factor  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["attribute", "parameter", "list"])
def test_flags_that_a_loop_reads(how: str) -> None:
    flags: Any = torch.tensor([True, False, True, True])
    if how == "parameter":
        flags = nn.Parameter(flags, requires_grad=False)
    model = Columns(flags.tolist() if how == "list" else flags).eval()
    program = capture(model, (ids(5),))
    for count in (1, 3):
        with torch.no_grad():
            assert torch.allclose(program(ids(count)), model(ids(count)), atol=1e-6)


class History(nn.Module):
    """A transformer over a history, with a causal mask and one for padding."""

    def __init__(self, causal: bool, padded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(30, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.causal, self.padded = causal, padded

    def forward(self, ids: Tensor) -> Tensor:
        seen = ids != 0
        mask = torch.triu(torch.ones(FIELDS, FIELDS, dtype=torch.bool), 1) if self.causal else None
        padding = ~seen if self.padded else None
        rows = self.encoder(self.items(ids), mask=mask, src_key_padding_mask=padding)
        return (rows * seen.unsqueeze(2)).sum((1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_transformers_compute_by_their_parts(causal: bool, padded: bool) -> None:
    model = History(causal, padded).eval()

    def batch(count: int) -> Tensor:
        behind = torch.arange(FIELDS) > torch.arange(count)[:, None] % FIELDS
        return ids(count).masked_fill(behind, 0) if padded else ids(count)

    program = capture(model, (batch(5),))
    assert not any("transformer" in str(node.target) for node in program.graph.nodes)
    assert torch.backends.mha.get_fastpath_enabled()
    for count in (1, 3, 64):
        with torch.no_grad():
            assert torch.allclose(program(batch(count)), model(batch(count)), atol=1e-5)
