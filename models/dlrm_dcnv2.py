"""DLRM-DCNv2, the multi-hot model of MLPerf since v3.0, written the way torchrec writes it.

The reference is mlcommons/inference, recommendation/dlrm_v2: DLRM with the low-rank cross network
of DCN V2 (Wang et al. 2021, arXiv:2008.13535) in the place of the dot products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .cross import LowRankCrossLayer
from .layers import check_positive, check_tables, embedding_tables, mlp


@dataclass(frozen=True)
class DLRMDCNv2Config:
    """The sizes of a DLRM-DCNv2.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        bag_sizes: ids per row of each feature, whose rows of the table are summed.
        dense_features: width of the dense input.
        embedding_dim: columns of every table, and the last width of the dense MLP.
        bottom: hidden widths of the dense MLP; `embedding_dim` comes after them.
        cross_layers: number of low-rank cross layers.
        rank: columns of a cross layer's two matrices.
        top: hidden widths of the over MLP; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    bag_sizes: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 128
    bottom: tuple[int, ...] = (512, 256)
    cross_layers: int = 3
    rank: int = 512
    top: tuple[int, ...] = (1024, 1024, 512, 256)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(
            self, "bag_sizes", "dense_features", "embedding_dim", "cross_layers", "rank", "top"
        )
        if len(self.bag_sizes) != len(self.cardinalities):
            raise ValueError(
                f"{len(self.cardinalities)} tables need as many bag sizes, got {self.bag_sizes}"
            )


class DLRMDCNv2(nn.Module):
    """Bags of ids summed per table, a dense MLP, low-rank cross layers over both, and an MLP."""

    def __init__(self, config: DLRMDCNv2Config) -> None:
        super().__init__()
        self.config = config
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim, bags=True)
        self.bottom = mlp(
            (config.dense_features, *config.bottom, config.embedding_dim), last_relu=True
        )
        width = (len(config.cardinalities) + 1) * config.embedding_dim
        self.cross = nn.ModuleList(
            LowRankCrossLayer(width, config.rank) for _ in range(config.cross_layers)
        )
        self.top = mlp((width, *config.top, 1), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, sum(bag_sizes)]` int64: the bags of all features side by side.

        Returns:
            Logits, `[B]` float32.
        """
        bags = torch.split(ids, list(self.config.bag_sizes), dim=1)
        pooled = [table(bag) for table, bag in zip(self.tables, bags, strict=True)]
        vectors = torch.stack([self.bottom(dense), *pooled], dim=1)
        x0 = torch.flatten(vectors, start_dim=1)
        crossed = x0
        for layer in self.cross:
            crossed = layer(x0, crossed)
        logits: Tensor = self.top(crossed)
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        generator = torch.Generator().manual_seed(0)
        dense = torch.randn(batch_size, config.dense_features, generator=generator)
        bags = [
            torch.randint(rows, (batch_size, size), generator=generator)
            for rows, size in zip(config.cardinalities, config.bag_sizes, strict=True)
        ]
        return dense, torch.cat(bags, dim=1)

    @classmethod
    def small(cls) -> DLRMDCNv2:
        """A DLRM-DCNv2 that captures and compiles in seconds, for tests."""
        return cls(
            DLRMDCNv2Config(
                (50, 31, 12, 100),
                (3, 1, 2, 5),
                4,
                embedding_dim=8,
                bottom=(16,),
                cross_layers=2,
                rank=6,
                top=(16, 8),
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> DLRMDCNv2:
        """MLPerf's DLRM-DCNv2 on multi-hot Criteo, its tables capped at `max_rows` rows.

        26 tables of 128 columns and 214 lookups a row, dense 13-512-256-128, three cross layers of
        rank 512 over 3456, over 3456-1024-1024-512-256-1.
        """
        return cls(
            DLRMDCNv2Config(
                criteo.bounded_cardinalities(max_rows, criteo.MULTIHOT_CARDINALITIES),
                criteo.MULTIHOT_BAG_SIZES,
                criteo.DENSE_FEATURES,
            )
        )
