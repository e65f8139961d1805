"""What a linear's formats are searched on: its real rows, and how far off they are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Rows a range is chosen on; 256 predict held-out error within a few percent (LoKA's Probe).
_RANGE_ROWS = 512


@dataclass(frozen=True)
class Search:
    """A linear, as its formats see it.

    Attributes:
        samples: ``[n, K]`` real inputs.
        weight: ``[N, K]``.
        int8_activations: ``"uint8"`` or ``"int8"``: the codes of a static range.
        assumed: Gives the static range in a format where the samples aren't real; then only the
            plain form is tried.
    """

    samples: Tensor
    weight: Tensor
    int8_activations: str
    assumed: Callable[[str], tuple[float, float]] | None = None

    @cached_property
    def rows(self) -> Tensor:
        """``[rows, K]``, those that errors are measured on."""
        count = min(len(self.samples), _RANGE_ROWS)
        return self.samples[torch.linspace(0, len(self.samples) - 1, count).long()]

    @cached_property
    def exact(self) -> Tensor:
        """``[rows, N]``, the output on them, without the bias."""
        return self.rows @ self.weight.T

    def error(self, output: Tensor) -> float:
        """The relative L2 error of an output on the rows."""
        return float((output - self.exact).norm() / self.exact.norm().clamp_min(1e-30))
