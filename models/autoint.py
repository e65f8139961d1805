"""AutoInt (Song et al. 2019, arXiv:1810.11921), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class AutoIntConfig:
    """The sizes of an AutoInt.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input; each column is a field too.
        embedding_dim: columns of every table, and of a dense column's vector.
        layers: number of interacting layers.
        heads: attention heads of a layer.
        head_dim: columns of a head.
        deep: hidden widths of an MLP beside the attention (AutoInt+); empty for none.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 16
    layers: int = 3
    heads: int = 2
    head_dim: int = 32
    deep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "layers", "heads", "head_dim")


class InteractingLayer(nn.Module):
    """Multi-head self-attention over the fields of a row, with a projected shortcut and a ReLU."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key = nn.Linear(dim, heads * head_dim, bias=False)
        self.value = nn.Linear(dim, heads * head_dim, bias=False)
        self.shortcut = nn.Linear(dim, heads * head_dim, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Interacts `[B, n_fields, dim]` to `[B, n_fields, heads * head_dim]`, float32."""
        batch, n_fields, _ = fields.shape
        shape = (batch, n_fields, self.heads, self.head_dim)
        query = self.query(fields).view(shape).transpose(1, 2)
        key = self.key(fields).view(shape).transpose(1, 2)
        value = self.value(fields).view(shape).transpose(1, 2)
        attention = torch.softmax(torch.matmul(query, key.transpose(2, 3)), dim=-1)
        mixed = torch.matmul(attention, value).transpose(1, 2).contiguous()
        mixed = mixed.view(batch, n_fields, self.heads * self.head_dim)
        return torch.relu(mixed + self.shortcut(fields))


class AutoInt(nn.Module):
    """Fields that attend to one another, and optionally a deep MLP, whose logits are added."""

    def __init__(self, config: AutoIntConfig) -> None:
        super().__init__()
        self.config = config
        dim, attended = config.embedding_dim, config.heads * config.head_dim
        self.tables = embedding_tables(config.cardinalities, dim)
        # A dense column is its value times a vector of its own, as in the paper.
        self.dense_vectors = nn.Parameter(0.1 * torch.randn(config.dense_features, dim))
        self.attention = nn.ModuleList(
            InteractingLayer(attended if layer else dim, config.heads, config.head_dim)
            for layer in range(config.layers)
        )
        n_fields = len(config.cardinalities) + config.dense_features
        self.head = nn.Linear(n_fields * attended, 1)
        self.deep = mlp((n_fields * dim, *config.deep, 1), last_relu=False) if config.deep else None

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        embedded = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        fields = torch.cat([embedded, dense.unsqueeze(2) * self.dense_vectors], dim=1)
        attended = fields
        for layer in self.attention:
            attended = layer(attended)
        logits: Tensor = self.head(torch.flatten(attended, start_dim=1))
        if self.deep is not None:
            logits = logits + self.deep(torch.flatten(fields, start_dim=1))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> AutoInt:
        """An AutoInt+ that captures and compiles in seconds, for tests."""
        return cls(
            AutoIntConfig(
                (50, 31, 12, 100), 4, embedding_dim=8, layers=2, heads=2, head_dim=4, deep=(16,)
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> AutoInt:
        """The AutoInt of the paper on the shape of Criteo, its tables capped at `max_rows` rows.

        16 columns per table, three interacting layers of two heads of 32, over 39 fields.
        """
        return cls(AutoIntConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
