"""What a number format of linears is: how a weight becomes codes, what is computed, what stands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import ClassVar

from torch import Tensor, fx

from ..formats import LINEAR, LinearData
from ..ir.facts import Precision
from ..ir.rewrite import Rewriter
from .codes import Codes
from .search import Search


class LinearFormat(ABC):
    """One format, found by its name with `linear_format`.

    Attributes:
        data: What it is and costs (`optimizer/formats.py`).
        columns: Whether input columns may be scaled, or kept in fp32, for its sake.
    """

    columns: ClassVar[bool] = False

    def __init__(self, data: LinearData) -> None:
        self.data = data

    def fits(self, inputs: int) -> bool:
        """Whether a linear of that many inputs can take it."""
        return True

    def tails(self, sizes: Tensor) -> Tensor:
        """How much each column ``[K]`` of inputs' sizes ``[n, K]`` spoils the others' codes."""
        return sizes.amax(0)

    def best(
        self, search: Search, scale: tuple[float, ...] = (), kept: tuple[int, ...] = ()
    ) -> tuple[Precision, float]:
        """The precision with the least error, and that error.

        Args:
            search: The linear.
            scale: What columns are multiplied by; empty for none.
            kept: Columns that stay fp32.
        """
        precision = self.precision(scale, kept)
        coded = self.coded(search.weight, precision)
        return precision, search.error(self.output(search.rows, search.weight, precision, coded))

    def precision(self, scale: tuple[float, ...] = (), kept: tuple[int, ...] = ()) -> Precision:
        """The fact that places it; of a format without a static range, all there is to it."""
        data = self.data
        return Precision(
            data.name,
            input_dtype=data.input.torch,
            weight_dtype=data.weight.torch,
            column_scale=scale,
            kept=kept,
        )

    @abstractmethod
    def coded(self, weight: Tensor, precision: Precision) -> Codes:
        """What is stored of a weight ``[N, K]``."""

    @abstractmethod
    def output(self, rows: Tensor, weight: Tensor, precision: Precision, coded: Codes) -> Tensor:
        """What a linear without bias gives: ``[rows, K]`` to ``[rows, N]``.

        Args:
            rows: Inputs.
            weight: ``[N, K]`` as it was.
            precision: How.
            coded: What `coded` made of the weight.
        """

    @abstractmethod
    def put(
        self,
        rw: Rewriter,
        linear: fx.Node,
        weight: Tensor,
        bias: fx.Node | None,
        precision: Precision,
    ) -> None:
        """Puts the format into a graph, in a linear's place or around it."""


def linear_format(name: str) -> LinearFormat:
    """The format of that name, one of `LINEAR_FORMATS`."""
    found = _MADE.get(name)
    if found is None:
        data = LINEAR[name]
        module, _, attribute = data.code.partition(":")
        found = _MADE[name] = getattr(import_module(f".{module}", __package__), attribute)(data)
    return found


_MADE: dict[str, LinearFormat] = {}


def base_of(linear: fx.Node) -> str:
    """What names of a linear's new parameters begin with."""
    return str(linear.args[1].target).replace(".", "_")  # type: ignore[union-attr]
