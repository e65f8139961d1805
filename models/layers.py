"""What the models of the zoo share: MLPs, tables, first-order terms, and inputs to try them on."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def check_tables(cardinalities: tuple[int, ...]) -> None:
    """Refuses a model without tables, or with an empty table."""
    if not cardinalities or min(cardinalities) < 1:
        raise ValueError(f"every table needs at least one row, got {cardinalities}")


def check_positive(config: object, *fields: str) -> None:
    """Refuses a config in which one of these sizes, or a size of these tuples, isn't positive."""
    for field in fields:
        value = getattr(config, field)
        sizes = value if isinstance(value, tuple) else (value,)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{field} must be positive and not empty, got {value!r}")


def mlp(widths: tuple[int, ...], *, last_relu: bool) -> nn.Sequential:
    """Builds `Linear, ReLU, Linear, ReLU, …` through the given widths.

    Args:
        widths: width of the input, of every hidden layer, and of the output.
        last_relu: whether a ReLU follows the last linear too.

    Returns:
        A module from `[B, widths[0]]` to `[B, widths[-1]]`, float32.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def embedding_tables(
    cardinalities: tuple[int, ...], embedding_dim: int, *, bags: bool = False
) -> nn.ModuleList:
    """Makes one table per id feature, initialised as facebookresearch/dlrm does.

    Args:
        cardinalities: rows of each table.
        embedding_dim: columns of every table.
        bags: `nn.EmbeddingBag(mode="sum")` tables, for ids of shape `[B, bag]`, instead of
            `nn.Embedding` tables, for ids of shape `[B]`.
    """
    tables = nn.ModuleList()
    for rows in cardinalities:
        table: nn.Embedding | nn.EmbeddingBag = (
            nn.EmbeddingBag(rows, embedding_dim, mode="sum")
            if bags
            else nn.Embedding(rows, embedding_dim)
        )
        bound = rows**-0.5
        nn.init.uniform_(table.weight, -bound, bound)
        tables.append(table)
    return tables


def example_inputs(
    cardinalities: tuple[int, ...], dense_features: int, batch_size: int, bag_size: int = 1
) -> tuple[Tensor, Tensor]:
    """Draws inputs a model takes; the same ones at every call.

    Returns:
        dense `[batch_size, dense_features]` float32, standard normal; and ids, int64 and within
        their table, `[batch_size, n_tables]`, or `[batch_size, n_tables, bag_size]` for bags.
    """
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(batch_size, dense_features, generator=generator)
    shape = (batch_size, bag_size) if bag_size > 1 else (batch_size,)
    columns = [torch.randint(rows, shape, generator=generator) for rows in cardinalities]
    return dense, torch.stack(columns, dim=1)


def example_history(rows: int, length: int, batch_size: int) -> Tensor:
    """Draws histories, the same ones at every call: ids, and 0 where the history has ended.

    Returns:
        `[batch_size, length]` int64 below `rows`; every history holds at least one id.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(min(1, rows - 1), rows, (batch_size, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch_size, 1), generator=generator)
    return ids.masked_fill(torch.arange(length) >= lengths, 0)


class FirstOrder(nn.Module):
    """The linear part of a factorization machine: a weight per id and per dense column."""

    def __init__(self, cardinalities: tuple[int, ...], dense_features: int) -> None:
        super().__init__()
        self.tables = embedding_tables(cardinalities, 1)
        self.dense = nn.Linear(dense_features, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Sums the weights of a row; `[B, 1]` float32."""
        weights = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        terms: Tensor = weights.sum(dim=1, keepdim=True) + self.dense(dense)
        return terms
