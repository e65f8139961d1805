"""Pieces of random rankers that read lists: histories, candidates against them, recurrences."""

from __future__ import annotations

import torch
from random_pieces import ROWS, Batch, Form, Piece, drawn
from torch import Tensor, nn
from torch.nn import functional


class History(Piece):
    """A list of ids as one vector."""

    variants = 24

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width, padding_idx=0 if variant % 2 else None)
        self.scorer = nn.Linear(self.width, 1)
        self.bag = nn.EmbeddingBag(ROWS, self.width, mode="mean", padding_idx=0)
        self.sums = nn.EmbeddingBag(ROWS, self.width, mode="sum")
        self.conv = nn.Conv1d(self.width, self.width, 3, padding=1)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        ids = self.history(rows, generator)
        return {"ids": ids, "length": (ids != 0).sum(1)}

    def forward(self, given: Batch) -> Tensor:
        ids, length = given["ids"], given["length"]
        rows = self.table(ids)
        held = (ids != 0).float().unsqueeze(2)
        count = held.sum(1)
        last = (length - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, self.width)
        forms = {
            0: lambda: (rows * held).sum(1) / (count + 1e-8),
            1: lambda: (rows * held).sum(1) / (count + 1e-9),
            2: lambda: (rows * held).sum(1) / count.clamp(min=1),
            3: lambda: (rows * held).sum(1) / torch.sqrt(count + 1e-6),
            4: lambda: rows.masked_fill(held == 0, -1e9).max(1).values.clamp(min=-10),
            5: lambda: rows.gather(1, last).squeeze(1),
            6: lambda: (rows * held).cumsum(1)[:, -1],
            7: lambda: rows.topk(min(2, self.length), dim=1).values.sum(1),
            8: lambda: (self._weights(rows, held, -1e9) * rows).sum(1),
            9: lambda: (self._weights(rows, held, -(2.0**32) + 1) * rows).sum(1),
            10: lambda: self._before(rows, length),
            12: lambda: self.bag(ids),
            13: lambda: self.sums(ids, per_sample_weights=held.squeeze(2)),
            14: lambda: rows.masked_fill(held == 0, float("-inf")).logsumexp(1).clamp(min=-10),
            15: lambda: torch.nan_to_num((rows * held).sum(1) / count),
            16: lambda: functional.relu(self.conv((rows * held).transpose(1, 2))).amax(2),
            17: lambda: (rows - rows.roll(1, 1)).abs().mean(1),
            18: lambda: (rows.tanh() + 1 - held).flip(1).cumprod(1).sum(1),
            19: lambda: ((rows - rows.mean(1, keepdim=True)) ** 2 * held).mean(1).sqrt(),
            20: lambda: rows.sort(1).values[:, self.length // 2],
            21: lambda: (rows * held.cumsum(1)).sum(1) / (held.cumsum(1).sum(1) + 1e-12),
            22: lambda: rows.take_along_dim(rows.argmax(1, keepdim=True), 1).squeeze(1),
            23: lambda: functional.avg_pool1d(rows.transpose(1, 2), self.length).squeeze(2),
            11: lambda: (rows * held * 0.9 ** torch.arange(self.length).view(1, -1, 1)).sum(1),
        }
        return forms[self.variant]()

    def _weights(self, rows: Tensor, held: Tensor, low: float) -> Tensor:
        return self.scorer(rows).masked_fill(held == 0, low).softmax(1)

    def _before(self, rows: Tensor, length: Tensor) -> Tensor:
        within = torch.arange(self.length).unsqueeze(0) < length.unsqueeze(1)
        return torch.where(within.unsqueeze(2), rows, torch.zeros_like(rows)).mean(1)


class Target(Piece):
    """A candidate against the user's history."""

    variants = 9

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width)
        self.scorer = nn.Sequential(nn.Linear(4 * self.width, 8), nn.PReLU(), nn.Linear(8, 1))

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        ids = self.history(rows, generator)
        item = drawn(rows, ROWS, generator)
        return {"ids": ids, "item": torch.where(item % 3 == 0, ids[:, 0], item)}

    def forward(self, given: Batch) -> Tensor:
        ids, item = given["ids"], given["item"]
        one = self.table(item)
        held = ids != 0
        if self.variant == 0:
            seen = (ids == item.unsqueeze(1)).float().sum(1, keepdim=True)
            return one * seen
        rows = self.table(ids)
        if self.variant == 1:
            pooled = rows.mean(1)
            near = functional.cosine_similarity(pooled, one, dim=1)
            return one * near.unsqueeze(1)
        if self.variant == 6:
            far = (rows - one.unsqueeze(1)).pow(2).sum(2)
            return (torch.exp(-far).unsqueeze(2) * rows).sum(1)
        if self.variant == 7:
            seen = (ids == item.unsqueeze(1)).any(1, keepdim=True)
            return torch.where(seen, one, -one)
        if self.variant == 8:
            place = (ids == item.unsqueeze(1)).int().argmax(1)
            return rows[torch.arange(len(place)), place] - one
        query = one.unsqueeze(1).expand(-1, self.length, -1)
        if self.variant in (2, 3):
            both = torch.cat([query, rows, query - rows, query * rows], 2)
            scores = self.scorer(both).squeeze(2)
        else:
            scores = (query * rows).sum(2) / self.width**0.5
        if self.variant in (2, 4):
            scores = torch.where(held, scores, torch.full_like(scores, -1e9)).softmax(1)
        else:
            scores = scores * held
        return (scores.unsqueeze(1) @ rows).squeeze(1)


class Recurrent(Piece):
    """A recurrence along a history."""

    variants = 5

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width, padding_idx=0)
        kind = (nn.GRU, nn.LSTM, nn.GRU, nn.RNN, nn.LSTM)[variant]
        self.steps = kind(self.width, self.width, batch_first=True, bidirectional=variant == 4)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        return {"ids": self.history(rows, generator)}

    def forward(self, given: Batch) -> Tensor:
        ids = given["ids"]
        outputs, last = self.steps(self.table(ids))
        if self.variant in (0, 3):
            return last[-1]
        if self.variant == 1:
            return last[0][0] + last[1][0]
        if self.variant == 4:
            return outputs.view(len(ids), -1, 2, self.width).sum((1, 2))
        place = ((ids != 0).sum(1) - 1).clamp(min=0)
        return outputs.gather(1, place.view(-1, 1, 1).expand(-1, 1, self.width).long()).squeeze(1)


class Encoder(Piece):
    """Attention of a history to itself."""

    variants = 5

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width, padding_idx=0)
        self.places = nn.Embedding(self.length + 1, self.width)
        self.many = nn.MultiheadAttention(self.width, 1, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(self.width, 1, 8, batch_first=True)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        return {"ids": self.history(rows, generator)}

    def forward(self, given: Batch) -> Tensor:
        ids = given["ids"]
        held = ids != 0
        rows = self.table(ids)
        if self.variant == 0:
            rows = rows + self.places(held.int().cumsum(1) * held)
            return functional.scaled_dot_product_attention(rows, rows, rows, is_causal=True).mean(1)
        if self.variant == 1:
            some = held | (torch.arange(self.length) == 0)
            return self.many(rows, rows, rows, key_padding_mask=~some)[0].mean(1)
        if self.variant == 2:
            rows = rows + self.places(torch.arange(self.length))
            return (self.layer(rows) * held.unsqueeze(2)).sum(1)
        near = rows @ rows.transpose(1, 2)
        if self.variant == 3:
            later = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
            return (near.masked_fill(later, float("-inf")).softmax(2) @ rows)[:, -1]
        both = held.unsqueeze(1) & held.unsqueeze(2)
        return (torch.where(both, near, -1e9).softmax(-1) @ rows).sum(1)


class Masked(Piece):
    """Vectors that a mask says which of to take."""

    variants = 6

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        held = torch.randint(0, self.length + 1, (rows, 1), generator=generator)
        values = torch.randn(rows, self.length, self.width, generator=generator)
        return {"mask": torch.arange(self.length) < held, "x": values}

    def forward(self, given: Batch) -> Tensor:
        mask, x = given["mask"], given["x"]
        sure = mask.bool()
        if self.variant == 0:
            return (x * mask.unsqueeze(2)).sum(1)
        if self.variant == 1:
            return x.masked_fill(~sure.unsqueeze(2), 0.0).mean(1)
        if self.variant == 2:
            return torch.where(sure.unsqueeze(2), x, -1e4).amax(1).clamp(min=-5)
        if self.variant == 3:
            weight = mask.float() / mask.float().sum(1, keepdim=True).clamp(min=1.0)
            return torch.einsum("bl,blw->bw", weight, x.float())
        if self.variant == 4:
            return x.sum(1) * sure.any(1, keepdim=True) + sure.all(1, keepdim=True) * 0.5
        first = x * (mask.cumsum(1) == 1).unsqueeze(2)
        return first.sum(1) + mask.sum(1, keepdim=True) * 0.1
