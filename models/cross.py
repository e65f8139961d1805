"""Cross layers: of DCN (Wang et al. 2017, arXiv:1708.05123) and DCN V2 (2021, arXiv:2008.13535)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VectorCrossLayer(nn.Module):
    """`x0 * (w·x) + b + x`: the cross layer of DCN, with a vector of weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Crosses `x` with the input `x0`; both and the result are `[B, width]` float32."""
        crossed: Tensor = x0 * self.weight(x) + self.bias + x
        return crossed


class CrossLayer(nn.Module):
    """`x0 * (W x + b) + x`: one full-rank cross layer (DCN V2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Crosses `x` with the input `x0`; both and the result are `[B, width]` float32."""
        crossed: Tensor = x0 * self.linear(x) + x
        return crossed


class LowRankCrossLayer(nn.Module):
    """`x0 * (U Vᵀ x + b) + x`: a cross layer whose matrix is a product (DCN V2)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Crosses `x` with the input `x0`; both and the result are `[B, width]` float32."""
        crossed: Tensor = x0 * self.up(self.down(x)) + x
        return crossed


class MixtureCrossLayer(nn.Module):
    """A mixture of low-rank experts with an inner nonlinearity (DCN V2).

    `Σ_i G_i(x) · x0 * (U_i tanh(C_i tanh(V_iᵀ x)) + b) + x`, with G a softmax over the experts. It
    is written over column vectors and one expert at a time, as deepctr and others do.
    """

    def __init__(self, width: int, rank: int, experts: int) -> None:
        super().__init__()
        self.u = nn.Parameter(nn.init.xavier_normal_(torch.empty(experts, width, rank)))
        self.v = nn.Parameter(nn.init.xavier_normal_(torch.empty(experts, width, rank)))
        self.c = nn.Parameter(nn.init.xavier_normal_(torch.empty(experts, rank, rank)))
        self.bias = nn.Parameter(torch.zeros(width, 1))
        self.gates = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(experts))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Crosses `x` with the input `x0`; both and the result are `[B, width]` float32."""
        x0, x = x0.unsqueeze(2), x.unsqueeze(2)
        outputs: list[Tensor] = []
        gates: list[Tensor] = []
        for expert, gate in enumerate(self.gates):
            gates.append(gate(x.squeeze(2)))
            inner = torch.tanh(torch.matmul(self.v[expert].t(), x))
            inner = torch.tanh(torch.matmul(self.c[expert], inner))
            crossed = x0 * (torch.matmul(self.u[expert], inner) + self.bias)
            outputs.append(crossed.squeeze(2))
        weights = torch.stack(gates, dim=1).softmax(dim=1)
        mixed = torch.matmul(torch.stack(outputs, dim=2), weights) + x
        return mixed.squeeze(2)
