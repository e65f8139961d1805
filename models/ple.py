"""PLE (Tang et al. 2020, doi:10.1145/3383313.3412236), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class PLEConfig:
    """The sizes of a PLE.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        tasks: names of the tasks.
        levels: number of extraction levels; one level is the paper's CGC.
        task_experts: experts of each task and level.
        shared_experts: experts of each level that all tasks share.
        expert: widths of an expert.
        tower: hidden widths of a task's tower; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 32
    tasks: tuple[str, ...] = ("click", "like", "share")
    levels: int = 2
    task_experts: int = 2
    shared_experts: int = 2
    expert: tuple[int, ...] = (512, 256)
    tower: tuple[int, ...] = (128, 64)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "levels", "task_experts")
        check_positive(self, "shared_experts", "expert")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks need names, all different, got {self.tasks}")


class ExtractionLevel(nn.Module):
    """Experts per task and shared ones, and a gate per task over its own and the shared ones.

    All but the last level also have a shared gate, over the experts of all.
    """

    def __init__(self, config: PLEConfig, width: int, *, last: bool) -> None:
        super().__init__()
        tasks, own, shared = len(config.tasks), config.task_experts, config.shared_experts
        widths = (width, *config.expert)
        self.task_experts = nn.ModuleList(
            nn.ModuleList(mlp(widths, last_relu=True) for _ in range(own)) for _ in range(tasks)
        )
        self.shared_experts = nn.ModuleList(mlp(widths, last_relu=True) for _ in range(shared))
        self.task_gates = nn.ModuleList(
            nn.Linear(width, own + shared, bias=False) for _ in range(tasks)
        )
        self.shared_gate = None if last else nn.Linear(width, tasks * own + shared, bias=False)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Extracts from one `[B, width]` per task and the shared one, last; gives as many."""
        shared = [expert(inputs[-1]) for expert in self.shared_experts]
        everything: list[Tensor] = []
        outputs: list[Tensor] = []
        for task, (experts, gate) in enumerate(
            zip(self.task_experts, self.task_gates, strict=True)
        ):
            assert isinstance(experts, nn.ModuleList)
            own = [expert(inputs[task]) for expert in experts]
            everything += own
            outputs.append(_gated([*own, *shared], gate(inputs[task])))
        if self.shared_gate is not None:
            outputs.append(_gated([*everything, *shared], self.shared_gate(inputs[-1])))
        return outputs


class PLE(nn.Module):
    """Levels of experts of each task and of all, and a tower per task."""

    def __init__(self, config: PLEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dense_features + len(config.cardinalities) * config.embedding_dim
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.levels = nn.ModuleList(
            ExtractionLevel(
                config, config.expert[-1] if level else width, last=level == config.levels - 1
            )
            for level in range(config.levels)
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
        inputs = [x] * (len(self.config.tasks) + 1)
        for level in self.levels:
            inputs = level(inputs)
        return {
            task: tower(hidden).squeeze(1)
            for task, tower, hidden in zip(self.config.tasks, self.towers, inputs, strict=True)
        }

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> PLE:
        """A PLE that captures and compiles in seconds, for tests."""
        return cls(
            PLEConfig(
                (50, 31, 12, 100),
                4,
                embedding_dim=8,
                tasks=("click", "like"),
                shared_experts=1,
                expert=(16, 8),
                tower=(16,),
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> PLE:
        """A PLE of production size on the shape of Criteo, its tables capped at `max_rows` rows.

        Two levels, three tasks of two experts each, two shared experts, experts 512-256 and towers
        128-64. The paper's own model is not sized.
        """
        return cls(PLEConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))


def _gated(experts: list[Tensor], gate: Tensor) -> Tensor:
    """The experts' outputs, `[B, width]` each, weighted by the softmax of `[B, n_experts]`."""
    weights = torch.softmax(gate, dim=1).unsqueeze(1)
    return torch.matmul(weights, torch.stack(experts, dim=1)).squeeze(1)
