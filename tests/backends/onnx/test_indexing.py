"""Sorting and pooling by places as PyTorch does."""

from __future__ import annotations

import torch
from alone import on_onnxruntime
from torch import Tensor

X = torch.tensor([[3.0, 4.0, 1.0, 2.0], [0.0, -1.0, 5.0, 5.0]])
PLACES = torch.tensor([0, 1, 0, 1])


def all_of(x: Tensor) -> Tensor:
    """Sorted, the two largest, and sums by place."""
    index = PLACES.expand(x.shape[0], 4)
    pooled = torch.zeros_like(x).scatter_reduce(1, index, x, "sum")
    return torch.cat([x.sort(-1).values, x.topk(2, -1).values, pooled], 1)


def test_ties_are_found_and_repeated_places_add_up() -> None:
    found, expected = on_onnxruntime(all_of, X)
    assert torch.equal(found, expected)
