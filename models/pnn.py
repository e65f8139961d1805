"""PNN with inner products (Qu et al. 2016, arXiv:1611.00144), written the way torchfm writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class PNNConfig:
    """The sizes of a product-based neural network.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        deep: hidden widths of the MLP; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 10
    deep: tuple[int, ...] = (400, 400, 400)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "deep")
        if len(self.cardinalities) < 2:
            raise ValueError(f"pairs need at least two tables, got {self.cardinalities}")


class InnerProduct(nn.Module):
    """The dot product of each pair of fields, by two index lists and no matrix product."""

    def __init__(self, n_fields: int) -> None:
        super().__init__()
        self.rows = [i for i in range(n_fields - 1) for _ in range(i + 1, n_fields)]
        self.columns = [j for i in range(n_fields - 1) for j in range(i + 1, n_fields)]

    def forward(self, fields: Tensor) -> Tensor:
        """Interacts `[B, n_fields, dim]` to `[B, n_pairs]`, float32."""
        return torch.sum(fields[:, self.rows] * fields[:, self.columns], dim=2)


class PNN(nn.Module):
    """An MLP over the embeddings and the dot products of all pairs of them."""

    def __init__(self, config: PNNConfig) -> None:
        super().__init__()
        self.config = config
        n_fields = len(config.cardinalities)
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.products = InnerProduct(n_fields)
        pairs = n_fields * (n_fields - 1) // 2
        width = config.dense_features + n_fields * config.embedding_dim + pairs
        self.deep = mlp((width, *config.deep, 1), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        embedded = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        products = self.products(embedded.view(-1, len(self.tables), self.config.embedding_dim))
        logits: Tensor = self.deep(torch.cat([dense, embedded, products], dim=1))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> PNN:
        """A PNN that captures and compiles in seconds, for tests."""
        return cls(PNNConfig((50, 31, 12, 100), 4, embedding_dim=8, deep=(16, 8)))

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> PNN:
        """An inner-product PNN on the shape of Criteo, its tables capped at `max_rows` rows.

        Ten columns per table and deep 400-400-400, as DeepFM's paper compares it.
        """
        return cls(PNNConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
