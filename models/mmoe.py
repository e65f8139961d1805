"""MMoE (Ma et al. 2018, doi:10.1145/3219819.3220007), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class MMoEConfig:
    """The sizes of an MMoE.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        tasks: names of the tasks.
        experts: number of experts.
        expert: widths of an expert.
        tower: hidden widths of a task's tower; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 32
    tasks: tuple[str, ...] = ("click", "like", "share")
    experts: int = 8
    expert: tuple[int, ...] = (512, 256)
    tower: tuple[int, ...] = (128, 64)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "experts", "expert")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks need names, all different, got {self.tasks}")


class MMoE(nn.Module):
    """Experts that all tasks share, a softmax gate over them per task, and a tower per task."""

    def __init__(self, config: MMoEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dense_features + len(config.cardinalities) * config.embedding_dim
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.experts = nn.ModuleList(
            mlp((width, *config.expert), last_relu=True) for _ in range(config.experts)
        )
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(width, config.experts, bias=False), nn.Softmax(dim=-1))
            for _ in config.tasks
        )
        self.towers = nn.ModuleList(
            mlp((config.expert[-1], *config.tower, 1), last_relu=False) for _ in config.tasks
        )

    def forward(self, dense: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits by task, `{task: [B]}` float32.
        """
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        x = torch.cat([dense, *embedded], dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        logits: dict[str, Tensor] = {}
        for task, gate, tower in zip(self.config.tasks, self.gates, self.towers, strict=True):
            mixed = torch.sum(gate(x).unsqueeze(2) * experts, dim=1)
            logits[task] = tower(mixed).squeeze(1)
        return logits

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> MMoE:
        """An MMoE that captures and compiles in seconds, for tests."""
        return cls(
            MMoEConfig(
                (50, 31, 12, 100), 4, embedding_dim=8, experts=3, expert=(16, 8), tower=(16,)
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> MMoE:
        """An MMoE of production size on the shape of Criteo, its tables capped at `max_rows` rows.

        The paper gives no sizes of its production model but eight experts; this has three tasks,
        experts 512-256 and towers 128-64.
        """
        return cls(MMoEConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
