"""DHEN (Zhang et al. 2022, arXiv:2203.11014): layers that ensemble interaction modules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


class Interaction(Enum):
    """What an interaction module of a layer does."""

    DOT = "dot"
    CROSS = "cross"
    ATTENTION = "attention"
    LINEAR = "linear"
    CONVOLUTION = "convolution"


class Ensemble(Enum):
    """How the outputs of a layer's modules become one."""

    CONCAT = "concat"  # their tokens side by side
    SUM = "sum"  # their tokens added


@dataclass(frozen=True)
class DHENConfig:
    """The sizes of a DHEN.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table and of every token.
        bottom: hidden widths of the dense input's MLP; `embedding_dim` comes after them.
        layers: number of layers.
        interactions: the modules of every layer.
        module_tokens: tokens that each module gives.
        ensemble: how the modules' outputs become one.
        dot_hidden: hidden widths of the MLP over the dot products.
        heads: attention heads.
        feedforward: width of the hidden layer after the attention.
        top: hidden widths of the MLP over the last layer; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 64
    bottom: tuple[int, ...] = (256,)
    layers: int = 3
    interactions: tuple[Interaction, ...] = tuple(Interaction)
    module_tokens: int = 5
    ensemble: Ensemble = Ensemble.CONCAT
    dot_hidden: tuple[int, ...] = (256,)
    heads: int = 2
    feedforward: int = 128
    top: tuple[int, ...] = (512, 256)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "layers", "module_tokens")
        check_positive(self, "dot_hidden", "heads", "feedforward")
        if not self.interactions:
            raise ValueError("a layer needs at least one interaction")
        if self.embedding_dim % self.heads:
            raise ValueError(f"{self.heads} heads can't share {self.embedding_dim} columns evenly")

    @property
    def layer_tokens(self) -> int:
        """Tokens that a layer gives."""
        concatenated = self.ensemble is Ensemble.CONCAT
        return self.module_tokens * (len(self.interactions) if concatenated else 1)


class TokenLinear(nn.Module):
    """`W X`: mixes tokens and leaves columns alone."""

    def __init__(self, tokens: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `[B, tokens, dim]` into `[B, outputs, dim]`, float32."""
        mixed: Tensor = self.linear(x.transpose(1, 2)).transpose(1, 2)
        return mixed


class Dot(nn.Module):
    """AdvancedDLRM: dot products of all pairs of tokens beside the first token, in an MLP."""

    def __init__(self, tokens: int, dim: int, outputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs, self.dim = outputs, dim
        self.register_buffer(
            "triangle", torch.tril_indices(tokens, tokens, offset=-1), persistent=False
        )
        pairs = tokens * (tokens - 1) // 2
        self.mlp = mlp((dim + pairs, *hidden), last_relu=True)
        self.projection = nn.Linear(hidden[-1], outputs * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Interacts `[B, tokens, dim]` to `[B, outputs, dim]`, float32."""
        dots = torch.matmul(x, x.transpose(1, 2))
        triangle = self.get_buffer("triangle")
        pairs = dots[:, triangle[0], triangle[1]]
        hidden = self.mlp(torch.cat([x[:, 0], pairs], dim=1))
        tokens: Tensor = self.projection(hidden).view(-1, self.outputs, self.dim)
        return tokens


class FlatCross(nn.Module):
    """`x * (W x + b)` over all columns of all tokens, without the shortcut, then token mixing."""

    def __init__(self, tokens: int, dim: int, outputs: int) -> None:
        super().__init__()
        self.cross = nn.Linear(tokens * dim, tokens * dim)
        self.mix = TokenLinear(tokens, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Interacts `[B, tokens, dim]` to `[B, outputs, dim]`, float32."""
        flat = torch.flatten(x, start_dim=1)
        crossed = (flat * self.cross(flat)).view(x.shape)
        tokens: Tensor = self.mix(crossed)
        return tokens


class Attention(nn.Module):
    """A transformer's encoder layer over the tokens, then token mixing."""

    def __init__(self, tokens: int, dim: int, outputs: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(dim, heads, feedforward, batch_first=True)
        self.mix = TokenLinear(tokens, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Interacts `[B, tokens, dim]` to `[B, outputs, dim]`, float32."""
        tokens: Tensor = self.mix(self.encoder(x))
        return tokens


class Convolution(nn.Module):
    """A 3×3 convolution over the tokens as an image, then token mixing."""

    def __init__(self, tokens: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.mix = TokenLinear(tokens, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Interacts `[B, tokens, dim]` to `[B, outputs, dim]`, float32."""
        tokens: Tensor = self.mix(self.convolution(x.unsqueeze(1)).squeeze(1))
        return tokens


class DHENLayer(nn.Module):
    """`Norm(Ensemble_i Interaction_i(X) + ShortCut(X))`."""

    def __init__(self, config: DHENConfig, tokens: int) -> None:
        super().__init__()
        self.ensemble = config.ensemble
        self.interactions = nn.ModuleList(
            _interaction(kind, config, tokens) for kind in config.interactions
        )
        same = tokens == config.layer_tokens
        self.shortcut = nn.Identity() if same else TokenLinear(tokens, config.layer_tokens)
        self.norm = nn.LayerNorm(config.embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Interacts `[B, tokens, dim]` to `[B, layer_tokens, dim]`, float32."""
        outputs = [interaction(x) for interaction in self.interactions]
        if self.ensemble is Ensemble.CONCAT:
            joined = torch.cat(outputs, dim=1)
        else:
            joined = torch.stack(outputs, dim=0).sum(dim=0)
        normed: Tensor = self.norm(joined + self.shortcut(x))
        return normed


class DHEN(nn.Module):
    """Tables and a bottom MLP as tokens, layers of interactions, and a top MLP."""

    def __init__(self, config: DHENConfig) -> None:
        super().__init__()
        self.config = config
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.bottom = mlp(
            (config.dense_features, *config.bottom, config.embedding_dim), last_relu=True
        )
        first = len(config.cardinalities) + 1
        self.layers = nn.ModuleList(
            DHENLayer(config, config.layer_tokens if layer else first)
            for layer in range(config.layers)
        )
        self.top = mlp(
            (config.layer_tokens * config.embedding_dim, *config.top, 1), last_relu=False
        )

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        x = torch.stack([self.bottom(dense), *embedded], dim=1)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.top(torch.flatten(x, start_dim=1))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> DHEN:
        """A DHEN that captures and compiles in seconds, for tests.

        All five interactions; the first layer's shortcut is projected, the second's isn't.
        """
        return cls(
            DHENConfig(
                (50, 31, 12, 100),
                4,
                embedding_dim=8,
                bottom=(16,),
                layers=2,
                module_tokens=2,
                dot_hidden=(12,),
                feedforward=16,
                top=(16,),
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> DHEN:
        """A DHEN on the shape of Criteo, its tables capped at `max_rows` rows.

        The paper names no widths; these make about 10 million multiplications a row: three layers
        of all five interactions, 25 tokens of 64 columns.
        """
        return cls(DHENConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))


def _interaction(kind: Interaction, config: DHENConfig, tokens: int) -> nn.Module:
    dim, outputs = config.embedding_dim, config.module_tokens
    if kind is Interaction.DOT:
        return Dot(tokens, dim, outputs, config.dot_hidden)
    if kind is Interaction.CROSS:
        return FlatCross(tokens, dim, outputs)
    if kind is Interaction.ATTENTION:
        return Attention(tokens, dim, outputs, config.heads, config.feedforward)
    if kind is Interaction.LINEAR:
        return TokenLinear(tokens, outputs)
    return Convolution(tokens, outputs)
