"""Pieces of random rankers: idioms of the zoo and of public libraries, each with its inputs.

Every piece has the constants and guards that are found there: an epsilon in a mean, a clamp ahead
of a table, a modulo of a time. Widths, lengths and dtypes are the form's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 30
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """What pieces are as wide as, and how features are given.

    Attributes:
        width: Of every embedding and piece.
        length: Of lists.
        integers: The dtype of ids, counts and times, where they fit; a float one for ids that are
            packed with dense values, and cast.
        floats: The dtype of dense values.
        masks: The dtype of masks.
        taken: Whether features are used in the dtype they have, where PyTorch can, and not cast.
    """

    width: int = 4
    length: int = 6
    integers: torch.dtype = torch.int64
    floats: torch.dtype = torch.float32
    masks: torch.dtype = torch.bool
    taken: bool = False


class Piece(nn.Module):
    """A part of a ranker: named inputs to ``[B, width]``.

    Attributes:
        name: In front of the names of its inputs.
        variant: Which of its variants.
        form: Its widths and dtypes.
    """

    #: How many variants there are.
    variants = 1

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__()
        self.name = name
        self.variant = variant
        self.form = form
        self.width, self.length = form.width, form.length

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        """Rows as traffic holds them, by the piece's own names, edge cases among them."""
        raise NotImplementedError

    def history(self, rows: int, generator: torch.Generator) -> Tensor:
        """Lists of ids filled up with 0, some of them empty, some full."""
        ids = torch.randint(1, ROWS, (rows, self.length), generator=generator)
        held = torch.randint(0, self.length + 1, (rows, 1), generator=generator)
        return torch.where(torch.arange(self.length) < held, ids, 0)


def drawn(rows: Sequence[int] | int, high: int, generator: torch.Generator, low: int = 0) -> Tensor:
    """Integers below ``high``, a tenth of them the lowest or the highest."""
    sizes = (rows,) if isinstance(rows, int) else tuple(rows)
    values = torch.randint(low, high, sizes, generator=generator)
    edge = torch.rand(sizes, generator=generator)
    return torch.where(edge < 0.05, low, torch.where(edge > 0.95, high - 1, values))


def edged(values: Tensor, edges: Sequence[float], generator: torch.Generator) -> Tensor:
    """The values, a fifth of them exactly one of some edges."""
    chosen = torch.randint(len(edges), values.shape, generator=generator)
    exact = torch.tensor(edges, dtype=values.dtype)[chosen]
    return torch.where(torch.rand(values.shape, generator=generator) < 0.2, exact, values)


class Id(Piece):
    """A table, behind whatever makes an id fit into it."""

    variants = 12

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        if self.variant in (1, 2):
            return {"id": drawn(rows, 2**40 if self.variant == 1 else 2**31 + 9, generator)}
        if self.variant > 5:
            return {"id": drawn(rows, 1_000_000, generator, -1_000_000)}
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
            6: lambda: (ids >> 3) & 15,
            7: lambda: ((ids ^ (ids >> 16)) & 65535) % ROWS,
            8: lambda: ids.abs() % ROWS,
            9: lambda: torch.fmod(ids, ROWS).abs(),
            10: lambda: (ids * 31 + 7) % 1009 % ROWS,
            11: lambda: torch.where((ids > 0) & (ids < ROWS), ids, 0),
        }
        return self.table(fixed[self.variant]())


class QuotientRemainder(Piece):
    """Two tables for one id, multiplied or added."""

    variants = 3

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.quotients = nn.Embedding(1001, self.width)
        self.remainders = nn.Embedding(1000, self.width)

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

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(24, self.width)

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

    variants = 9

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width)
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
        if self.variant == 5:
            return self.table(torch.searchsorted(self.boundaries, x.float(), side="right"))
        if self.variant == 6:
            return self.table((x * 10).int().clamp(0, ROWS - 1))
        if self.variant == 7:
            return self.table(torch.ceil(x / 0.3).long().clamp(0, ROWS - 1))
        if self.variant == 8:
            return self.table((x % 0.5 * 20).floor().long().clamp(0, ROWS - 1))
        return self.table((x.unsqueeze(1) >= self.boundaries).sum(1))


class Numbers(Piece):
    """Dense values, scaled as rankers scale them."""

    variants = 34

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.register_buffer("mean", torch.randn(self.width))
        self.norm = nn.BatchNorm1d(self.width)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.slope = nn.Parameter(torch.rand(self.width))
        self.fields = nn.Parameter(torch.randn(self.width, self.width))

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        x = torch.randn(rows, self.width, generator=generator)
        if self.variant in (1, 2, 21, 26):
            x = x.abs()
        x = edged(x, (0.0, 1.0, 0.5, 3.0), generator)
        if self.variant in (3, 9, 20):
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
            9: lambda: torch.nan_to_num(x, nan=0.0, posinf=3.0, neginf=-3.0),
            10: lambda: (x - x.mean(1, keepdim=True)) / (x.std(1, unbiased=False)[:, None] + 1e-6),
            11: lambda: torch.where(x != 0, 1 / x.clamp(min=0.1), 0.0),
            12: lambda: torch.erf(x) + torch.sigmoid(1.702 * x) * x,
            13: lambda: functional.softplus(x, beta=2, threshold=5),
            14: lambda: functional.gelu(x, approximate="tanh") + functional.hardswish(x),
            15: lambda: functional.elu(x) + functional.selu(x) + functional.mish(x),
            16: lambda: (x * 10).round() / 10,
            17: lambda: x.trunc() + x.frac() * 2,
            18: lambda: torch.sin(x * 6.283185307) + torch.cos(x),
            19: lambda: torch.atan2(x, x.flip(1) + 0.5),
            20: lambda: torch.where(x.isnan(), 0.0, x) + x.isnan().float(),
            21: lambda: x.pow(0.25) + x.pow(2) + torch.rsqrt(x + 1.0),
            22: lambda: torch.logit(x.clamp(0, 1), eps=1e-6),
            23: lambda: torch.log10(x.clamp(min=1e-6)) + torch.expm1(x.clamp(max=2.0)),
            24: lambda: x.sort(1, descending=True).values.cumsum(1),
            25: lambda: (x / 0.5).softmax(1) + (x == x.amax(1, keepdim=True)).float(),
            26: lambda: torch.fmod(x, 1.0) + torch.remainder(x, 0.3),
            27: lambda: functional.layer_norm(x, (x.shape[1],), eps=1e-12),
            28: lambda: x.unsqueeze(1).mul(self.fields).sum(2),
            29: lambda: torch.where(x > 0, x, self.slope * x),
            30: lambda: (
                torch.sigmoid(self.norm(x)) * x + (1 - torch.sigmoid(self.norm(x))) * 0.1 * x
            ),
            31: lambda: x.logsumexp(1, keepdim=True) - x + x.argsort(1).argsort(1) * 0.1,
            32: lambda: functional.leaky_relu(x, 0.01).clamp(max=6.0) + functional.hardtanh(x),
            33: lambda: x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) + x.prod(1, keepdim=True),
        }
        return forms[self.variant]()


class Counts(Piece):
    """Rates of counted events."""

    variants = 8

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        shown = drawn((rows, self.width), 1000, generator)
        clicks = drawn((rows, self.width), 100, generator).minimum(shown)
        return {"clicks": clicks, "shown": shown}

    def forward(self, given: Batch) -> Tensor:
        clicks, shown = given["clicks"], given["shown"]
        if self.variant == 0:
            return clicks / (shown + 1e-5)
        if self.variant == 1:
            return (clicks + 1) / (shown + 20)
        if self.variant == 2:
            return (shown // clicks.clamp(min=1)).float().log1p()
        if self.variant == 4:
            return torch.where(shown > 0, clicks / shown.clamp(min=1), 0.0)
        if self.variant == 5:
            return torch.nan_to_num(clicks.float() / shown.float(), nan=0.0, posinf=1.0)
        if self.variant == 6:
            return (clicks % 7 - shown % 5).float() * 0.1 + (clicks > shown // 2).float()
        if self.variant == 7:
            return torch.div(shown - 500, 7, rounding_mode="trunc").float() / 100
        return torch.log1p(clicks.float()) - torch.log1p(shown.float())


class OneHot(Piece):
    """An id or a list of ids as zeros and ones, behind a linear."""

    variants = 5

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.linear = nn.Linear(ROWS, self.width)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        if self.variant == 0:
            return {"id": drawn(rows, ROWS, generator)}
        return {
            "id": drawn((rows, 3), ROWS, generator),
            "w": torch.rand(rows, 3, generator=generator),
        }

    def forward(self, given: Batch) -> Tensor:
        ids = given["id"]
        if self.variant == 0:
            return self.linear(functional.one_hot(ids, ROWS).float())
        empty = torch.zeros(ids.shape[0], ROWS)
        if self.variant == 1:
            return self.linear(empty.scatter(1, ids, 1.0))
        if self.variant == 3:
            return self.linear(empty.scatter_reduce(1, ids, given["w"], "amax"))
        if self.variant == 4:
            return self.linear((ids.unsqueeze(2) == torch.arange(ROWS)).any(1).float())
        return self.linear(empty.scatter_add(1, ids, given["w"]))


class Decay(Piece):
    """How long ago things happened."""

    variants = 3

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width)

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        now = drawn(rows, 1_800_000_000, generator, 1_500_000_000)
        ago = torch.randint(0, 90 * 86400, (rows, self.width), generator=generator)
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


class Crossed(Piece):
    """Two ids as one, or a value that weighs an id's row."""

    variants = 5

    def __init__(self, name: str, variant: int, form: Form) -> None:
        super().__init__(name, variant, form)
        self.table = nn.Embedding(ROWS, self.width)
        self.bag = nn.EmbeddingBag(ROWS, self.width, mode="sum")

    def inputs(self, rows: int, generator: torch.Generator) -> Batch:
        found = {"a": drawn(rows, 5, generator), "b": drawn(rows, 6, generator)}
        value = edged(torch.randn(rows, generator=generator), (0.0, -1.0), generator)
        return found | {"value": value} if self.variant > 2 else found

    def forward(self, given: Batch) -> Tensor:
        a, b = given["a"], given["b"]
        if self.variant == 0:
            return self.table(a * 6 + b)
        if self.variant == 1:
            return self.table(torch.minimum(a, b) * 5 + torch.maximum(a, b) % 5)
        if self.variant == 2:
            return self.bag(torch.stack([a, b + 5], 1))
        if self.variant == 3:
            return self.table(a) * given["value"].unsqueeze(1)
        both = torch.stack([given["value"], torch.ones_like(given["value"])], 1)
        return self.bag(torch.stack([a, b + 5], 1), per_sample_weights=both.float())
