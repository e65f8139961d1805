"""ESMM (Ma et al. 2018, arXiv:1804.07931), written the way public code writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, embedding_tables, example_inputs, mlp


@dataclass(frozen=True)
class ESMMConfig:
    """The sizes of an ESMM.

    Attributes:
        cardinalities: rows of each table, one table per id feature.
        dense_features: width of the dense input.
        embedding_dim: columns of every table.
        tower: hidden widths of either task's MLP; the logit comes after them.
    """

    cardinalities: tuple[int, ...]
    dense_features: int
    embedding_dim: int = 18
    tower: tuple[int, ...] = (360, 200, 80)

    def __post_init__(self) -> None:
        check_tables(self.cardinalities)
        check_positive(self, "dense_features", "embedding_dim", "tower")


class ESMM(nn.Module):
    """The cascade click → conversion over shared tables; both scores are over all impressions."""

    def __init__(self, config: ESMMConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dense_features + len(config.cardinalities) * config.embedding_dim
        self.tables = embedding_tables(config.cardinalities, config.embedding_dim)
        self.click = mlp((width, *config.tower, 1), last_relu=False)
        self.conversion = mlp((width, *config.tower, 1), last_relu=False)

    def forward(self, dense: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Scores a batch.

        Args:
            dense: `[B, dense_features]` float32.
            ids: `[B, n_tables]` int64.

        Returns:
            Probabilities, `[B]` float32: `click`, and `click_and_conversion`, which is that of a
            click times that of a conversion given a click.
        """
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        x = torch.cat([dense, *embedded], dim=1)
        click = torch.sigmoid(self.click(x).squeeze(1))
        conversion_after_click = torch.sigmoid(self.conversion(x).squeeze(1))
        return {"click": click, "click_and_conversion": click * conversion_after_click}

    def example_inputs(self, batch_size: int = 4) -> tuple[Tensor, ...]:
        """Gives `batch_size` rows of valid `(dense, ids)`; the same at every call."""
        config = self.config
        return example_inputs(config.cardinalities, config.dense_features, batch_size)

    @classmethod
    def small(cls) -> ESMM:
        """An ESMM that captures and compiles in seconds, for tests."""
        return cls(ESMMConfig((50, 31, 12, 100), 4, embedding_dim=8, tower=(16, 8)))

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> ESMM:
        """An ESMM on the shape of Criteo, its tables capped at `max_rows` rows.

        18 columns per table and towers 360-200-80, as the paper has them.
        """
        return cls(ESMMConfig(criteo.bounded_cardinalities(max_rows), criteo.DENSE_FEATURES))
