"""Random two-sided models that compare ids, and walk along a history; each term is ``[B, 6]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

USER = ("history", "country")
LENGTH, _WIDTH, _IDS = 7, 6, 40


class Compared(nn.Module):
    """The sum of some terms, through a small head."""

    def __init__(self, terms: list[str], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.terms = terms
        self.items, self.countries = nn.Embedding(_IDS, _WIDTH), nn.Embedding(9, _WIDTH)
        self.prices = nn.Embedding(_IDS, 1)
        self.gru = nn.GRU(_WIDTH, _WIDTH, batch_first=True)
        self.deep_gru = nn.GRU(_WIDTH, _WIDTH, num_layers=2, batch_first=True)
        self.lstm = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
        self.both_ways = nn.GRU(_WIDTH, _WIDTH // 2, batch_first=True, bidirectional=True)
        self.rnn = nn.RNN(_WIDTH, _WIDTH, batch_first=True)
        self.head = nn.Sequential(nn.Linear(_WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, history: Tensor, country: Tensor, item: Tensor, shop: Tensor) -> Tensor:
        total = self.items(item) + self.countries(country)
        for term in self.terms:
            total = total + TERMS[term](self, history, country, item, shop)
        return self.head(total).squeeze(1)


Term = Callable[[Compared, Tensor, Tensor, Tensor, Tensor], Tensor]


def _same(history: Tensor, item: Tensor) -> Tensor:
    return history == item.unsqueeze(1)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    weights = mask.float().unsqueeze(-1)
    return (values * weights).sum(1) / (weights.sum(1) + 1e-8)


TERMS: dict[str, Term] = {
    "contains": lambda m, h, c, i, s: _same(h, i).any(1, keepdim=True).float(),
    "how often": lambda m, h, c, i, s: _same(h, i).float().sum(1, keepdim=True).log1p(),
    "where": lambda m, h, c, i, s: F.pad(_same(h, i).float(), (0, 0))[:, :_WIDTH],
    "last is": lambda m, h, c, i, s: (h[:, -1:] == i.unsqueeze(1)).float(),
    "newer than": lambda m, h, c, i, s: (h > i.unsqueeze(1)).float().mean(1, keepdim=True),
    "same country": lambda m, h, c, i, s: (c == s).float().unsqueeze(1),
    "chosen by user": lambda m, h, c, i, s: torch.where(
        (c > 4).unsqueeze(1), m.items(i), m.items(s)
    ),
    "chosen by item": lambda m, h, c, i, s: torch.where(
        (i > 20).unsqueeze(1), m.countries(c), m.items(h[:, 0])
    ),
    "mean of the others": lambda m, h, c, i, s: _masked_mean(m.items(h), ~_same(h, i)),
    "mean of the same": lambda m, h, c, i, s: _masked_mean(m.items(h), _same(h, i)),
    "mean of the seen": lambda m, h, c, i, s: _masked_mean(m.items(h), h > 0),
    "item weighed by user": lambda m, h, c, i, s: m.items(i) * (c > 3).float().unsqueeze(1),
    "user over item": lambda m, h, c, i, s: m.countries(c) / (1.0 + s.float().unsqueeze(1)),
    "price": lambda m, h, c, i, s: (m.prices(h) * m.prices(i).unsqueeze(1)).sum(1),
    "pairs weighed by user": lambda m, h, c, i, s: (
        m.items(torch.stack([i, s], 1)) * (h[:, :2] > 9).float().unsqueeze(-1)
    ).sum(1),
    "masked softmax": lambda m, h, c, i, s: (
        (m.items(h) * m.items(i).unsqueeze(1)).sum(-1).masked_fill(h == 0, -1e9).softmax(1)
        @ m.items(h).mean(0).new_ones(LENGTH, _WIDTH)
    ),
    "gru": lambda m, h, c, i, s: m.gru(m.items(h))[1][-1] * m.items(i),
    "deep gru": lambda m, h, c, i, s: m.deep_gru(m.items(h))[1][-1],
    "steps of a gru": lambda m, h, c, i, s: _masked_mean(m.gru(m.items(h))[0], _same(h, i)),
    "both ways": lambda m, h, c, i, s: m.both_ways(m.items(h))[0][:, -1],
    "lstm": lambda m, h, c, i, s: m.lstm(m.items(h))[0][:, -1] * m.items(i),
    "rnn": lambda m, h, c, i, s: m.rnn(m.items(h))[1][0],
    "gru from item": lambda m, h, c, i, s: m.gru(m.items(h), m.items(i).unsqueeze(0))[1][0],
}


def compared() -> st.SearchStrategy[nn.Module]:
    """Models of two to six terms."""
    terms = st.lists(st.sampled_from(sorted(TERMS)), min_size=2, max_size=6, unique=True)
    return st.builds(lambda t, seed: Compared(t, seed).eval(), terms, st.integers(0, 99))


def inputs(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Rows, each with a user of its own; half of the items are in the history."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(0, _IDS, (count, LENGTH), generator=generator)
    history[torch.rand(history.shape, generator=generator) < 0.3] = 0
    item = torch.randint(0, _IDS, (count,), generator=generator)
    item[::2] = history[::2, 3]
    country, shop = (torch.randint(0, 9, (count,), generator=generator) for _ in range(2))
    return history, country, item, shop
