"""A two-sided ranker whose candidates attend to the user's history (after arXiv:1905.06874).

The user's features are the same for every candidate of a request, and so is whatever is computed
from them alone: the user's tables and MLP, and the keys and values of the history.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import (
    check_positive,
    check_tables,
    embedding_tables,
    example_history,
    example_inputs,
    mlp,
)


@dataclass(frozen=True)
class TwoSidedConfig:
    """The sizes of a two-sided ranker.

    Attributes:
        user_cardinalities: rows of each table of the user's id features.
        user_dense_features: width of the user's dense input.
        item_cardinalities: rows of each table of the item's id features. The first feature is the
            item itself, of which the user's history consists, in the same table; id 0 is no item.
        item_dense_features: width of the item's dense input.
        history_length: items of a history.
        embedding_dim: columns of every table.
        heads: attention heads.
        user_mlp: widths of the MLP over the user's features.
        item_mlp: widths of the MLP over the item's features.
        top: hidden widths of the MLP over both; the logit comes after them.
    """

    user_cardinalities: tuple[int, ...]
    user_dense_features: int
    item_cardinalities: tuple[int, ...]
    item_dense_features: int
    history_length: int = 50
    embedding_dim: int = 64
    heads: int = 4
    user_mlp: tuple[int, ...] = (512, 256)
    item_mlp: tuple[int, ...] = (256, 128)
    top: tuple[int, ...] = (512, 256)

    def __post_init__(self) -> None:
        check_tables(self.user_cardinalities)
        check_tables(self.item_cardinalities)
        check_positive(self, "user_dense_features", "item_dense_features", "history_length")
        check_positive(self, "embedding_dim", "heads", "user_mlp", "item_mlp")
        if self.embedding_dim % self.heads:
            raise ValueError(f"{self.heads} heads can't share {self.embedding_dim} columns evenly")


class HistoryAttention(nn.Module):
    """Multi-head attention of one candidate over the items of a history."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, candidate: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Pools a history.

        Args:
            candidate: `[B, dim]` float32.
            history: `[B, L, dim]` float32.
            mask: `[B, L]` bool, true where the history has an item.

        Returns:
            `[B, dim]` float32.
        """
        batch, length, dim = history.shape
        shape = (batch, -1, self.heads, self.head_dim)
        query = self.query(candidate.unsqueeze(1)).view(shape).transpose(1, 2)
        key = self.key(history).view(shape).permute(0, 2, 3, 1)
        value = self.value(history).view(shape).transpose(1, 2)
        scores = torch.matmul(query, key) / math.sqrt(self.head_dim)
        # A finite fill, so that an empty history has even weights and no NaN.
        scores = scores.masked_fill(~mask.view(batch, 1, 1, length), -1e9)
        pooled = torch.matmul(torch.softmax(scores, dim=-1), value)
        attended: Tensor = self.output(pooled.transpose(1, 2).reshape(batch, dim))
        return attended


class TwoSided(nn.Module):
    """An MLP over the user's side, one over the item's, attention from one to the other, and a top.

    Deliberately computes everything per row, as if each candidate had a user of its own.
    """

    def __init__(self, config: TwoSidedConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embedding_dim
        self.user_tables = embedding_tables(config.user_cardinalities, dim)
        self.item_tables = embedding_tables(config.item_cardinalities, dim)
        user_width = config.user_dense_features + len(config.user_cardinalities) * dim
        item_width = config.item_dense_features + len(config.item_cardinalities) * dim
        self.user_mlp = mlp((user_width, *config.user_mlp), last_relu=True)
        self.item_mlp = mlp((item_width, *config.item_mlp), last_relu=True)
        self.attention = HistoryAttention(dim, config.heads)
        width = config.user_mlp[-1] + config.item_mlp[-1] + dim
        self.top = mlp((width, *config.top, 1), last_relu=False)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Scores a batch of pairs of a user and an item.

        Args:
            features: `user_dense` and `item_dense`, `[B, dense_features]` float32 each;
                `user_ids` and `item_ids`, `[B, n_tables]` int64 each; and `user_history`,
                `[B, history_length]` int64, ids of items and 0 after the last.

        Returns:
            Logits, `[B]` float32.
        """
        user_ids, item_ids = features["user_ids"], features["item_ids"]
        user = [table(user_ids[:, i]) for i, table in enumerate(self.user_tables)]
        item = [table(item_ids[:, i]) for i, table in enumerate(self.item_tables)]
        history = features["user_history"]
        attended = self.attention(item[0], self.item_tables[0](history), history != 0)
        user_hidden = self.user_mlp(torch.cat([features["user_dense"], *user], dim=1))
        item_hidden = self.item_mlp(torch.cat([features["item_dense"], *item], dim=1))
        logits: Tensor = self.top(torch.cat([user_hidden, attended, item_hidden], dim=1))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[dict[str, Tensor]]:
        """Gives `batch_size` rows of valid features; the same at every call."""
        config = self.config
        user_dense, user_ids = example_inputs(
            config.user_cardinalities, config.user_dense_features, batch_size
        )
        item_dense, item_ids = example_inputs(
            config.item_cardinalities, config.item_dense_features, batch_size
        )
        features = {
            "user_dense": user_dense,
            "user_ids": user_ids,
            "user_history": example_history(
                config.item_cardinalities[0], config.history_length, batch_size
            ),
            "item_dense": item_dense,
            "item_ids": item_ids,
        }
        return (features,)

    @classmethod
    def small(cls) -> TwoSided:
        """A two-sided ranker that captures and compiles in seconds, for tests."""
        return cls(
            TwoSidedConfig(
                (50, 31),
                4,
                (100, 12),
                3,
                history_length=6,
                embedding_dim=8,
                heads=2,
                user_mlp=(16, 8),
                item_mlp=(12,),
                top=(16,),
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> TwoSided:
        """A two-sided ranker of production size; no paper gives these sizes.

        Half of Criteo's features stand for the user and half for the item; tables of 64 columns,
        capped at `max_rows` rows; histories of 50; four heads.
        """
        rows = criteo.bounded_cardinalities(max_rows)
        return cls(TwoSidedConfig(rows[1:13], 7, (rows[0], *rows[13:]), 6))
