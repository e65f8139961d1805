"""A two-tower model (Yi et al. 2019, doi:10.1145/3298689.3346996), as retrieval code writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


class Similarity(Enum):
    """How a user's and an item's vector are compared."""

    DOT = "dot"
    COSINE = "cosine"


@dataclass(frozen=True)
class TwoTowerConfig:
    """The sizes of a two-tower model.

    Attributes:
        user_cardinalities: rows of each table of the user's id features.
        user_dense_features: width of the user's dense input.
        item_cardinalities: rows of each table of the item's id features.
        item_dense_features: width of the item's dense input.
        embedding_dim: columns of every table.
        user_tower: hidden widths of the user's MLP.
        item_tower: hidden widths of the item's MLP.
        output_dim: width of the vectors that are compared.
        similarity: how they are compared.
        temperature: what the similarity is divided by before training; learned from there.
    """

    user_cardinalities: tuple[int, ...]
    user_dense_features: int
    item_cardinalities: tuple[int, ...]
    item_dense_features: int
    embedding_dim: int = 64
    user_tower: tuple[int, ...] = (1024, 512)
    item_tower: tuple[int, ...] = (1024, 512)
    output_dim: int = 128
    similarity: Similarity = Similarity.COSINE
    temperature: float = 0.05

    def __post_init__(self) -> None:
        check_tables(self.user_cardinalities)
        check_tables(self.item_cardinalities)
        check_positive(self, "user_dense_features", "item_dense_features", "embedding_dim")
        check_positive(self, "output_dim")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class Tower(nn.Module):
    """Tables and an MLP over the features of one side."""

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        dense_features: int,
        embedding_dim: int,
        widths: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.tables = embedding_tables(cardinalities, embedding_dim)
        width = dense_features + len(cardinalities) * embedding_dim
        self.mlp = mlp((width, *widths), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Encodes `dense` `[B, dense_features]` and `ids` `[B, n_tables]`; `[B, widths[-1]]`."""
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        vector: Tensor = self.mlp(torch.cat([dense, *embedded], dim=1))
        return vector


class TwoTower(nn.Module):
    """A tower per side and the similarity of their vectors, times a learned inverse temperature."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.user = Tower(
            config.user_cardinalities,
            config.user_dense_features,
            config.embedding_dim,
            (*config.user_tower, config.output_dim),
        )
        self.item = Tower(
            config.item_cardinalities,
            config.item_dense_features,
            config.embedding_dim,
            (*config.item_tower, config.output_dim),
        )
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Scores a batch of pairs of a user and an item.

        Args:
            features: `user_dense` and `item_dense`, `[B, dense_features]` float32 each, and
                `user_ids` and `item_ids`, `[B, n_tables]` int64 each.

        Returns:
            Logits, `[B]` float32.
        """
        user = self.user(features["user_dense"], features["user_ids"])
        item = self.item(features["item_dense"], features["item_ids"])
        if self.config.similarity is Similarity.COSINE:
            user, item = F.normalize(user, dim=1), F.normalize(item, dim=1)
        logits: Tensor = (user * item).sum(dim=1) * self.log_scale.exp()
        return logits

    def example_inputs(self, batch_size: int = 4) -> tuple[dict[str, Tensor]]:
        """Gives `batch_size` rows of valid features; the same at every call."""
        config = self.config
        user_dense, user_ids = example_inputs(
            config.user_cardinalities, config.user_dense_features, batch_size
        )
        item_dense, item_ids = example_inputs(
            config.item_cardinalities, config.item_dense_features, batch_size
        )
        features = {"user_dense": user_dense, "user_ids": user_ids}
        return ({**features, "item_dense": item_dense, "item_ids": item_ids},)

    @classmethod
    def small(cls) -> TwoTower:
        """A two-tower model that captures and compiles in seconds, for tests."""
        return cls(
            TwoTowerConfig(
                (50, 31),
                4,
                (12, 100),
                3,
                embedding_dim=8,
                user_tower=(16,),
                item_tower=(12,),
                output_dim=8,
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> TwoTower:
        """Towers 1024-512-128 as in the paper, on the shape of Criteo.

        Half of Criteo's features stand for the user and half for the item, whose meaning nobody
        knows; tables of 64 columns, capped at `max_rows` rows.
        """
        rows = criteo.bounded_cardinalities(max_rows)
        return cls(TwoTowerConfig(rows[:13], 7, rows[13:], 6))
