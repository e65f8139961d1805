"""The two building blocks that every model of the zoo shares: an MLP and a set of tables."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


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
) -> tuple[torch.Tensor, torch.Tensor]:
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
