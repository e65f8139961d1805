"""xDeepFM (Lian et al. 2018, arXiv:1803.05170), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class XDeepFMConfig:
    """The sizes of an xDeepFM.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        feature_maps: feature maps of every layer of the compressed interaction network (CIN).
        split_half: whether half of a layer's maps go to the next layer and half to the output,
            instead of all to both; then every layer but the last has an even number of maps.
        deep: hidden widths of the deep MLP; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 10
    feature_maps: tuple[int, ...] = (200, 200, 200)
    split_half: bool = True
    deep: tuple[int, ...] = (400, 400)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "feature_maps", "deep")
        if self.split_half and any(maps % 2 for maps in self.feature_maps[:-1]):
            raise ValueError(f"feature_maps must be even to be split, got {self.feature_maps}")


class CompressedInteraction(nn.Module):
    """The CIN: field-wise outer products with the input, each compressed by a convolution."""

    def __init__(self, fields: int, feature_maps: tuple[int, ...], *, split_half: bool) -> None:
        super().__init__()
        self.split_half = split_half
        self.convolutions = nn.ModuleList()
        self.output_width = 0
        previous = fields
        for layer, maps in enumerate(feature_maps):
            self.convolutions.append(nn.Conv1d(fields * previous, maps, kernel_size=1))
            halved = split_half and layer < len(feature_maps) - 1
            previous = maps // 2 if halved else maps
            self.output_width += previous

    def forward(self, fields: Tensor) -> Tensor:
        """Interacts `[B, n_fields, dim]` to `[B, output_width]`, float32."""
        x0, hidden = fields.unsqueeze(2), fields
        pooled: list[Tensor] = []
        for layer, convolution in enumerate(self.convolutions):
            outer = x0 * hidden.unsqueeze(1)
            batch, n_fields, maps, dim = outer.shape
            outer = outer.view(batch, n_fields * maps, dim)
            hidden = torch.relu(convolution(outer))
            output = hidden
            if self.split_half and layer < len(self.convolutions) - 1:
                output, hidden = torch.split(hidden, hidden.shape[1] // 2, dim=1)
            pooled.append(output)
        return torch.sum(torch.cat(pooled, dim=1), dim=2)


class XDeepFM(nn.Module):
    """First-order terms, a compressed interaction network and a deep MLP, logits added."""

    def __init__(self, config: XDeepFMConfig) -> None:
        super().__init__()
        self.config = config
        self.first_order = FirstOrder(config.cardinalities, config.dense_features)
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        n_fields = len(config.cardinalities)
        self.cin = CompressedInteraction(
            n_fields, config.feature_maps, split_half=config.split_half
        )
        self.cin_head = nn.Linear(self.cin.output_width, 1)
        width = config.dense_features + n_fields * config.embedding_dim
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
        deep = self.deep(torch.cat([dense, fields.flatten(1)], dim=1))
        logits: Tensor = self.first_order(dense, ids) + self.cin_head(self.cin(fields)) + deep
        return logits.squeeze(1)

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> XDeepFM:
        """An xDeepFM that captures and compiles in seconds, for tests."""
        return cls(
            XDeepFMConfig(
                (50, 31, 12, 100), 4, embedding_dim=8, feature_maps=(6, 4, 5), deep=(16, 8)
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> XDeepFM:
        """The xDeepFM of the paper on the shape of Criteo, its tables capped at `max_rows` rows.

        Ten columns per table, three CIN layers of 200 maps, deep 400-400.
        """
        return cls(XDeepFMConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
