"""Which lookups are bounded, by what, and which need nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import rankc
import torch
import torch.nn.functional as F
from rankc.optimizer.ir import Program
from rankc.optimizer.ir.ops import BOUNDED
from torch import Tensor, nn

ROWS, WIDE = 20, 4


class Looks(nn.Module):
    """A score of what ``read`` looks up."""

    def __init__(self, read: Callable[[Looks, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.other = nn.Embedding(ROWS, WIDE), nn.Embedding(9, WIDE)
        self.bag = nn.EmbeddingBag(ROWS, WIDE, mode="sum")
        self.register_buffer("values", torch.randn(ROWS, WIDE))
        self.register_buffer("map", torch.arange(30) % ROWS)
        self.read = read

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self, ids).flatten(1).sum(1)


def captured(read: Callable[[Looks, Tensor], Tensor], width: int = 3) -> Program:
    ids = torch.arange(5 * width).reshape(5, width) % 3
    return rankc.capture(Looks(read).eval(), (ids,))


def bounded(program: Program) -> list[list[int]]:
    nodes = program.graph.find_nodes(op="call_function", target=BOUNDED.op)
    return [node.args[1] for node in nodes]


@pytest.mark.parametrize(
    "read",
    [
        lambda m, i: m.table(i),
        lambda m, i: m.table(i + 1),
        lambda m, i: m.table(i[:, 0]) + m.other(i[:, 1]),
        lambda m, i: m.bag(i),
        lambda m, i: m.table(i % ROWS),
        lambda m, i: m.table(i.clamp(0, ROWS - 1)),
        lambda m, i: m.table(torch.where((i < 0) | (i >= ROWS), 0, i)),
        lambda m, i: m.table(torch.where(i < 0, 0, i).clamp(max=19)),
        lambda m, i: m.table((i > 3).long() * 2 + (i % 2)),
        lambda m, i: m.table((i % 7) * 2 + (i % 8)),
        lambda m, i: m.table(i & 15),
        lambda m, i: m.table((i % 1000) // 50),
        lambda m, i: m.table(i.abs().remainder(20)),
        lambda m, i: m.table(m.map[(i % 30)]),
        lambda m, i: m.table((i != 0).sum(1)),
        lambda m, i: m.table(i.argmax(1)),
        lambda m, i: m.table(i) + m.table(torch.minimum(i, torch.tensor(5)).clamp(min=0)),
        lambda m, i: m.values.index_select(0, (i % 5).flatten()).reshape(-1, 3, WIDE),
        lambda m, i: F.one_hot(i % 10, 10).float(),
        lambda m, i: m.table(i.float().long()),  # of ids that are below the table's rows
        lambda m, i: m.values[i],  # torch counts negative ones from the end, as ONNX does
    ],
)  # fmt: skip
def test_lookups_that_need_nothing(read: Callable[[Looks, Tensor], Tensor]) -> None:
    assert bounded(captured(read)) == []


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (lambda m, i: m.table(i.clamp(min=0)), [[ROWS]]),
        (lambda m, i: m.table(i.clamp(max=19)), [[ROWS]]),
        (lambda m, i: m.table(i.clamp(0, ROWS)), [[ROWS]]),
        (lambda m, i: m.table(torch.where(i < 0, 0, i)), [[ROWS]]),
        (lambda m, i: m.table(torch.where(i < 25, i, 0).clamp(min=0)), [[ROWS]]),
        (lambda m, i: m.table(torch.relu(i)), [[ROWS]]),
        (lambda m, i: m.table(i.abs()), [[ROWS]]),
        (lambda m, i: m.table(i % 30), [[ROWS]]),
        (lambda m, i: m.table(i // 2), [[ROWS]]),
        (lambda m, i: m.table(i * i), [[ROWS]]),
        (lambda m, i: m.table(i.fmod(ROWS)), [[ROWS]]),
        (lambda m, i: m.table(i ^ 1), [[ROWS]]),
        (lambda m, i: m.table(i.int().clamp(min=0)), [[ROWS]]),
        (lambda m, i: m.bag(i.clamp(min=0)), [[ROWS]]),
        (lambda m, i: m.table(i) + m.other(i.clamp(min=0)), [[9]]),
        (lambda m, i: m.table(i.clamp(min=0)) + m.other(i.clamp(min=0)), [[ROWS], [9]]),
        (lambda m, i: m.table(i.max(1).values.clamp(min=0)), [[ROWS]]),
        (lambda m, i: m.table(m.map[i.clamp(0, 29)] + 1), [[ROWS]]),
        (lambda m, i: m.values.index_select(0, i.flatten()).reshape(-1, 3, WIDE), [[ROWS]]),
        (lambda m, i: m.table.weight[:3].T.sum(0).expand(len(i), 3).gather(1, i), [[3]]),
        (lambda m, i: F.one_hot(i, 10).float(), [[10]]),
        (lambda m, i: torch.zeros(len(i), 9).scatter(1, i, 1.0), [[9]]),
        (lambda m, i: torch.zeros(len(i), 9).scatter_add(1, i, i.float()), [[9]]),
    ],
)  # fmt: skip
def test_lookups_that_are_bounded(
    read: Callable[[Looks, Tensor], Tensor], rows: list[list[int]]
) -> None:
    program = captured(read)
    assert bounded(program) == rows


def test_a_bound_is_put_once() -> None:
    program = captured(lambda m, i: m.table(i.clamp(min=0)))
    again = rankc.capture(program)
    assert bounded(again) == [[ROWS]]


def test_a_signature_without_limits_leaves_the_graph_to_bound() -> None:
    program = captured(lambda m, i: m.table(i))
    signature = program.signature.with_feature("ids", cardinalities=())
    ids = torch.arange(15).reshape(5, 3) % 3
    module = Looks(lambda m, i: m.table(i)).eval()
    assert bounded(rankc.capture(module, (ids,), signature=signature)) == [[ROWS]]


def test_a_bound_raises_in_eager() -> None:
    program = captured(lambda m, i: m.table(i.clamp(min=0)))
    assert program(torch.tensor([[-5, 0, 19]])).isfinite().all()
    with pytest.raises(IndexError, match="ids from 20 to 20 are beyond a table of 20 rows"):
        program(torch.tensor([[0, 0, 20]]))
