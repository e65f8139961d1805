"""Random multi-task models, whose mixtures of experts are written as public code writes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


def einsum(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.einsum("be,bed->bd", gate, torch.stack(list(experts), 1))


def einsum_last(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.einsum("bde,be->bd", torch.stack(list(experts), 2), gate)


def einsum_first(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.einsum("ebd,be->bd", torch.stack(list(experts), 0), gate)


def python_sum(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return sum(gate[:, i : i + 1] * y for i, y in enumerate(experts))  # type: ignore[return-value]


def loop(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    total = gate[:, 0].unsqueeze(1) * experts[0]
    for index, expert in enumerate(experts[1:], 1):
        total = total + expert * gate[:, index].unsqueeze(1)
    return total


def backwards(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    columns = reversed(range(len(experts)))
    return sum(gate[:, i : i + 1] * experts[i] for i in columns)  # type: ignore[return-value]


def weighted_stack(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.stack([gate[:, i, None] * y for i, y in enumerate(experts)]).sum(0)


def split(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.stack([g * y for g, y in zip(gate.split(1, 1), experts, strict=True)], 1).sum(1)


def rechub(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    pile = torch.cat([y.unsqueeze(1) for y in experts], 1)
    return torch.sum(torch.mul(gate.unsqueeze(-1), pile), dim=1)


def deepctr(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.matmul(gate.unsqueeze(1), torch.stack(list(experts), 1)).squeeze(1)


def columns(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.matmul(torch.stack(list(experts), 2), gate.unsqueeze(2)).squeeze(2)


def bmm(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    return torch.bmm(torch.stack(list(experts), 0).permute(1, 2, 0), gate.unsqueeze(-1)).squeeze(2)


def expanded(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    pile = torch.stack(list(experts), 2)
    return (pile * gate.unsqueeze(1).expand(-1, pile.shape[1], -1)).sum(2)


def repeated(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    pile = torch.stack(list(experts), 2)
    return (pile * gate.unsqueeze(1).repeat(1, pile.shape[1], 1)).sum(2)


def kept_dim(gate: Tensor, experts: Sequence[Tensor]) -> Tensor:
    mixed = (torch.stack(list(experts), 1) * gate[:, :, None]).sum(1, keepdim=True)
    return mixed.relu()[:, 0]


#: The ways to write a mixture of gates ``[B, E]`` and E experts ``[B, D]``.
FORMS = [
    einsum,
    einsum_last,
    einsum_first,
    python_sum,
    loop,
    backwards,
    weighted_stack,
    split,
    rechub,
    deepctr,
    columns,
    bmm,
    expanded,
    repeated,
]


@st.composite
def multi_task(draw: st.DrawFn) -> nn.Module:
    """A random multi-task model: levels of experts, some shared, some of a task; any form."""
    tasks = draw(st.integers(1, 3))
    levels = draw(st.integers(1, 2))
    forms = [draw(st.sampled_from(FORMS)) for _ in range(tasks * levels)]
    own = [draw(st.integers(0, 2)) for _ in range(tasks * levels)]
    shared = draw(st.integers(2, 3))
    cut, softmax, seed = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 99))

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            width = [8, 6, 6]
            self.shared = nn.ModuleList(
                nn.ModuleList(nn.Linear(width[level], 6) for _ in range(shared))
                for level in range(levels)
            )
            self.own = nn.ModuleList(
                nn.ModuleList(nn.Linear(width[i // tasks], 6) for _ in range(count))
                for i, count in enumerate(own)
            )
            self.gates = nn.ModuleList(
                nn.Linear(width[i // tasks], count + shared) for i, count in enumerate(own)
            )
            self.towers = nn.ModuleList(nn.Linear(6, 1) for _ in range(tasks))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            inputs = [x] * tasks
            for level, experts in enumerate(self.shared):
                common = [expert(inputs[0]).relu() for expert in experts]  # type: ignore[union-attr]
                outputs = []
                for task in range(tasks):
                    place = level * tasks + task
                    own = [expert(inputs[task]).tanh() for expert in self.own[place]]  # type: ignore[union-attr]
                    piles = [*common, *own] if cut else [*own, *common]
                    gate = self.gates[place](inputs[task])
                    gate = gate.softmax(-1) if softmax else gate.sigmoid()
                    outputs.append(forms[place](gate, piles))
                inputs = outputs
            scores = zip(self.towers, inputs, strict=True)
            return {f"task{i}": tower(h).squeeze(1) for i, (tower, h) in enumerate(scores)}

    return Random().eval()
