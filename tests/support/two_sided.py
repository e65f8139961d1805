"""Random two-sided models: a user with a history, and candidates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

USER = ("user_dense", "user_ids", "user_history")
_DIM, _LENGTH = 8, 5


class TwoSides(nn.Module):
    """Interactions of a user and a candidate, one after the other, each over all before it."""

    def __init__(self, kinds: list[str], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kinds = kinds
        self.users, self.items = nn.Embedding(30, _DIM), nn.Embedding(40, _DIM)
        self.dense = nn.Linear(6, _DIM)
        self.mixes = nn.ModuleList(nn.Linear(4 * _DIM, _DIM) for _ in kinds)
        self.bag = nn.EmbeddingBag(40, _DIM, mode="mean", padding_idx=0)
        self.norm = nn.LayerNorm(_DIM)
        self.out = nn.Linear(_DIM, 1)

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, user_history: Tensor, item_ids: Tensor
    ) -> Tensor:
        user = self.users(user_ids) + torch.relu(self.dense(user_dense))
        item = self.items(item_ids)
        history = self.items(user_history)
        mask = user_history != 0
        for kind, mix in zip(self.kinds, self.mixes, strict=True):
            user, item = _KINDS[kind](self, mix, user, item, history, mask)
        return self.out(self.norm(user + item)).squeeze(1)


def _concat(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    return u, torch.relu(mix(torch.cat([u, i, u * i, u - i], 1)))


def _tower(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    """What stays on the user's side."""
    pooled = (h * k.unsqueeze(-1)).sum(1) / k.sum(1, keepdim=True).clamp(min=1)
    return torch.tanh(mix(torch.cat([u, pooled, u * pooled, h[:, 0]], 1))), i


def _attention(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    """A candidate attends to the history in two heads."""
    keys = h.view(-1, _LENGTH, 2, _DIM // 2).transpose(1, 2)
    query = i.view(-1, 1, 2, _DIM // 2).transpose(1, 2)
    scores = query @ keys.transpose(2, 3) / math.sqrt(_DIM)
    weights = scores.masked_fill(~k[:, None, None, :], -1e9).softmax(-1)
    return u, i + (weights @ keys).transpose(1, 2).reshape(-1, _DIM)


def _target(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    """DIN's: an MLP of the candidate and each item of the history."""
    q = i.unsqueeze(1).expand(-1, _LENGTH, -1)
    weights = torch.sigmoid(mix(torch.cat([q, h, q - h, q * h], -1)))
    return u, i + (weights * h * k.unsqueeze(-1)).sum(1)


def _fm(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    fields = torch.stack([u, i, m.bag(k * 1)], 1)
    pairs = (fields.sum(1).square() - fields.square().sum(1)) / 2
    return u, i + pairs


def _dots(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    fields = torch.stack([u, i], 1)
    products = (fields @ fields.transpose(1, 2)).flatten(1)
    return u + 1.0, i * products[:, 1:2] + products[:, :1]


def _cross(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    x = torch.cat([u, i, u, i], 1)
    return u, i * mix(x) + i


def _gate(m: TwoSides, mix: nn.Linear, u: Tensor, i: Tensor, h: Tensor, k: Tensor) -> tuple:
    """The user's gates, one column each, over what the candidate gives."""
    gates = u.softmax(-1).unsqueeze(2)
    return u, (gates * i.unsqueeze(1)).sum(1)


_KINDS: dict[str, Callable[..., tuple]] = {
    "attention": _attention,
    "concat": _concat,
    "cross": _cross,
    "dots": _dots,
    "fm": _fm,
    "gate": _gate,
    "target": _target,
    "tower": _tower,
}


def two_sided() -> st.SearchStrategy[nn.Module]:
    """Models of one to four interactions."""
    kinds = st.lists(st.sampled_from(sorted(_KINDS)), min_size=1, max_size=4)
    return st.builds(lambda k, seed: TwoSides(k, seed).eval(), kinds, st.integers(0, 99))


def inputs(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Rows, each with a user of its own."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(0, 40, (count, _LENGTH), generator=generator)
    return (
        torch.randn(count, 6, generator=generator),
        torch.randint(0, 30, (count,), generator=generator),
        history,
        torch.randint(0, 40, (count,), generator=generator),
    )
