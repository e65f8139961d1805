"""Random rankers of what real ones are made of: pieces drawn by hypothesis, each with its inputs.

Every piece is an idiom of the zoo or of a public library of rankers, with the constants and guards
that are found there: an epsilon in a mean, a clamp ahead of a table, a modulo of a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

#: Width of every embedding and piece.
WIDTH = 4
ROWS, LENGTH = 30, 6
Batch = dict[str, Tensor]


class Piece(nn.Module):
    """A part of a ranker: named inputs to ``[B, WIDTH]``.

    Attributes:
        name: In front of the names of its inputs.
        variant: Which of its forms.
    """

    #: How many forms there are.
    variants = 1

    def __init__(self, name: str, variant: int) -> None:
        super().__init__()
        self.name = name
        self.variant = variant

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        """Rows as traffic holds them, by the piece's own names, edge cases among them."""
        raise NotImplementedError


def drawn(rows: Sequence[int] | int, high: int, generator: torch.Generator, low: int = 0) -> Tensor:
    """Integers below ``high``, a tenth of them the lowest or the highest."""
    sizes = (rows,) if isinstance(rows, int) else tuple(rows)
    values = torch.randint(low, high, sizes, generator=generator)
    edge = torch.rand(sizes, generator=generator)
    return torch.where(edge < 0.05, low, torch.where(edge > 0.95, high - 1, values))


def history(rows: int, generator: torch.Generator) -> Tensor:
    """Lists of ids filled up with 0, some of them empty, some full."""
    ids = torch.randint(1, ROWS, (rows, LENGTH), generator=generator)
    held = torch.randint(0, LENGTH + 1, (rows, 1), generator=generator)
    return torch.where(torch.arange(LENGTH) < held, ids, 0)


def edged(values: Tensor, edges: Sequence[float], generator: torch.Generator) -> Tensor:
    """The values, a fifth of them exactly one of some edges."""
    chosen = torch.randint(len(edges), values.shape, generator=generator)
    exact = torch.tensor(edges, dtype=values.dtype)[chosen]
    return torch.where(torch.rand(values.shape, generator=generator) < 0.2, exact, values)


class Id(Piece):
    """A table, behind whatever makes an id fit into it."""

    variants = 6

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.table = nn.Embedding(ROWS, WIDTH)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        if self.variant in (1, 2):
            return {"id": drawn(rows, 2**40 if self.variant == 1 else 2**31 + 9, generator)}
        low = -1 if self.variant in (3, 4) else 0
        return {"id": drawn(rows, ROWS + 5 if self.variant == 5 else ROWS - 1, generator, low)}

    def forward(self, given: Batch) -> Tensor:
        ids = given["id"]
        fixed = {
            0: lambda: ids,
            1: lambda: ids % ROWS,
            2: lambda: (ids * 2654435761 % 65537) % ROWS,
            3: lambda: ids + 1,
            4: lambda: torch.where(ids < 0, torch.zeros_like(ids), ids),
            5: lambda: ids.clamp(max=ROWS - 1),
        }
        return self.table(fixed[self.variant]())


class QuotientRemainder(Piece):
    """Two tables for one id, multiplied or added."""

    variants = 3

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.quotients = nn.Embedding(1001, WIDTH)
        self.remainders = nn.Embedding(1000, WIDTH)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        ids = drawn(rows, 1_000_000, generator)
        whole = ids // 1000 * 1000
        return {"id": torch.where(torch.rand(rows, generator=generator) < 0.2, whole, ids)}

    def forward(self, given: Batch) -> Tensor:
        ids = given["id"]
        quotient = torch.div(ids, 1000, rounding_mode="floor" if self.variant else "trunc")
        first, second = self.quotients(quotient), self.remainders(ids % 1000)
        return first + second if self.variant == 2 else first * second


class Hour(Piece):
    """The hour or the weekday of a time."""

    variants = 4

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.table = nn.Embedding(24, WIDTH)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        time = drawn(rows, 1_800_000_000, generator, 1_500_000_000)
        sharp = time // 3600 * 3600 - torch.randint(0, 2, (rows,), generator=generator)
        time = torch.where(torch.rand(rows, generator=generator) < 0.3, sharp, time)
        return {"time": time.to(torch.int32) if self.variant == 3 else time}

    def forward(self, given: Batch) -> Tensor:
        time = given["time"]
        if self.variant == 1:
            return self.table((time // 86400 + 4) % 7)
        if self.variant == 2:
            return self.table((time + 8 * 3600) % 86400 // 3600)
        return self.table((time // 3600 % 24).long())


class Bucket(Piece):
    """A number, in buckets, looked up."""

    variants = 5

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.table = nn.Embedding(ROWS, WIDTH)
        self.register_buffer("boundaries", torch.tensor([0.1, 0.5, 1.0, 2.5, 7.0, 20.0]))

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        value = 25 * torch.rand(rows, generator=generator)
        edges = (0.0, 0.1, 0.3, 0.5, 0.6, 1.0, 1.2, 2.5, 2.9, 7.0, 20.0)
        return {"x": edged(value, edges, generator)}

    def forward(self, given: Batch) -> Tensor:
        x = given["x"]
        if self.variant < 2:
            return self.table(torch.bucketize(x, self.boundaries, right=self.variant == 1))
        if self.variant == 2:
            return self.table((x // 0.1).long().clamp(0, ROWS - 1))
        if self.variant == 3:
            return self.table(torch.round(torch.log1p(x) * 5).long().clamp(0, ROWS - 1))
        return self.table((x.unsqueeze(1) >= self.boundaries).sum(1))


class Numbers(Piece):
    """Dense values, scaled as rankers scale them."""

    variants = 9

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.register_buffer("mean", torch.randn(WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        x = torch.randn(rows, WIDTH, generator=generator)
        if self.variant in (1, 2):
            x = x.abs()
        x = edged(x, (0.0, 1.0, 0.5, 3.0), generator)
        if self.variant == 3:
            x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, float("nan"), x)
        if self.variant == 5:
            x[torch.rand(rows, generator=generator) < 0.2] = 0.0
        return {"x": x}

    def forward(self, given: Batch) -> Tensor:
        x = given["x"]
        forms = {
            0: lambda: x,
            1: lambda: torch.log1p(x),
            2: lambda: torch.log(x + 1e-9) * 0.1,
            3: lambda: torch.where(x.isnan(), self.mean, x),
            4: lambda: self.norm(x),
            5: lambda: functional.normalize(x, dim=1),
            6: lambda: x / (x.abs().sum(1, keepdim=True) + 1e-8),
            7: lambda: torch.sign(x) * torch.sqrt(x.abs()),
            8: lambda: torch.where(x > 2, 2 + torch.log(x.clamp(min=1.0)), x).clamp(-3, 3),
        }
        return forms[self.variant]()


class Counts(Piece):
    """Rates of counted events."""

    variants = 4

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        shown = drawn((rows, WIDTH), 1000, generator)
        clicks = drawn((rows, WIDTH), 100, generator).minimum(shown)
        return {"clicks": clicks, "shown": shown}

    def forward(self, given: Batch) -> Tensor:
        clicks, shown = given["clicks"], given["shown"]
        if self.variant == 0:
            return clicks / (shown + 1e-5)
        if self.variant == 1:
            return (clicks + 1) / (shown + 20)
        if self.variant == 2:
            return (shown // clicks.clamp(min=1)).float().log1p()
        return torch.log1p(clicks.float()) - torch.log1p(shown.float())


class History(Piece):
    """A list of ids as one vector."""

    variants = 12

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.table = nn.Embedding(ROWS, WIDTH, padding_idx=0 if variant % 2 else None)
        self.scorer = nn.Linear(WIDTH, 1)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        ids = history(rows, generator)
        return {"ids": ids, "length": (ids != 0).sum(1)}

    def forward(self, given: Batch) -> Tensor:
        ids, length = given["ids"], given["length"]
        rows = self.table(ids)
        held = (ids != 0).float().unsqueeze(2)
        count = held.sum(1)
        last = (length - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, WIDTH)
        forms = {
            0: lambda: (rows * held).sum(1) / (count + 1e-8),
            1: lambda: (rows * held).sum(1) / (count + 1e-9),
            2: lambda: (rows * held).sum(1) / count.clamp(min=1),
            3: lambda: (rows * held).sum(1) / torch.sqrt(count + 1e-6),
            4: lambda: rows.masked_fill(held == 0, -1e9).max(1).values.clamp(min=-10),
            5: lambda: rows.gather(1, last).squeeze(1),
            6: lambda: (rows * held).cumsum(1)[:, -1],
            7: lambda: rows.topk(2, dim=1).values.sum(1),
            8: lambda: (self._weights(rows, held, -1e9) * rows).sum(1),
            9: lambda: (self._weights(rows, held, -(2.0**32) + 1) * rows).sum(1),
            10: lambda: self._before(rows, length),
            11: lambda: (rows * held * 0.9 ** torch.arange(LENGTH).view(1, -1, 1)).sum(1),
        }
        return forms[self.variant]()

    def _weights(self, rows: Tensor, held: Tensor, low: float) -> Tensor:
        return self.scorer(rows).masked_fill(held == 0, low).softmax(1)

    def _before(self, rows: Tensor, length: Tensor) -> Tensor:
        within = torch.arange(LENGTH).unsqueeze(0) < length.unsqueeze(1)
        return torch.where(within.unsqueeze(2), rows, torch.zeros_like(rows)).mean(1)


class Target(Piece):
    """A candidate against the user's history."""

    variants = 6

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.table = nn.Embedding(ROWS, WIDTH)
        self.scorer = nn.Sequential(nn.Linear(4 * WIDTH, 8), nn.PReLU(), nn.Linear(8, 1))

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        ids = history(rows, generator)
        item = drawn(rows, ROWS, generator)
        return {"ids": ids, "item": torch.where(item % 3 == 0, ids[:, 0], item)}

    def forward(self, given: Batch) -> Tensor:
        ids, item = given["ids"], given["item"]
        rows, one = self.table(ids), self.table(item)
        held = ids != 0
        if self.variant == 0:
            seen = (ids == item.unsqueeze(1)).float().sum(1, keepdim=True)
            return one * seen
        if self.variant == 1:
            pooled = rows.mean(1)
            near = functional.cosine_similarity(pooled, one, dim=1)
            return one * near.unsqueeze(1)
        query = one.unsqueeze(1).expand(-1, LENGTH, -1)
        if self.variant in (2, 3):
            both = torch.cat([query, rows, query - rows, query * rows], 2)
            scores = self.scorer(both).squeeze(2)
        else:
            scores = (query * rows).sum(2) / WIDTH**0.5
        if self.variant in (2, 4):
            scores = torch.where(held, scores, torch.full_like(scores, -1e9)).softmax(1)
        else:
            scores = scores * held
        return (scores.unsqueeze(1) @ rows).squeeze(1)


class OneHot(Piece):
    """An id or a list of ids as zeros and ones, behind a linear."""

    variants = 3

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.linear = nn.Linear(ROWS, WIDTH)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        if self.variant == 0:
            return {"id": drawn(rows, ROWS, generator)}
        return {"id": drawn((rows, 3), ROWS, generator), "w": torch.rand(rows, 3)}

    def forward(self, given: Batch) -> Tensor:
        ids = given["id"]
        if self.variant == 0:
            return self.linear(functional.one_hot(ids, ROWS).float())
        empty = torch.zeros(ids.shape[0], ROWS)
        if self.variant == 1:
            return self.linear(empty.scatter(1, ids, 1.0))
        return self.linear(empty.scatter_add(1, ids, given["w"]))


class Decay(Piece):
    """How long ago things happened."""

    variants = 3

    def __init__(self, name: str, variant: int) -> None:
        super().__init__(name, variant)
        self.table = nn.Embedding(ROWS, WIDTH)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        now = drawn(rows, 1_800_000_000, generator, 1_500_000_000)
        ago = torch.randint(0, 90 * 86400, (rows, WIDTH), generator=generator)
        sharp = torch.rand(ago.shape, generator=generator) < 0.2
        ago = torch.where(sharp, ago // 86400 * 86400, ago)
        return {"now": now, "then": now.unsqueeze(1) - ago}

    def forward(self, given: Batch) -> Tensor:
        ago = given["now"].unsqueeze(1) - given["then"]
        if self.variant == 0:
            return torch.exp(-ago / 86400 / 7)
        if self.variant == 1:
            return torch.log2(ago.float() + 1) / 10
        return self.table((ago // 86400).clamp(0, ROWS - 1)).mean(1)


PIECES: tuple[type[Piece], ...] = (
    Id,
    QuotientRemainder,
    Hour,
    Bucket,
    Numbers,
    Counts,
    History,
    Target,
    OneHot,
    Decay,
)
TOPS = ("mlp", "fm", "cross", "gate", "senet", "attention", "normed")


class RandomRanker(nn.Module):
    """Pieces side by side, one interaction above them, one or two tasks.

    Args:
        pieces: Kind and form of each.
        top: The interaction.
        tasks: 1, or 2 whose second is the product of both, as in ESMM.
        seed: Of the weights.
    """

    def __init__(
        self, pieces: Sequence[tuple[int, int]], top: str, tasks: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pieces = nn.ModuleList(
            PIECES[kind](f"p{place}", form) for place, (kind, form) in enumerate(pieces)
        )
        self.top = top
        self.tasks = tasks
        wide = WIDTH * len(pieces)
        self.first = nn.Linear(wide, 8)
        self.second = nn.Linear(8, tasks)
        self.cross = nn.Linear(wide, wide)
        self.gate = nn.Linear(wide, len(pieces))
        self.norm = nn.LayerNorm(WIDTH)

    def inputs(self, rows: int, seed: int) -> Batch:
        """Rows of all pieces."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for piece in self.pieces:
            for name, value in piece.inputs(rows, generator).items():
                found[f"{piece.name}_{name}"] = value
        return found

    def forward(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        made = []
        for piece in self.pieces:
            start = f"{piece.name}_"
            own = {n.removeprefix(start): v for n, v in batch.items() if n.startswith(start)}
            made.append(piece(own))
        fields = torch.stack(made, 1)
        fields = self._interacted(fields)
        hidden = functional.relu(self.first(fields.flatten(1)))
        logits = self.second(hidden)
        if self.tasks == 1:
            return logits.squeeze(1)
        click, buy = logits.sigmoid().unbind(1)
        return {"click": click, "both": click * buy}

    def _interacted(self, fields: Tensor) -> Tensor:
        flat = fields.flatten(1)
        if self.top == "fm":
            second = 0.5 * (fields.sum(1) ** 2 - (fields**2).sum(1))
            return fields + second.unsqueeze(1)
        if self.top == "cross":
            return (flat * self.cross(flat) + flat).view_as(fields)
        if self.top == "gate":
            return fields * self.gate(flat).softmax(1).unsqueeze(2)
        if self.top == "senet":
            return fields * self.gate(fields.mean(2).repeat(1, WIDTH)).sigmoid().unsqueeze(2)
        if self.top == "attention":
            return (fields @ fields.transpose(1, 2) / WIDTH**0.5).softmax(2) @ fields
        return self.norm(fields) if self.top == "normed" else fields


def every_form(together: int) -> list[RandomRanker]:
    """Every form of every piece once, so many in one ranker, below each interaction in turn."""
    forms = [(kind, form) for kind, piece in enumerate(PIECES) for form in range(piece.variants)]
    count = -(-len(forms) // together)
    return [
        RandomRanker(forms[i::count], TOPS[i % len(TOPS)], 1 + i % 2, i).eval()
        for i in range(count)
    ]


@st.composite
def rankers(draw: st.DrawFn) -> RandomRanker:
    """Rankers of two to five pieces."""
    kinds = draw(st.lists(st.integers(0, len(PIECES) - 1), min_size=2, max_size=5))
    pieces = [(kind, draw(st.integers(0, PIECES[kind].variants - 1))) for kind in kinds]
    top = draw(st.sampled_from(TOPS))
    return RandomRanker(pieces, top, draw(st.integers(1, 2)), draw(st.integers(0, 99))).eval()
