"""DCN V2 (Wang et al. 2021, arXiv:2008.13535), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from . import criteo
from .cross import CrossLayer, LowRankCrossLayer, MixtureCrossLayer
from .layers import check_positive, embedding_tables, example_inputs, mlp


class Structure(Enum):
    """How the cross layers and the deep MLP are joined (figure 1 of the paper)."""

    PARALLEL = "parallel"  # both read the input; their outputs are concatenated
    STACKED = "stacked"  # the MLP reads the output of the cross layers


class Cross(Enum):
    """What a cross layer multiplies by."""

    FULL = "full"  # a square matrix over the input width
    LOW_RANK = "low-rank"  # a product of two thin matrices
    MIXTURE = "mixture"  # a gated mixture of low-rank experts


@dataclass(frozen=True)
class DCNv2Config:
    """The sizes of a DCN V2.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        cross_layers: number of cross layers.
        deep: widths of the deep MLP.
        structure: how the two are joined.
        cross: the kind of the cross layers.
        rank: columns of the thin matrices of a low-rank layer or expert; else not used.
        experts: low-rank experts per layer of a mixture; else not used.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 32
    cross_layers: int = 3
    deep: tuple[int, ...] = (512, 256)
    structure: Structure = Structure.PARALLEL
    cross: Cross = Cross.FULL
    rank: int = 64
    experts: int = 4

    def __post_init__(self) -> None:
        if not self.cardinalities or min(self.cardinalities) < 1:
            raise ValueError(f"every table needs at least one row, got {self.cardinalities}")
        if not self.deep or min(self.dense_features, self.embedding_dim, self.cross_layers) < 1:
            raise ValueError(
                "dense_features, embedding_dim and cross_layers must be positive, and deep not "
                f"empty: {self}"
            )
        check_positive(self, "rank", "experts")

    @property
    def input_width(self) -> int:
        """Width of the concatenated dense input and embeddings."""
        return self.dense_features + len(self.cardinalities) * self.embedding_dim


class DCNv2(nn.Module):
    """Cross layers and a deep MLP over the concatenated dense input and embeddings."""

    def __init__(self, config: DCNv2Config) -> None:
        super().__init__()
        self.config = config
        width = config.input_width
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.cross = nn.ModuleList(_cross_layer(config) for _ in range(config.cross_layers))
        self.deep = mlp((width, *config.deep), last_relu=True)
        head_width = config.deep[-1]
        if config.structure is Structure.PARALLEL:
            head_width += width
        self.head = nn.Linear(head_width, 1)

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
        if self.config.structure is Structure.STACKED:
            features = self.deep(crossed)
        else:
            features = torch.cat([crossed, self.deep(x0)], dim=1)
        logits: Tensor = self.head(features)
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> DCNv2:
        """A DCN V2 that captures and compiles in seconds, for tests."""
        return cls(DCNv2Config((50, 31, 12, 100), 4, embedding_dim=8, cross_layers=2, deep=(16, 8)))

    @classmethod
    def small_lowrank(cls) -> DCNv2:
        """`small()` with cross layers of rank 6, stacked."""
        return cls(
            DCNv2Config(
                (50, 31, 12, 100),
                4,
                embedding_dim=8,
                cross_layers=2,
                deep=(16, 8),
                structure=Structure.STACKED,
                cross=Cross.LOW_RANK,
                rank=6,
            )
        )

    @classmethod
    def small_mixture(cls) -> DCNv2:
        """`small()` with cross layers of three experts of rank 6."""
        return cls(
            DCNv2Config(
                (50, 31, 12, 100),
                4,
                embedding_dim=8,
                cross_layers=2,
                deep=(16, 8),
                cross=Cross.MIXTURE,
                rank=6,
                experts=3,
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000, cross: Cross = Cross.FULL) -> DCNv2:
        """A DCN V2 of production size on the shape of Criteo, tables capped at `max_rows` rows.

        The paper searches the widths of the MLP, the depth of the cross network and vocabulary
        dependent embedding sizes; this takes one size for all tables (39 columns, the paper's
        average) and three cross layers over the resulting 1027 inputs. The rank of low-rank layers
        and of each of four experts is about a quarter of that, as the paper advises.
        """
        return cls(
            DCNv2Config(
                criteo.bounded_cardinalities(max_rows),
                criteo.DENSE_FEATURES,
                embedding_dim=39,
                cross_layers=3,
                deep=(768, 768),
                cross=cross,
                rank=256,
            )
        )

    @classmethod
    def paper_lowrank(cls, max_rows: int = 100_000) -> DCNv2:
        """`paper()` with cross layers of rank 256."""
        return cls.paper(max_rows, Cross.LOW_RANK)

    @classmethod
    def paper_mixture(cls, max_rows: int = 100_000) -> DCNv2:
        """`paper()` with cross layers of four experts of rank 256."""
        return cls.paper(max_rows, Cross.MIXTURE)


def _cross_layer(config: DCNv2Config) -> nn.Module:
    if config.cross is Cross.LOW_RANK:
        return LowRankCrossLayer(config.input_width, config.rank)
    if config.cross is Cross.MIXTURE:
        return MixtureCrossLayer(config.input_width, config.rank, config.experts)
    return CrossLayer(config.input_width)
