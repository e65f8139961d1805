"""DeepFM (Guo et al. 2017, arXiv:1703.04247), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import (
    FirstOrder,
    check_positive,
    check_tables,
    embedding_tables,
    example_inputs,
    mlp,
)


@dataclass(frozen=True)
class DeepFMConfig:
    """The sizes of a DeepFM.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        deep: hidden widths of the deep MLP; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 10
    deep: tuple[int, ...] = (400, 400, 400)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "deep")


class FactorizationMachine(nn.Module):
    """The sum of the dot products of all pairs of fields, as half a difference of squares."""

    def forward(self, fields: Tensor) -> Tensor:
        """Interacts `[B, n_fields, dim]` to `[B, 1]`, float32."""
        square_of_sum = torch.sum(fields, dim=1) ** 2
        sum_of_squares = torch.sum(fields**2, dim=1)
        return 0.5 * torch.sum(square_of_sum - sum_of_squares, dim=1, keepdim=True)


class DeepFM(nn.Module):
    """First-order terms, a factorization machine and a deep MLP, whose logits are added."""

    def __init__(self, config: DeepFMConfig) -> None:
        super().__init__()
        self.config = config
        self.first_order = FirstOrder(config.cardinalities, config.dense_features)
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.fm = FactorizationMachine()
        width = config.dense_features + len(config.cardinalities) * config.embedding_dim
        self.deep = mlp((width, *config.deep, 1), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        fields = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        deep = self.deep(torch.cat([dense, fields.flatten(1)], dim=1))
        logits: Tensor = self.first_order(dense, ids) + self.fm(fields) + deep
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> DeepFM:
        """A DeepFM that captures and compiles in seconds, for tests."""
        return cls(DeepFMConfig((50, 31, 12, 100), 4, embedding_dim=8, deep=(16, 8)))

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> DeepFM:
        """The DeepFM of the paper on the shape of Criteo, its tables capped at `max_rows` rows.

        Ten columns per table, deep 400-400-400.
        """
        return cls(DeepFMConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
