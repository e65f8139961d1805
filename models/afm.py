"""AFM (Xiao et al. 2017, arXiv:1708.04617), written the way torchfm writes it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs


@dataclass(frozen=True)
class AFMConfig:
    """The sizes of an attentional factorization machine.

    Attributes:
        cardinalities: distinct ids of each feature; all features share one table.
        dense_features: width of the dense input, which has first-order terms only.
        embedding_dim: columns of the table.
        attention: width of the attention's hidden layer.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 16
    attention: int = 16

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "attention")
        if len(self.cardinalities) < 2:
            raise ValueError(f"pairs need at least two features, got {self.cardinalities}")


class AttentionalPairs(nn.Module):
    """The element-wise products of all pairs of fields, summed as attention weighs them."""

    def __init__(self, n_fields: int, dim: int, attention: int) -> None:
        super().__init__()
        self.rows = [i for i in range(n_fields - 1) for _ in range(i + 1, n_fields)]
        self.columns = [j for i in range(n_fields - 1) for j in range(i + 1, n_fields)]
        self.attention = nn.Linear(dim, attention)
        self.projection = nn.Linear(attention, 1, bias=False)
        self.head = nn.Linear(dim, 1, bias=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Interacts `[B, n_fields, dim]` to `[B, 1]`, float32."""
        products = fields[:, self.rows] * fields[:, self.columns]
        scores = torch.relu(self.attention(products))
        scores = torch.softmax(self.projection(scores), dim=1)
        logits: Tensor = self.head(torch.sum(scores * products, dim=1))
        return logits


class AFM(nn.Module):
    """First-order terms and attended pairs. One table holds all features, at an offset each."""

    def __init__(self, config: AFMConfig) -> None:
        super().__init__()
        self.config = config
        self.offsets = [0, *accumulate(config.cardinalities[:-1])]
        ids = (sum(config.cardinalities),)
        (self.table,) = embedding_tables(ids, config.embedding_dim)
        (self.weights,) = embedding_tables(ids, 1)
        self.dense = nn.Linear(config.dense_features, 1)
        self.pairs = AttentionalPairs(
            len(config.cardinalities), config.embedding_dim, config.attention
        )

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        ids = ids + ids.new_tensor(self.offsets).unsqueeze(0)
        first_order = torch.sum(self.weights(ids), dim=1) + self.dense(dense)
        logits: Tensor = first_order + self.pairs(self.table(ids))
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> AFM:
        """An AFM that captures and compiles in seconds, for tests."""
        return cls(AFMConfig((50, 31, 12, 100), 4, embedding_dim=8, attention=6))

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> AFM:
        """An AFM on the shape of Criteo, with at most `max_rows` ids per feature.

        16 columns and an attention of 16, as torchfm's example has them: the paper's 256 are for
        three and ten features, not for the 325 pairs of 26.
        """
        return cls(AFMConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
