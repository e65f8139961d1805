"""A multi-task early-stage ranker (after arXiv:2307.11096): two sides, several heads.

The early stage orders many candidates as the final stage would. So beside its own events it learns,
in auxiliary heads that nobody serves, the final stage's predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import criteo
from .layers import check_positive, check_tables, example_history, example_inputs, mlp
from .two_tower import Tower


@dataclass(frozen=True)
class EarlyStageConfig:
    """The sizes of an early-stage ranker.

    Attributes:
        user_cardinalities: rows of each table of the user's id features.
        user_dense_features: width of the user's dense input.
        item_cardinalities: rows of each table of the item's id features. The first feature is the
            item itself, of which the user's history consists; its id 0 is no item.
        item_dense_features: width of the item's dense input.
        history_length: items of a history.
        embedding_dim: columns of every table.
        user_tower: hidden widths of the user's MLP.
        item_tower: hidden widths of the item's MLP.
        output_dim: width of both towers' vectors.
        shared: widths of the MLP over both sides, which all heads read.
        tasks: names of the heads that are served.
        auxiliary: names of the heads that are only learned; their outputs are called `aux_<name>`.
        head: hidden widths of a head; the logit comes after them.
    """

    user_cardinalities: tuple[int, ...]
    user_dense_features: int
    item_cardinalities: tuple[int, ...]
    item_dense_features: int
    history_length: int = 50
    embedding_dim: int = 64
    user_tower: tuple[int, ...] = (1024, 512)
    item_tower: tuple[int, ...] = (512, 256)
    output_dim: int = 128
    shared: tuple[int, ...] = (256,)
    tasks: tuple[str, ...] = ("click", "conversion", "quality")
    auxiliary: tuple[str, ...] = ("final_click", "final_conversion", "final_quality")
    head: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        check_tables(self.user_cardinalities)
        check_tables(self.item_cardinalities)
        check_positive(self, "user_dense_features", "item_dense_features", "history_length")
        check_positive(self, "embedding_dim", "output_dim", "shared")
        if not self.tasks or len(set(self.outputs)) < len(self.outputs):
            raise ValueError(f"heads need names, all different, got {self.outputs}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs, those of the auxiliary heads last."""
        return (*self.tasks, *(f"aux_{name}" for name in self.auxiliary))


class EarlyStage(nn.Module):
    """A tower per side, their vectors and the product of these in a shared MLP, and many heads."""

    def __init__(self, config: EarlyStageConfig) -> None:
        super().__init__()
        self.config = config
        dim, output = config.embedding_dim, config.output_dim
        self.history = nn.EmbeddingBag(
            config.item_cardinalities[0], dim, mode="mean", padding_idx=0
        )
        self.user = Tower(
            config.user_cardinalities,
            config.user_dense_features + dim,
            dim,
            (*config.user_tower, output),
        )
        self.item = Tower(
            config.item_cardinalities,
            config.item_dense_features,
            dim,
            (*config.item_tower, output),
        )
        self.shared = mlp((3 * output, *config.shared), last_relu=True)
        self.heads = nn.ModuleList(
            mlp((config.shared[-1], *config.head, 1), last_relu=False) for _ in config.outputs
        )

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores a batch of pairs of a user and an item.

        Args:
            features: `user_dense` and `item_dense`, `[B, dense_features]` float32 each;
                `user_ids` and `item_ids`, `[B, n_tables]` int64 each; and `user_history`,
                `[B, history_length]` int64, ids of items and 0 after the last.

        Returns:
            Logits by head, `{output: [B]}` float32.
        """
        history = self.history(features["user_history"])
        user = self.user(torch.cat([features["user_dense"], history], dim=1), features["user_ids"])
        item = self.item(features["item_dense"], features["item_ids"])
        hidden = self.shared(torch.cat([user, item, user * item], dim=1))
        return {
            name: head(hidden).squeeze(1)
            for name, head in zip(self.config.outputs, self.heads, strict=True)
        }

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
    def small(cls) -> EarlyStage:
        """An early-stage ranker that captures and compiles in seconds, for tests."""
        return cls(
            EarlyStageConfig(
                (50, 31),
                4,
                (100, 12),
                3,
                history_length=5,
                embedding_dim=8,
                user_tower=(16,),
                item_tower=(12,),
                output_dim=8,
                shared=(12,),
                tasks=("click", "quality"),
                auxiliary=("final_click", "final_quality"),
                head=(16,),
            )
        )

    @classmethod
    def paper(cls, max_rows: int = 100_000) -> EarlyStage:
        """An early-stage ranker of production size; the paper gives no sizes.

        Half of Criteo's features stand for the user and half for the item; tables of 64 columns,
        capped at `max_rows` rows; histories of 50; three served heads and three auxiliary ones.
        """
        rows = criteo.bounded_cardinalities(max_rows)
        return cls(EarlyStageConfig(rows[1:13], 7, (rows[0], *rows[13:]), 6))
