"""Random small models made of the interactions that public code writes, each in several ways.

`interacting_models` is a hypothesis strategy of modules over fields ``[B, n, d]``;
`Interactions` is one module that has something for every pass over interactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Of a model: ids per row, columns of a table, and a seed for its weights."""

    fields: int
    width: int
    seed: int


class Attention(nn.Module):
    """Self-attention over rows, its heads cut and joined in one of four ways."""

    def __init__(self, sizes: Sizes, heads: int, way: str, *, biased: bool) -> None:
        super().__init__()
        self.heads, self.way = heads, way
        inner = heads * max(2, sizes.width // heads)
        make = lambda: nn.Linear(sizes.width, inner, bias=biased)  # noqa: E731
        self.query, self.key, self.value = make(), make(), make()
        self.out = nn.Linear(inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        batch, rows, inner = q.shape
        depth = inner // self.heads
        if self.way == "split":
            q, k, v = (torch.stack(torch.split(each, depth, dim=2)) for each in (q, k, v))
            scores = torch.einsum("hbqd,hbkd->hbqk", q, k) / depth**0.5
            weights = torch.softmax(scores, dim=-1)
            mixed = torch.cat(torch.split(torch.matmul(weights, v), 1), dim=-1).squeeze(0)
        elif self.way == "rows first":
            q, k, v = (
                each.transpose(0, 1).reshape(rows, batch * self.heads, depth).transpose(0, 1)
                for each in (q, k, v)
            )
            weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / depth**0.5, dim=-1)
            mixed = torch.bmm(weights, v).transpose(0, 1).reshape(rows, batch, inner)
            return x + self.out(mixed).transpose(0, 1)
        else:
            shape = (batch, rows, self.heads, depth)
            q, k, v = (each.view(shape).transpose(1, 2) for each in (q, k, v))
            if self.way == "whole":
                mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            else:
                mixed = torch.softmax(q @ k.transpose(2, 3) * 0.5, dim=-1) @ v
            mixed = mixed.transpose(1, 2).reshape(batch, rows, inner)
        return x + self.out(mixed)


class Mixed(nn.Module):
    """A linear over rows, after a convolution of one channel or not."""

    def __init__(self, sizes: Sizes, outputs: int, *, convolved: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, (3, 3), padding=1) if convolved else None
        self.linear = nn.Linear(sizes.fields, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.convolution is not None:
            x = self.convolution(x.unsqueeze(1)).squeeze(1)
        mixed: Tensor = self.linear(x.transpose(1, 2)).transpose(1, 2)
        return mixed


class Crosses(nn.Module):
    """DCN's cross layers over flat rows, with a vector or a column, biases here or there."""

    def __init__(self, width: int, layers: int, way: str) -> None:
        super().__init__()
        self.way = way
        self.weights = nn.ModuleList(
            nn.Linear(width, 1, bias=way == "in the linear") for _ in range(layers)
        )
        self.biases = nn.ParameterList(torch.randn(width) * 0.1 for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        crossed, first = x, x.unsqueeze(2)
        for linear, bias in zip(self.weights, self.biases, strict=True):
            if self.way == "columns":
                dot = torch.matmul(first, linear(crossed).unsqueeze(2))
                crossed = (dot + bias[:, None] + crossed.unsqueeze(2)).squeeze(2)
            elif self.way == "in the linear":
                crossed = x * linear(crossed) + crossed
            else:
                crossed = x * linear(crossed) + bias + crossed
        return crossed


class Compressed(nn.Module):
    """A CIN, its outer products by broadcasting or by einsum."""

    def __init__(self, sizes: Sizes, maps: tuple[int, ...], way: str) -> None:
        super().__init__()
        self.way = way
        inputs = (sizes.fields, *maps)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(sizes.fields * before, after, 1) for before, after in pairwise(inputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden, pooled = x, []
        for convolution in self.convolutions:
            if self.way == "einsum":
                outer = torch.einsum("bhd,bmd->bhmd", hidden, x)
            else:
                outer = x.unsqueeze(2) * hidden.unsqueeze(1)
            hidden = torch.relu(convolution(outer.flatten(1, 2)))
            pooled.append(hidden)
        return torch.cat(pooled, 1).sum(2)


class Pairs(nn.Module):
    """Products of pairs of rows: elementwise, bilinear with shared or own matrices, or dots."""

    def __init__(self, sizes: Sizes, way: str) -> None:
        super().__init__()
        self.way = way
        self.pairs = list(combinations(range(sizes.fields), 2))
        count = {"own": len(self.pairs), "each": sizes.fields}.get(way, 1)
        self.linears = nn.ModuleList(
            nn.Linear(sizes.width, sizes.width, bias=False) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.split(x, 1, dim=1)
        if self.way == "dots":
            dots = torch.matmul(x, x.transpose(1, 2))
            left, right = zip(*self.pairs, strict=True)
            return dots[:, list(left), list(right)]
        if self.way == "plain":
            return torch.cat([rows[i] * rows[j] for i, j in self.pairs], 1).flatten(1)
        products = []
        for pair, (i, j) in enumerate(self.pairs):
            matrix = {"own": pair, "each": i}.get(self.way, 0)
            products.append(self.linears[matrix](rows[i]) * rows[j])
        return torch.cat(products, 1).flatten(1)


class Attended(nn.Module):
    """Rows weighed by a small net of each and the first, as in AFM and DIN."""

    def __init__(self, sizes: Sizes, way: str) -> None:
        super().__init__()
        self.way = way
        self.hidden = nn.Linear(4 * sizes.width if way == "target" else sizes.width, 5)
        self.score = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "target":
            query = x[:, :1].expand(-1, x.shape[1], -1)
            features = torch.cat([query, x, query - x, query * x], -1)
            weights = self.score(torch.sigmoid(self.hidden(features)))
        else:
            weights = torch.softmax(self.score(torch.relu(self.hidden(x))), 1)
        return (weights * x).sum(1)


class Experts(nn.Module):
    """A mixture of low-rank experts as DCN V2 has them, over columns, or over rows."""

    def __init__(self, width: int, count: int, way: str) -> None:
        super().__init__()
        self.way = way
        self.down = nn.ModuleList(nn.Linear(width, 3, bias=False) for _ in range(count))
        self.up = nn.ModuleList(nn.Linear(3, width) for _ in range(count))
        self.gates = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        experts = [self._expert(x, *pair) for pair in zip(self.down, self.up, strict=True)]
        weights = torch.stack([gate(x) for gate in self.gates], 1).softmax(1)
        return torch.matmul(torch.stack(experts, 2), weights).squeeze(2) + x

    def _expert(self, x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
        if self.way == "columns":
            inner = torch.tanh(torch.matmul(down.weight, x.unsqueeze(2)))
            made = torch.matmul(up.weight, inner) + up.bias.unsqueeze(1)
            return (x.unsqueeze(2) * made).squeeze(2)
        made = up(torch.tanh(down(x)))
        return x * made if self.way == "crossed" else made


class Turned(nn.Module):
    """Elementwise operators between transposes that undo one another."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(torch.relu(x.transpose(1, 2)), [1, x.shape[2] - 1], dim=1)
        return (torch.cat([second, first], 1) * 0.5).transpose(1, 2)


class Ranker(nn.Module):
    """Tables, then layers over their rows, then heads over the rows, added up."""

    def __init__(
        self,
        sizes: Sizes,
        layers: list[Callable[[Sizes], nn.Module]],
        heads: list[Callable[[Sizes], nn.Module]],
    ) -> None:
        super().__init__()
        torch.manual_seed(sizes.seed)
        self.sizes = sizes
        self.tables = nn.ModuleList(nn.Embedding(9, sizes.width) for _ in range(sizes.fields))
        self.layers = nn.ModuleList(make(sizes) for make in layers)
        self.heads = nn.ModuleList(make(sizes) for make in heads)
        self.tops = nn.ModuleList(nn.LazyLinear(1) for _ in heads)
        self(*self.example_inputs())

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        for layer in self.layers:
            x = layer(x)
        heads = zip(self.heads, self.tops, strict=True)
        score: Tensor = sum(top(head(x).flatten(1)) for head, top in heads)  # type: ignore[assignment]
        return score.squeeze(1)

    def example_inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.sizes.seed)
        return (torch.randint(9, (5, self.sizes.fields), generator=generator),)


class _Flat(nn.Module):
    """A module over flat rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x.flatten(1))
        return found


_LAYERS = st.one_of(
    st.builds(
        lambda heads, way, biased: lambda sizes: Attention(sizes, heads, way, biased=biased),
        st.integers(1, 3),
        st.sampled_from(["split", "rows first", "whole", "viewed"]),
        st.booleans(),
    ),
    st.just(lambda sizes: Turned()),
    st.builds(
        lambda convolved: lambda sizes: Mixed(sizes, sizes.fields, convolved=convolved),
        st.booleans(),
    ),
)
_HEADS = st.one_of(
    st.just(lambda sizes: nn.Identity()),
    st.builds(
        lambda outputs, convolved: lambda sizes: Mixed(sizes, outputs, convolved=convolved),
        st.integers(1, 4),
        st.booleans(),
    ),
    st.builds(
        lambda layers, way: lambda sizes: _Flat(Crosses(sizes.fields * sizes.width, layers, way)),
        st.integers(1, 4),
        st.sampled_from(["columns", "in the linear", "beside it"]),
    ),
    st.builds(
        lambda maps, way: lambda sizes: Compressed(sizes, tuple(maps), way),
        st.lists(st.integers(1, 5), min_size=1, max_size=3),
        st.sampled_from(["einsum", "broadcast"]),
    ),
    st.builds(
        lambda way: lambda sizes: Pairs(sizes, way),
        st.sampled_from(["own", "each", "all", "plain", "dots"]),
    ),
    st.builds(lambda way: lambda sizes: Attended(sizes, way), st.sampled_from(["target", "rows"])),
    st.builds(
        lambda count, way: lambda sizes: _Flat(Experts(sizes.fields * sizes.width, count, way)),
        st.integers(1, 3),
        st.sampled_from(["columns", "crossed", "plain"]),
    ),
)
_SIZES = st.builds(Sizes, st.integers(2, 6), st.sampled_from([4, 6, 8, 40]), st.integers(0, 2**16))
#: Rankers of up to two layers over rows and up to three heads, in eval mode.
interacting_models = st.builds(
    lambda sizes, layers, heads: Ranker(sizes, layers, heads).eval(),
    _SIZES,
    st.lists(_LAYERS, max_size=2),
    st.lists(_HEADS, min_size=1, max_size=3),
)


class Interactions(Ranker):
    """Something for every pass over interactions."""

    def __init__(self) -> None:
        super().__init__(
            Sizes(5, 40, seed=1),
            [
                lambda sizes: Attention(sizes, 2, "viewed", biased=True),
                lambda sizes: Attention(sizes, 1, "rows first", biased=False),
                lambda sizes: Turned(),
            ],
            [
                lambda sizes: nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 3)),
                lambda sizes: Mixed(sizes, 3, convolved=True),
                lambda sizes: _Flat(Crosses(200, 3, "beside it")),
                lambda sizes: Compressed(sizes, (4, 3), "broadcast"),
                lambda sizes: Pairs(sizes, "own"),
                lambda sizes: Attended(sizes, "target"),
                lambda sizes: Attended(sizes, "rows"),
                lambda sizes: _Flat(Experts(200, 3, "columns")),
            ],
        )
