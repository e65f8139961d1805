"""Random rankers of what real ones are made of: pieces, widths, lengths and dtypes drawn.

A ranker is a few pieces under one interaction. Several of them side by side are one module, whose
outputs are their scores: what is computed once for a module is paid once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from random_pieces import (
    Batch,
    Bucket,
    Counts,
    Crossed,
    Decay,
    Form,
    Hour,
    Id,
    Numbers,
    OneHot,
    Piece,
    QuotientRemainder,
)
from random_sequences import Encoder, History, Masked, Recurrent, Target
from torch import Tensor, nn
from torch.nn import functional

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
    Crossed,
    Recurrent,
    Encoder,
    Masked,
)
TOPS = (
    *("mlp", "fm", "cross", "gate", "senet", "attention", "normed", "dot"),
    *("experts", "bilinear", "compressed", "masked"),
)
FORMS = (
    Form(),
    Form(1, 1, torch.int32, torch.float64, torch.float32),
    Form(16, 6, torch.int32, torch.float32, torch.int64, taken=True),
    Form(3, 9, torch.float32, torch.float16, torch.bool),
    Form(7, 2, torch.float64, torch.bfloat16, torch.int32),
    Form(5, 3, torch.uint8, torch.float64, torch.float32, taken=True),
    Form(17, 5, torch.int16, torch.float16, torch.float64, taken=True),
)
#: Values that hardly any traffic holds.
_HOSTILE = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e-42, 1e6, -1e6, torch.nan, torch.inf, -torch.inf)
_HOSTILE_WHOLE = (0, 1, -1, -2, 255, 2**24 + 1, 2**31 - 1, -(2**31), 2**31, 2**53 + 1)


class RandomRanker(nn.Module):
    """Pieces side by side, one interaction above them, one or two tasks.

    Args:
        pieces: Kind and variant of each.
        top: The interaction.
        tasks: 1, or 2 whose second is the product of both, as in ESMM.
        seed: Of the weights.
        form: Widths and dtypes.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[int, int]],
        top: str,
        tasks: int = 1,
        seed: int = 0,
        form: Form = FORMS[0],
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pieces = nn.ModuleList(
            PIECES[kind](f"p{place}", variant, form) for place, (kind, variant) in enumerate(pieces)
        )
        self.top = top
        self.tasks = tasks
        self.form = form
        self.width = form.width
        wide = form.width * len(pieces)
        self.first = nn.Linear(wide, 8)
        self.second = nn.Linear(8, tasks)
        self.cross = nn.Linear(wide, wide)
        self.gate = nn.Linear(wide, len(pieces))
        self.norm = nn.LayerNorm(form.width)
        self.pair = nn.Linear(form.width, form.width, bias=False)
        self.compress = nn.Conv1d(len(pieces), len(pieces), 1)
        self.experts = nn.ModuleList(nn.Linear(wide, wide) for _ in range(2))
        self.eval()
        sample = self._drawn(512, 7)
        self.dtypes = {name: self._given(value) for name, value in sample.items()}
        self.plain = {name: value.dtype for name, value in sample.items()}
        self.taken = [form.taken and self._takes(piece) for piece in self.pieces]

    def inputs(self, rows: int, seed: int) -> Batch:
        """Rows of all pieces, as traffic holds them."""
        drawn = self._drawn(rows, seed)
        return {name: value.to(self.dtypes[name]) for name, value in drawn.items()}

    def hostile(self, rows: int, seed: int) -> Batch:
        """Rows of which a feature in six holds what hardly any traffic does."""
        generator = torch.Generator().manual_seed(seed)
        found = {n: _attacked(value, generator) for n, value in self.inputs(rows, seed).items()}
        for name, value in found.items():
            if value.is_floating_point() and not self.plain[name].is_floating_point:
                # A cast of what no integer can be gives what the processor happens to.
                found[name] = value.nan_to_num(0.0, 0.0, 0.0).trunc()
        return found

    def forward(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        made = []
        for piece, taken in zip(self.pieces, self.taken, strict=True):
            made.append(piece(self._own(piece, batch, taken=taken)).float())
        fields = self._interacted(torch.stack(made, 1))
        hidden = functional.relu(self.first(fields.flatten(1)))
        logits = self.second(hidden)
        if self.tasks == 1:
            return logits.squeeze(1)
        click, buy = logits.sigmoid().unbind(1)
        return {"click": click, "both": click * buy}

    def _drawn(self, rows: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for piece in self.pieces:
            for name, value in piece.inputs(rows, generator).items():
                found[f"{piece.name}_{name}"] = value
        return found

    def _given(self, value: Tensor) -> torch.dtype:
        """The dtype a feature is given in: the form's, where its values fit."""
        if value.dtype is torch.bool:
            return self.form.masks
        if value.is_floating_point():
            return self.form.floats
        wanted = self.form.integers
        if wanted.is_floating_point:
            exact = 2**24 if wanted is torch.float32 else 2**53
            return wanted if int(value.abs().max()) < exact else torch.int64
        fits = torch.iinfo(wanted)
        held = fits.min <= int(value.min()) and int(value.max()) <= fits.max
        return wanted if held else torch.int64

    def _own(self, piece: Piece, batch: Batch, *, taken: bool) -> Batch:
        """A piece's features, cast as rankers cast them, unless it takes them as they are."""
        start = f"{piece.name}_"
        own = {}
        for name, value in batch.items():
            if not name.startswith(start):
                continue
            plain = self.plain[name]
            kept = taken and value.is_floating_point() == plain.is_floating_point
            own[name.removeprefix(start)] = (
                value if kept or plain is torch.bool else value.to(plain)
            )
        return own

    def _takes(self, piece: Piece) -> bool:
        """Whether PyTorch computes a piece on the dtypes that its features are given in."""
        try:
            with torch.no_grad():
                piece(self._own(piece, self.inputs(4, 3), taken=True))
        except (RuntimeError, IndexError, NotImplementedError):
            return False
        return True

    def _interacted(self, fields: Tensor) -> Tensor:
        flat = fields.flatten(1)
        pairs = fields @ fields.transpose(1, 2)
        if self.top == "fm":
            second = 0.5 * (fields.sum(1) ** 2 - (fields**2).sum(1))
            return fields + second.unsqueeze(1)
        if self.top == "cross":
            return (flat * self.cross(flat) + flat).view_as(fields)
        if self.top == "gate":
            return fields * self.gate(flat).softmax(1).unsqueeze(2)
        if self.top == "senet":
            return fields * self.gate(fields.mean(2).repeat(1, self.width)).sigmoid().unsqueeze(2)
        if self.top == "attention":
            return (pairs / self.width**0.5).softmax(2) @ fields
        if self.top == "dot":
            low, high = torch.tril_indices(fields.shape[1], fields.shape[1])
            return fields + pairs[:, low, high].mean(1).view(-1, 1, 1)
        if self.top == "experts":
            weights = self.gate(flat)[:, :1].sigmoid()
            first, second = (functional.relu(expert(flat)) for expert in self.experts)
            return (weights * first + (1 - weights) * second).view_as(fields)
        if self.top == "bilinear":
            return self.pair(fields) * fields.flip(1)
        if self.top == "compressed":
            return functional.relu(self.compress(fields * fields[:, :1]))
        if self.top == "masked":
            return (self.cross(flat).relu() * functional.layer_norm(flat, flat.shape[1:])).view_as(
                fields
            )
        return self.norm(fields) if self.top == "normed" else fields


class Several(nn.Module):
    """Rankers side by side, each with scores and features of its own."""

    def __init__(self, rankers: Sequence[RandomRanker]) -> None:
        super().__init__()
        self.rankers = nn.ModuleList(rankers)
        self.eval()

    def inputs(self, rows: int, seed: int) -> Batch:
        """Rows of all rankers."""
        return self._together([ranker.inputs(rows, seed) for ranker in self.rankers])

    def hostile(self, rows: int, seed: int) -> Batch:
        """Hostile rows of all rankers, in the same places."""
        return self._together([ranker.hostile(rows, seed) for ranker in self.rankers])

    def own(self, place: int, batch: Batch) -> Batch:
        """The features of one ranker."""
        start = f"r{place}_"
        return {n.removeprefix(start): v for n, v in batch.items() if n.startswith(start)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        found = {}
        for place, ranker in enumerate(self.rankers):
            scores = ranker(self.own(place, batch))
            named = scores if isinstance(scores, dict) else {"score": scores}
            found |= {f"r{place}_{name}": score for name, score in named.items()}
        return found

    def _together(self, batches: Sequence[Batch]) -> Batch:
        return {f"r{p}_{n}": v for p, batch in enumerate(batches) for n, v in batch.items()}


def _attacked(value: Tensor, generator: torch.Generator) -> Tensor:
    """Values of which whole rows, or places in them, are others."""
    rows = len(value)
    if value.dtype is torch.bool:
        other = torch.randint(0, 2, (rows,), generator=generator).bool()
    elif value.is_floating_point():
        chosen = torch.randint(len(_HOSTILE), (rows,), generator=generator)
        other = torch.tensor(_HOSTILE, dtype=value.dtype)[chosen]
    else:
        fits = torch.iinfo(value.dtype)
        known = [n for n in (*_HOSTILE_WHOLE, fits.max, fits.min) if fits.min <= n <= fits.max]
        chosen = torch.randint(len(known), (rows,), generator=generator)
        other = torch.tensor(known, dtype=value.dtype)[chosen]
    shape = (rows, *[1] * (value.dim() - 1))
    hit = torch.rand(shape, generator=generator) < 1 / 6
    whole = torch.rand(shape, generator=generator) < 0.5
    some = torch.rand(value.shape, generator=generator) < 0.3
    return torch.where(hit & (whole | some), other.view(shape), value)


def every_variant(together: int) -> list[RandomRanker]:
    """Every variant of every piece once, so many in one ranker, below each interaction in turn."""
    known = [(kind, n) for kind, piece in enumerate(PIECES) for n in range(piece.variants)]
    count = -(-len(known) // together)
    return [
        RandomRanker(known[i::count], TOPS[i % len(TOPS)], 1 + i % 2, i, FORMS[i % len(FORMS)])
        for i in range(count)
    ]


_FORMS = st.builds(
    Form,
    width=st.sampled_from((1, 3, 4, 5, 8, 16, 17)),
    length=st.sampled_from((1, 2, 5, 6, 9)),
    integers=st.sampled_from(
        (torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32, torch.float64)
    ),
    floats=st.sampled_from((torch.float32, torch.float64, torch.float16, torch.bfloat16)),
    masks=st.sampled_from((torch.bool, torch.int64, torch.int32, torch.float32, torch.float64)),
    taken=st.booleans(),
)


@st.composite
def rankers(draw: st.DrawFn, most: int = 5) -> RandomRanker:
    """Rankers of one to so many pieces."""
    kinds = draw(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=most))
    pieces = [(kind, draw(st.integers(0, PIECES[kind].variants - 1))) for kind in kinds]
    top = draw(st.sampled_from(TOPS))
    return RandomRanker(
        pieces, top, draw(st.integers(1, 2)), draw(st.integers(0, 99)), draw(_FORMS)
    )
