"""Where the rows of a batch are."""

from __future__ import annotations

import torch
from rankc.optimizer.analysis.batch_axis import FIRST, Lost, Place, batch_symbol, row_places
from rankc.optimizer.ir import Program
from support import canonical
from torch import Tensor, nn


class Turned(nn.Module):
    """Rows in the second dimension, then summed within."""

    def forward(self, x: Tensor) -> Tensor:
        turned = x.transpose(0, 1)
        return turned.sum(0)


def test_linears_keep_rows_apart(program: Program) -> None:
    places = row_places(program)
    assert batch_symbol(program)
    calls = [place for node, place in places.items() if node.op == "call_function"]
    assert set(calls) == {FIRST}


def test_rows_are_followed_through_transposes() -> None:
    places = row_places(canonical(Turned(), torch.randn(3, 4)))
    found = {node.name: place for node, place in places.items()}
    assert Place(1) in found.values()
    assert not [place for place in found.values() if isinstance(place, Lost)]
