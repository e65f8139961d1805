"""DLRM (Naumov et al. 2019, arXiv:1906.00091), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class DLRMConfig:
    """The sizes of a DLRM.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table, and the last width of the bottom MLP.
        bottom: hidden widths of the bottom MLP; `embedding_dim` comes after them.
        top: hidden widths of the top MLP; the logit comes after them.
        bag_size: ids per feature and row. 1 looks one row up; more sums that many rows.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 64
    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (512, 256)
    bag_size: int = 1

    def __post_init__(self) -> None:
        if not self.cardinalities or min(self.cardinalities) < 1:
            raise ValueError(f"every table needs at least one row, got {self.cardinalities}")
        if min(self.dense_features, self.embedding_dim, self.bag_size) < 1:
            raise ValueError(f"dense_features, embedding_dim and bag_size must be positive: {self}")


class DLRM(nn.Module):
    """Tables and a bottom MLP, their pairwise dot products, and a top MLP.

    Deliberately naive: one lookup per table, a full `bmm` of which only the triangle is kept, the
    triangle taken by two index lists, and two concatenations. That is what users bring, and what
    the compiler has to see through.
    """

    def __init__(self, config: DLRMConfig) -> None:
        super().__init__()
        self.config = config
        self.tables = embedding_tables(
            config.cardinalities, config.embedding_dim, bags=config.bag_size > 1
        )
        self.bottom = mlp(
            (config.dense_features, *config.bottom, config.embedding_dim), last_relu=True
        )
        vectors = len(config.cardinalities) + 1
        # The strict lower triangle: each pair once, no vector with itself.
        self.triangle_rows = [i for i in range(vectors) for _ in range(i)]
        self.triangle_columns = [j for i in range(vectors) for j in range(i)]
        interaction_width = config.embedding_dim + len(self.triangle_rows)
        self.top = mlp((interaction_width, *config.top, 1), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64; `[B, n_tables, bag_size]` if `bag_size` is over 1.

        Returns:
            Logits, `[B]` float32.
        """
        bottom = self.bottom(dense)
        vectors = [bottom] + [table(ids[:, i]) for i, table in enumerate(self.tables)]
        stacked = torch.cat(vectors, dim=1).view(-1, len(vectors), self.config.embedding_dim)
        dots = torch.bmm(stacked, torch.transpose(stacked, 1, 2))
        triangle = dots[:, self.triangle_rows, self.triangle_columns]
        logits: Tensor = self.top(torch.cat([bottom, triangle], dim=1))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(
            config.cardinalities, config.dense_features, batch_size, config.bag_size
        )

    @classmethod
    def small(cls) -> DLRM:
        """A DLRM that captures and compiles in seconds, for tests."""
        return cls(DLRMConfig((50, 31, 12, 100), 4, embedding_dim=8, bottom=(16,), top=(16, 8)))

    @classmethod
    def small_multihot(cls) -> DLRM:
        """`small()` with bags of three ids per feature."""
        return cls(
            DLRMConfig((50, 31, 12, 100), 4, embedding_dim=8, bottom=(16,), top=(16, 8), bag_size=3)
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> DLRM:
        """The DLRM that MLPerf trains on Criteo Terabyte, its tables capped at `max_rows` rows.

        Bottom 13-512-256-128, 26 tables of 128 columns, top 479-1024-1024-512-256-1.
        """
        return cls(
            DLRMConfig(
                criteo.bounded_cardinalities(max_rows),
                criteo.DENSE_FEATURES,
                embedding_dim=128,
                bottom=(512, 256),
                top=(1024, 1024, 512, 256),
            )
        )

    @classmethod
    def paper_multihot(cls, max_rows: int = 100_000) -> DLRM:
        """A DLRM of half of `paper()`'s width whose features are bags of ten ids each."""
        return cls(
            DLRMConfig(
                criteo.bounded_cardinalities(max_rows),
                criteo.DENSE_FEATURES,
                embedding_dim=64,
                bottom=(512, 256),
                top=(512, 256),
                bag_size=10,
            )
        )
