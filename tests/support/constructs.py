"""Rankers made of what public bug reports complain of: every construct is an output of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ITEMS, WORDS, STEPS, WIDE = 30, 40, 5, 4
BOUNDARIES = (-1.0, 0.0, 0.1, 0.5, 2.0)
Rows = dict[str, Tensor]
#: A construct: the ranker and its features, to ``[B]`` or ``[B, k]``.
Construct = Callable[[Any, Mapping[str, Tensor]], Tensor]


class Ranker(nn.Module):
    """Constructs beside a tower that is wide enough for low formats.

    Attributes:
        constructs: By the output's name.
        left_out: Names of those that aren't computed.
    """

    constructs: Mapping[str, Construct]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left_out: frozenset[str] = frozenset()
        self.items, self.words = nn.Embedding(ITEMS, WIDE), nn.Embedding(WORDS, WIDE)
        self.tower = nn.Sequential(nn.Linear(2 * WIDE, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.score = nn.Linear(16, 1)

    def scores(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every construct's score ``[B]``, and the tower's."""
        made = {
            name: construct(self, features).flatten(1).sum(1)
            if construct(self, features).dim() > 1
            else construct(self, features)
            for name, construct in self.constructs.items()
            if name not in self.left_out
        }
        both = torch.cat([self.items(features["item"]), features["x"]], 1)
        return made | {"tower": self.score(self.tower(both)).squeeze(1)}


def held(f: Mapping[str, Tensor]) -> Tensor:
    """Where a history has a word, ``[B, STEPS]``."""
    return (f["words"] != 0).float()


def attended(rows: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(rows, rows, rows).mean(1)


def scattered(reduce: str) -> Construct:
    def score(m: Any, f: Mapping[str, Tensor]) -> Tensor:
        zeros = torch.zeros(len(f["words"]), WORDS)
        made = zeros.scatter_reduce(1, f["words"], f["shares"], reduce, include_self=False)
        return made * m.weights

    return score


class Histories(Ranker):
    """Pooled, attended, sorted and compared histories."""

    constructs: Mapping[str, Construct] = {
        "masked_mean": lambda m, f: (
            (m.words(f["words"]) * held(f)[..., None]).sum(1)
            / (held(f).sum(1, keepdim=True) + 1e-8)
        ),
        "log_of_nothing": lambda m, f: torch.log(held(f).mean(1) + 1e-9),
        "tiny_factors": lambda m, f: (f["x"] * 1e-5 + 1e-8).sum(1) / (held(f).mean(1) + 1e-5),
        "has_candidate": lambda m, f: (f["words"] == f["item"].unsqueeze(1)).any(1).float(),
        "counts_candidate": lambda m, f: (f["words"] == f["item"].unsqueeze(1)).float().sum(1),
        "scatter_mean": scattered("mean"),
        "scatter_largest": scattered("amax"),
        "scatter_product": scattered("prod"),
        "attention": lambda m, f: attended(m.words(f["words"])),
        "masked_softmax": lambda m, f: (
            torch.softmax(m.words(f["words"]).sum(2).masked_fill(held(f) == 0, -1e9), 1) @ m.steps
        ),
        "last_word": lambda m, f: m.words(f["words"])[
            torch.arange(len(f["words"])), (held(f).sum(1).long() - 1).clamp(min=0)
        ],
        "top_values": lambda m, f: torch.topk(f["shares"], 2).values * m.steps[:2],
        "top_of_ties": lambda m, f: torch.topk(f["words"].float(), 3).values * m.steps[:3],
        "sorted": lambda m, f: torch.sort(f["words"], 1, descending=True).values * m.steps,
        "first_largest": lambda m, f: f["words"].argmax(1).float(),
        "first_least": lambda m, f: f["shares"].round().argmin(1).float(),
        "running_sum": lambda m, f: torch.cumsum(f["words"], 1) * m.steps,
        "prefix_share": lambda m, f: torch.cumsum(f["shares"], 1) * m.steps,
        "longest": lambda m, f: (held(f) * torch.arange(1, STEPS + 1)).amax(1),
        "any_all": lambda m, f: (held(f).bool().all(1).long() * 2 + held(f).bool().any(1)).float(),
        "position": lambda m, f: m.words(torch.cumsum(held(f).long(), 1) * held(f).long()).sum(1),
    }

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.randn(WORDS))
        self.register_buffer("steps", torch.randn(STEPS))

    def forward(self, words: Tensor, shares: Tensor, item: Tensor, x: Tensor) -> dict[str, Tensor]:
        return self.scores({"words": words, "shares": shares, "item": item, "x": x})


class Numbers(Ranker):
    """Integers, times, boundaries, ids with bounds, missing values."""

    constructs: Mapping[str, Construct] = {
        "hour": lambda m, f: m.hours(f["time"] // 3600 % 24),
        "weekday": lambda m, f: m.hours(f["time"] // 86400 % 7),
        "hour_floored": lambda m, f: m.hours(
            torch.div(f["time"], 3600, rounding_mode="floor") % 24
        ),
        "quotient": lambda m, f: m.quotients(f["big"] // 1000 % 64),
        "remainder": lambda m, f: m.remainders(f["big"] % 1000),
        "hashed": lambda m, f: m.hashed(f["big"] * 2654435761 % 97),
        "rate": lambda m, f: (f["clicks"] // f["shows"]).float(),
        "rest": lambda m, f: (f["clicks"] % f["shows"]).float(),
        "truncated": lambda m, f: torch.fmod(f["clicks"], f["shows"]).float(),
        "share": lambda m, f: f["clicks"] / f["shows"],
        "price_step": lambda m, f: m.steps((f["price"] // 0.1).long().clamp(0, 199)),
        "price_rest": lambda m, f: f["price"] % 0.25,
        "bucket": lambda m, f: m.buckets(torch.bucketize(f["price"], m.boundaries)),
        "bucket_right": lambda m, f: m.buckets(
            torch.bucketize(f["price"], m.boundaries, right=True)
        ),
        "searched": lambda m, f: m.buckets(torch.searchsorted(m.boundaries, f["x"])).sum(1),
        "rounded": lambda m, f: torch.round(f["price"] * 10) / 10,
        "cut": lambda m, f: f["price"].int().float() + f["price"].trunc() + f["price"].floor(),
        "one_more": lambda m, f: m.items(f["maybe"] + 1),
        "at_least_0": lambda m, f: m.items(f["maybe"].clamp(min=0)),
        "in_place_of_missing": lambda m, f: m.items(torch.where(f["maybe"] < 0, 0, f["maybe"])),
        "relu_of_ids": lambda m, f: m.items(torch.relu(f["maybe"])),
        "one_hot": lambda m, f: F.one_hot(f["item"], ITEMS).float() * m.weights,
        "bits": lambda m, f: ((f["item"] & 7) ^ (f["item"] >> 1)).float(),
        "filled": lambda m, f: torch.where(f["gaps"].isnan(), m.fill, f["gaps"]),
        "no_numbers": lambda m, f: torch.nan_to_num(f["gaps"], 0.5, 1.0, -1.0),
        "known_mean": lambda m, f: (
            torch.where(f["gaps"].isnan(), 0.0, f["gaps"]).sum(1)
            / (~f["gaps"].isnan()).sum(1).clamp(min=1)
        ),
        "sign_root": lambda m, f: f["x"].sign() * f["x"].abs().sqrt(),
    }

    def __init__(self) -> None:
        super().__init__()
        self.hours, self.steps = nn.Embedding(24, WIDE), nn.Embedding(200, WIDE)
        self.quotients, self.remainders = nn.Embedding(64, WIDE), nn.Embedding(1000, WIDE)
        self.hashed, self.buckets = nn.Embedding(97, WIDE), nn.Embedding(6, WIDE)
        self.register_buffer("boundaries", torch.tensor(BOUNDARIES))
        self.register_buffer("weights", torch.randn(ITEMS))
        self.fill = nn.Parameter(torch.randn(WIDE))

    def forward(
        self,
        time: Tensor,
        big: Tensor,
        clicks: Tensor,
        shows: Tensor,
        price: Tensor,
        maybe: Tensor,
        gaps: Tensor,
        item: Tensor,
        x: Tensor,
    ) -> dict[str, Tensor]:
        named = {"time": time, "big": big, "clicks": clicks, "shows": shows, "price": price}
        return self.scores(named | {"maybe": maybe, "gaps": gaps, "item": item, "x": x})


class Parts(Ranker):
    """Recurrent layers, layers in bfloat16, normalized weights, hooks and unused inputs."""

    constructs: Mapping[str, Construct] = {
        "gru": lambda m, f: m.gru(m.words(f["words"]))[1][0],
        "lstm": lambda m, f: m.lstm(m.words(f["words"]))[0][:, -1],
        "lstm_projected": lambda m, f: m.projected(m.words(f["words"]))[0].mean(1),
        "self_attention": lambda m, f: m.attention(*[m.words(f["words"])] * 3)[0].sum(1),
        "half": lambda m, f: m.low(f["x"].bfloat16()).float(),
        "weight_norm": lambda m, f: m.normed(f["x"]),
        "hooked": lambda m, f: m.hooked(f["x"]),
        "layer_norm": lambda m, f: m.norm(f["x"]) * m.slope,
        "group_norm": lambda m, f: m.groups(f["x"]) * m.slope,
        "convolution": lambda m, f: m.convolution(m.words(f["words"]).transpose(1, 2)).amax(2),
        "prelu": lambda m, f: F.prelu(f["x"], m.slope),
    }

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDE, 3, batch_first=True)
        self.lstm = nn.LSTM(WIDE, 3, batch_first=True)
        self.projected = nn.LSTM(WIDE, 4, proj_size=2, batch_first=True)
        self.attention = nn.MultiheadAttention(WIDE, 2, batch_first=True)
        self.low = nn.Linear(WIDE, 3).bfloat16()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDE, 3))
        self.hooked = nn.Linear(WIDE, 2)
        self.hooked.register_forward_pre_hook(lambda module, args: (args[0] * 2 + 1,))
        self.norm, self.groups = nn.LayerNorm(WIDE), nn.GroupNorm(2, WIDE)
        self.convolution = nn.Conv1d(WIDE, 3, 2)
        self.slope = nn.Parameter(torch.rand(WIDE))
        self.register_forward_pre_hook(lambda module, args: args)

    def forward(self, words: Tensor, item: Tensor, x: Tensor, label: Tensor) -> dict[str, Tensor]:
        return self.scores({"words": words, "item": item, "x": x})


@dataclass(frozen=True)
class Case:
    """A ranker, its rows, and which features a request's candidates share.

    Attributes:
        make: The ranker.
        names: Its features, in order.
        shared: Features of the user.
    """

    make: Callable[[], Ranker]
    names: Sequence[str]
    shared: Sequence[str] = field(default=())


CASES = {
    "histories": Case(Histories, ("words", "shares", "item", "x"), ("words", "shares")),
    "numbers": Case(
        Numbers,
        ("time", "big", "clicks", "shows", "price", "maybe", "gaps", "item", "x"),
        ("time", "gaps"),
    ),
    "parts": Case(Parts, ("words", "item", "x", "label"), ("words",)),
}


def ordinary(count: int, seed: int) -> Rows:
    """Rows in which nothing is unusual, but histories of all lengths."""
    g = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (count, *shape), generator=g)

    longest = torch.arange(STEPS)[None] < drawn(0, STEPS + 1, 1)
    gaps = torch.rand(count, WIDE, generator=g) < 0.2
    numbers = torch.randn(count, WIDE, generator=g)
    return {
        "words": torch.where(longest, drawn(1, WORDS, STEPS), 0),
        "shares": torch.rand(count, STEPS, generator=g),
        "item": drawn(0, ITEMS),
        "x": torch.randn(count, WIDE, generator=g),
        "time": drawn(1_600_000_000, 1_700_000_000),
        "big": drawn(0, 2_000_000_000),
        "clicks": drawn(0, 50),
        "shows": drawn(1, 99),
        "price": torch.rand(count, generator=g) * 12,
        "maybe": drawn(-1, ITEMS - 1),
        "gaps": torch.where(gaps, torch.nan, numbers),
        "label": torch.zeros(count),
    }


def hostile() -> Rows:
    """Empty and full histories, ties, multiples, boundaries, extremes, missing values."""
    rows = ordinary(16, seed=99)
    rows["words"][:6] = torch.tensor(
        [[0] * 5, [7] * 5, [39, 1, 39, 1, 39], [0, 5, 0, 5, 0], [1, 2, 3, 4, 5], [39, 0, 0, 0, 0]]
    )
    rows["item"][:6] = torch.tensor([0, 7, 29, 5, 3, 29])
    rows["shares"][:3] = torch.tensor([[0.0] * 5, [1.0] * 5, [0.5, 0.25, 0.5, 0.25, 0.5]])
    rows["x"][:3] = torch.tensor([[0.0] * 4, [1.0] * 4, [-3.0, 3.0, -1e-30, 1e-30]])
    hours = [1_650_000_000 // 3600 * 3600 + off for off in (0, -1, 1, 3600, 3599, 86_400)]
    rows["time"] = torch.tensor([*hours, *range(1_649_980_800, 1_650_060_000, 8000)])[:16]
    rows["big"] = torch.tensor(
        [
            *(0, 999, 1000, 1001, 16_777_215, 16_777_216, 16_777_217, 999_999_999, 2**31 - 1),
            *(2**31, 2**33 + 1, -1, -1000, -999, 50_000_999, 33_554_433),
        ]
    )
    rows["clicks"][:8] = torch.tensor([0, 0, 99, 100, -7, -8, 2**31, 2**53 + 1])
    rows["shows"][:8] = torch.tensor([1, 99, 99, 7, 7, -7, 3, 10])
    steps = [0.0, 0.1, 0.3, 0.6, 1.2, 3.0, 10.1, -0.05, -1.0, 0.5, 2.0, 19.9, 0.7, 0.25, 0.05, 1.5]
    rows["price"] = torch.tensor(steps)
    rows["maybe"][:4] = torch.tensor([-1, 0, 28, -1])
    rows["gaps"][:3] = torch.tensor([[float("nan")] * 4, [0.0] * 4, [float("nan"), 1e3, -1e3, 0.0]])
    return rows


def picked(case: Case, rows: Rows) -> Rows:
    """The features that a ranker takes, in order."""
    return {name: rows[name] for name in case.names}
