"""MaskNet (Wang et al. 2021, arXiv:2102.07619), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


class Arrangement(Enum):
    """How mask blocks are joined."""

    PARALLEL = "parallel"  # all read the embeddings; their outputs are concatenated
    SERIAL = "serial"  # each reads the output of the one before


@dataclass(frozen=True)
class MaskNetConfig:
    """The sizes of a MaskNet.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        blocks: number of mask blocks.
        block_width: width of a block's output.
        reduction: width of a mask's hidden layer, as a multiple of its input's.
        deep: hidden widths of the MLP over the blocks; the logit comes after them.
        arrangement: how the blocks are joined.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 10
    blocks: int = 5
    block_width: int = 64
    reduction: int = 2
    deep: tuple[int, ...] = (400, 400)
    arrangement: Arrangement = Arrangement.PARALLEL

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "blocks", "block_width")
        check_positive(self, "reduction", "deep")


class MaskBlock(nn.Module):
    """`ReLU(LN(W (mask * hidden)))`, with the mask a small MLP of the row's own embeddings."""

    def __init__(self, instance: int, width: int, reduction: int, output: int) -> None:
        super().__init__()
        self.mask = nn.Sequential(
            nn.Linear(instance, instance * reduction),
            nn.ReLU(),
            nn.Linear(instance * reduction, width),
        )
        self.hidden = nn.Linear(width, output, bias=False)
        self.norm = nn.LayerNorm(output)

    def forward(self, instance: Tensor, hidden: Tensor) -> Tensor:
        """Masks `hidden` `[B, width]` by the `instance` `[B, n]`; gives `[B, output]`."""
        masked = self.mask(instance) * hidden
        return torch.relu(self.norm(self.hidden(masked)))


class MaskNet(nn.Module):
    """Mask blocks over the layer-normed fields, and a deep MLP over the blocks."""

    def __init__(self, config: MaskNetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embedding_dim
        self.tables = embedding_tables(config.cardinalities, dim)
        # A dense column is its value times a vector of its own, so that it is a field too.
        self.dense_vectors = nn.Parameter(0.1 * torch.randn(config.dense_features, dim))
        n_fields = len(config.cardinalities) + config.dense_features
        # Each field is normed on its own, as in the paper.
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(n_fields))
        width, output = n_fields * dim, config.block_width
        parallel = config.arrangement is Arrangement.PARALLEL
        self.blocks = nn.ModuleList(
            MaskBlock(width, width if parallel or not i else output, config.reduction, output)
            for i in range(config.blocks)
        )
        deep_input = config.blocks * output if parallel else output
        self.deep = mlp((deep_input, *config.deep, 1), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        embedded = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        fields = torch.cat([embedded, dense.unsqueeze(2) * self.dense_vectors], dim=1)
        instance = fields.flatten(1)
        normed = torch.cat([norm(fields[:, i]) for i, norm in enumerate(self.norms)], dim=1)
        if self.config.arrangement is Arrangement.PARALLEL:
            hidden = torch.cat([block(instance, normed) for block in self.blocks], dim=1)
        else:
            hidden = normed
            for block in self.blocks:
                hidden = block(instance, hidden)
        logits: Tensor = self.deep(hidden)
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> MaskNet:
        """A parallel MaskNet that captures and compiles in seconds, for tests."""
        return cls(
            MaskNetConfig(
                (50, 31, 12, 100), 4, embedding_dim=8, blocks=2, block_width=12, deep=(16,)
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> MaskNet:
        """A parallel MaskNet on the shape of Criteo, its tables capped at `max_rows` rows.

        Ten columns per table and per dense column, five blocks of 64, masks of twice the input's
        width, deep 400-400.
        """
        return cls(MaskNetConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
