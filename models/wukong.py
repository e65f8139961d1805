"""Wukong (Zhang et al. 2024, arXiv:2403.02545): stacked factorization machines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class WukongConfig:
    """The sizes of a Wukong.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table and of every embedding.
        bottom: hidden widths of the dense input's MLP; `embedding_dim` comes after them.
        layers: number of layers; layer i interacts up to 2^i embeddings (counted from 1).
        fm_embeddings: embeddings that a factorization machine block gives, the paper's n_F.
        linear_embeddings: embeddings that a linear compression block gives, the paper's n_L.
        rank: columns that the products of all pairs are projected to, the paper's k.
        fm_hidden: hidden widths of a factorization machine block's MLP.
        top: hidden widths of the MLP over the last layer; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 160
    bottom: tuple[int, ...] = (512,)
    layers: int = 4
    fm_embeddings: int = 16
    linear_embeddings: int = 16
    rank: int = 24
    fm_hidden: tuple[int, ...] = (512,)
    top: tuple[int, ...] = (1024, 512, 256)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "layers", "rank")
        check_positive(self, "fm_embeddings", "linear_embeddings")


class FactorizationMachineBlock(nn.Module):
    """`reshape(MLP(LN(flatten(X Xᵀ Y))))`.

    Deliberately in the order of the formula: all pairs of embeddings first, then the projection.
    """

    def __init__(
        self, embeddings: int, dim: int, outputs: int, rank: int, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.outputs, self.dim = outputs, dim
        self.projection = nn.Parameter(nn.init.xavier_uniform_(torch.empty(embeddings, rank)))
        self.norm = nn.LayerNorm(embeddings * rank)
        self.mlp = mlp((embeddings * rank, *hidden, outputs * dim), last_relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """Interacts `[B, embeddings, dim]` to `[B, outputs, dim]`, float32."""
        pairs = torch.bmm(x, x.transpose(1, 2))
        projected = torch.matmul(pairs, self.projection)
        hidden: Tensor = self.mlp(self.norm(torch.flatten(projected, start_dim=1)))
        return hidden.view(-1, self.outputs, self.dim)


class LinearCompressionBlock(nn.Module):
    """`W X`: mixes embeddings and leaves columns alone."""

    def __init__(self, embeddings: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(outputs, embeddings)))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `[B, embeddings, dim]` into `[B, outputs, dim]`, float32."""
        return torch.matmul(self.weight, x)


class WukongLayer(nn.Module):
    """`LN(concat(FMB(X), LCB(X)) + X)`, with the shortcut compressed where sizes differ."""

    def __init__(self, config: WukongConfig, embeddings: int) -> None:
        super().__init__()
        dim, outputs = config.embedding_dim, config.fm_embeddings + config.linear_embeddings
        self.fm = FactorizationMachineBlock(
            embeddings, dim, config.fm_embeddings, config.rank, config.fm_hidden
        )
        self.linear = LinearCompressionBlock(embeddings, config.linear_embeddings)
        same = embeddings == outputs
        self.shortcut = nn.Identity() if same else LinearCompressionBlock(embeddings, outputs)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Interacts `[B, embeddings, dim]` to `[B, n_F + n_L, dim]`, float32."""
        joined = torch.cat([self.fm(x), self.linear(x)], dim=1)
        normed: Tensor = self.norm(joined + self.shortcut(x))
        return normed


class Wukong(nn.Module):
    """Tables and a bottom MLP as embeddings, stacked factorization machines, and a top MLP."""

    def __init__(self, config: WukongConfig) -> None:
        super().__init__()
        self.config = config
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.bottom = mlp(
            (config.dense_features, *config.bottom, config.embedding_dim), last_relu=True
        )
        first = len(config.cardinalities) + 1
        later = config.fm_embeddings + config.linear_embeddings
        self.layers = nn.ModuleList(
            WukongLayer(config, later if layer else first) for layer in range(config.layers)
        )
        self.top = mlp((later * config.embedding_dim, *config.top, 1), last_relu=False)

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
    def small(cls) -> Wukong:
        """A Wukong that captures and compiles in seconds, for tests.

        The first layer's shortcut is compressed, the second's isn't.
        """
        return cls(
            WukongConfig(
                (50, 31, 12, 100),
                4,
                embedding_dim=8,
                bottom=(16,),
                layers=2,
                fm_embeddings=4,
                linear_embeddings=2,
                rank=3,
                fm_hidden=(16,),
                top=(16,),
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> Wukong:
        """A Wukong on the shape of Criteo, its tables capped at `max_rows` rows.

        160 columns as in the paper, whose depth and widths grow with its budget; this has four
        layers of 16 + 16 embeddings, rank 24 and one hidden layer of 512 per block.
        """
        return cls(WukongConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
