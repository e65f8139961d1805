"""DCN (Wang et al. 2017, arXiv:1708.05123), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .cross import VectorCrossLayer
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class DCNConfig:
    """The sizes of a DCN.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dims: columns of each table; they need not be the same.
        cross_layers: number of cross layers, each a vector of weights over the input width.
        deep: widths of the deep MLP.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dims: tuple[int, ...]
    cross_layers: int = 6
    deep: tuple[int, ...] = (1024, 1024)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dims", "cross_layers", "deep")
        if len(self.embedding_dims) != len(self.cardinalities):
            raise ValueError(
                f"{len(self.cardinalities)} tables need as many widths, got {self.embedding_dims}"
            )

    @property
    def input_width(self) -> int:
        """Width of the concatenated dense input and embeddings."""
        return self.dense_features + sum(self.embedding_dims)


class DCN(nn.Module):
    """Cross layers and a deep MLP, side by side, over the dense input and embeddings.

    Tables have as many columns as their cardinality deserves, so they differ in width.
    """

    def __init__(self, config: DCNConfig) -> None:
        super().__init__()
        self.config = config
        width = config.input_width
        self.tables = nn.ModuleList(
            table
            for rows, columns in zip(config.cardinalities, config.embedding_dims, strict=True)
            for table in embedding_tables((rows,), columns)
        )
        self.cross = nn.ModuleList(VectorCrossLayer(width) for _ in range(config.cross_layers))
        self.deep = mlp((width, *config.deep), last_relu=True)
        self.head = nn.Linear(width + config.deep[-1], 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        x0 = torch.cat([dense, *embedded], dim=1)
        crossed = x0
        for layer in self.cross:
            crossed = layer(x0, crossed)
        logits: Tensor = self.head(torch.cat([crossed, self.deep(x0)], dim=1))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> DCN:
        """A DCN that captures and compiles in seconds, for tests."""
        return cls(DCNConfig((50, 31, 12, 100), 4, (8, 8, 4, 12), cross_layers=3, deep=(16, 8)))

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> DCN:
        """The DCN of the paper on Criteo, its tables capped at `max_rows` rows.

        Tables of `6 · cardinality^(1/4)` columns, by the cardinalities before the cap; six cross
        layers; two deep layers of 1024.
        """
        return cls(
            DCNConfig(
                criteo.bounded_cardinalities(max_rows),
                criteo.DENSE_FEATURES,
                tuple(int(6 * rows**0.25) for rows in criteo.TERABYTE_CARDINALITIES),
            )
        )
