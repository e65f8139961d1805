"""DIN (Zhou et al. 2018, arXiv:1706.06978), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from .layers import (
    check_positive,
    check_tables,
    embedding_tables,
    example_history,
    example_inputs,
)


@dataclass(frozen=True)
class DINConfig:
    """The sizes of a DIN.

    Attributes:
        cardinalities: rows of each table, one table per id feature of the user and the context.
        items: rows of the table that the history and the candidate share; row 0 is no item.
        dense_features: width of the dense input.
        history_length: items of a history.
        embedding_dim: columns of every table.
        attention: hidden widths of the attention's MLP; the score comes after them.
        deep: hidden widths of the MLP; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    items: int
    dense_features: int
    history_length: int = 100
    embedding_dim: int = 64
    attention: tuple[int, ...] = (80, 40)
    deep: tuple[int, ...] = (200, 80)

    def __post_init__(self) -> None:
        check_tables((*self.cardinalities, self.items))
        check_positive(self, "dense_features", "history_length", "embedding_dim")
        check_positive(self, "attention", "deep")


class Dice(nn.Module):
    """`p x + (1 - p) α x`, with p the sigmoid of the batch-normed input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Activates `[B, width]` float32."""
        p = torch.sigmoid(self.norm(x))
        return self.alpha * (1 - p) * x + p * x


class TargetAttention(nn.Module):
    """Weighs each item of a history by an MLP of it and the candidate; no softmax."""

    def __init__(self, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((4 * dim, *hidden)):
            layers += [nn.Linear(fan_in, fan_out), nn.Sigmoid()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, candidate: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Pools a history.

        Args:
            candidate: `[B, dim]` float32.
            history: `[B, L, dim]` float32.
            mask: `[B, L]` bool, true where the history has an item.

        Returns:
            `[B, dim]` float32.
        """
        query = candidate.unsqueeze(1).expand(-1, history.shape[1], -1)
        features = torch.cat([query, history, query - history, query * history], dim=-1)
        scores = self.mlp(features).transpose(1, 2)
        scores = torch.where(mask.unsqueeze(1), scores, torch.zeros_like(scores))
        return torch.matmul(scores, history).squeeze(1)


class DIN(nn.Module):
    """Features, the candidate, and the user's history as the candidate attends to it, in an MLP."""

    def __init__(self, config: DINConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embedding_dim
        self.tables = embedding_tables(config.cardinalities, dim)
        self.items = nn.Embedding(config.items, dim, padding_idx=0)
        self.attention = TargetAttention(dim, config.attention)
        layers: list[nn.Module] = []
        width = config.dense_features + (len(config.cardinalities) + 2) * dim
        for fan_in, fan_out in pairwise((width, *config.deep)):
            layers += [nn.Linear(fan_in, fan_out), Dice(fan_out)]
        self.deep = nn.Sequential(*layers, nn.Linear(config.deep[-1], 1))

    def forward(
        self, dense: Tensor, ids: Tensor, history: Tensor, mask: Tensor, candidate: Tensor
    ) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.
            history: `[B, history_length]` int64, ids of items; 0 after the last.
            mask: `[B, history_length]` bool, true where the history has an item.
            candidate: `[B]` int64, ids of items.

        Returns:
            Logits, `[B]` float32.
        """
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        target = self.items(candidate)
        interest = self.attention(target, self.items(history), mask)
        logits: Tensor = self.deep(torch.cat([dense, *embedded, target, interest], dim=1))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` valid rows, as `forward` takes them; the same at every call."""
        config = self.config
        dense, ids = example_inputs(
            (*config.cardinalities, config.items), config.dense_features, batch_size
        )
        history = example_history(config.items, config.history_length, batch_size)
        return dense, ids[:, :-1].contiguous(), history, history != 0, ids[:, -1].contiguous()

    @classmethod
    def small(cls) -> DIN:
        """A DIN that captures and compiles in seconds, for tests."""
        return cls(
            DINConfig(
                (50, 31, 12),
                100,
                4,
                history_length=6,
                embedding_dim=8,
                attention=(10, 5),
                deep=(16, 8),
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> DIN:
        """A DIN on the shape of Amazon Electronics, its tables capped at `max_rows` rows.

        192,403 users, 63,001 items and 801 categories; attention 80-40 and deep 200-80, as the
        authors' code has them; histories of 100. The two dense columns are ours.
        """
        users, items, categories = (min(rows, max_rows) for rows in (192_403, 63_001, 801))
        return cls(DINConfig((users, categories), items, 2))
