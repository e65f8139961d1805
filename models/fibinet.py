"""FiBiNET (Huang et al. 2019, arXiv:1905.09433), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import combinations

import torch
from torch import Tensor, nn

from . import criteo
from .layers import (
    FirstOrder,
    check_positive,
    check_tables,
    embedding_tables,
    example_inputs,
    mlp,
)


class Sharing(Enum):
    """Who shares a matrix of the bilinear interaction."""

    ALL = "all"  # one matrix for every pair
    EACH = "each"  # one per left field
    INTERACTION = "interaction"  # one per pair


@dataclass(frozen=True)
class FiBiNETConfig:
    """The sizes of a FiBiNET.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        reduction: fields per unit of SENet's hidden layer.
        sharing: who shares a matrix of the bilinear interaction.
        deep: hidden widths of the deep MLP; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 10
    reduction: int = 3
    sharing: Sharing = Sharing.INTERACTION
    deep: tuple[int, ...] = (400, 400, 400)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "reduction", "deep")
        if len(self.cardinalities) < 2:
            raise ValueError(f"pairs need at least two tables, got {self.cardinalities}")


class SENet(nn.Module):
    """Weighs each field by what a small MLP makes of the means of all fields."""

    def __init__(self, n_fields: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, n_fields // reduction)
        self.excitation = nn.Sequential(
            nn.Linear(n_fields, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, n_fields, bias=False),
            nn.ReLU(),
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Weighs `[B, n_fields, dim]`, float32."""
        squeezed = torch.mean(fields, dim=-1)
        weights = self.excitation(squeezed)
        return fields * torch.unsqueeze(weights, dim=2)


class Bilinear(nn.Module):
    """`(W v_i) * v_j` for every pair of fields, one pair at a time."""

    def __init__(self, n_fields: int, dim: int, sharing: Sharing) -> None:
        super().__init__()
        self.sharing = sharing
        pairs = n_fields * (n_fields - 1) // 2
        matrices = {Sharing.ALL: 1, Sharing.EACH: n_fields - 1, Sharing.INTERACTION: pairs}
        self.linears = nn.ModuleList(
            nn.Linear(dim, dim, bias=False) for _ in range(matrices[sharing])
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Interacts `[B, n_fields, dim]` to `[B, n_pairs, dim]`, float32."""
        vectors = torch.split(fields, 1, dim=1)
        products: list[Tensor] = []
        for pair, (i, j) in enumerate(combinations(range(len(vectors)), 2)):
            matrix = {Sharing.ALL: 0, Sharing.EACH: i, Sharing.INTERACTION: pair}[self.sharing]
            products.append(self.linears[matrix](vectors[i]) * vectors[j])
        return torch.cat(products, dim=1)


class FiBiNET(nn.Module):
    """Bilinear interactions of the fields, of the fields as SENet weighs them, and a deep MLP."""

    def __init__(self, config: FiBiNETConfig) -> None:
        super().__init__()
        self.config = config
        n_fields, dim = len(config.cardinalities), config.embedding_dim
        self.first_order = FirstOrder(config.cardinalities, config.dense_features)
        self.tables = embedding_tables(config.cardinalities, dim)
        self.senet = SENet(n_fields, config.reduction)
        self.bilinear = Bilinear(n_fields, dim, config.sharing)
        self.senet_bilinear = Bilinear(n_fields, dim, config.sharing)
        width = config.dense_features + n_fields * (n_fields - 1) * dim
        self.deep = mlp((width, *config.deep, 1), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Logits, `[B]` float32.
        """
        fields = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        plain = self.bilinear(fields)
        weighed = self.senet_bilinear(self.senet(fields))
        products = torch.flatten(torch.cat([weighed, plain], dim=1), start_dim=1)
        deep = self.deep(torch.cat([dense, products], dim=1))
        logits: Tensor = self.first_order(dense, ids) + deep
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> FiBiNET:
        """A FiBiNET that captures and compiles in seconds, for tests."""
        return cls(FiBiNETConfig((50, 31, 12, 100), 4, embedding_dim=8, reduction=2, deep=(16, 8)))

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> FiBiNET:
        """The FiBiNET of the paper on the shape of Criteo, its tables capped at `max_rows` rows.

        Ten columns per table, SENet reduction 3, a matrix per pair (325 of them, twice), deep
        400-400-400.
        """
        return cls(FiBiNETConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
