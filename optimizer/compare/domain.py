"""Which rows a program scores: found by running it, since nobody has written it down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.ragged import take
from ..data.rows import Rows
from ..errors import DataError, RankcError
from ..ir.program import Program

#: Runs of the program that a search may take; rows that aren't known by then are left out.
_RUNS = 250


@dataclass
class Domain:
    """Finds out which rows a program scores.

    Attributes:
        program: What is run.
        runs: How many runs are left.
        raised: What it raised, by the position of the row; of the last search.
    """

    program: Program
    runs: int = _RUNS
    raised: dict[int, str] = field(default_factory=dict)

    def scored(self, rows: Rows) -> tuple[list[int], dict[str, Tensor]]:
        """The positions of the rows it scores, and the outputs of these, ``{name: [n, …]}``."""
        self.raised = {}
        kept = self._within(rows, list(range(len(rows))))
        return kept, self.program.run(picked(rows, kept)) if kept else {}

    def _within(self, rows: Rows, places: list[int]) -> list[int]:
        if not places or self.runs <= 0:
            return []
        self.runs -= 1
        try:
            self.program.run(picked(rows, places))
        except Exception as error:  # whatever it is, some of these rows are beyond the model
            if len(places) == 1:
                said = str(error).strip().split("\n", 1)[0]
                self.raised[places[0]] = f"{type(error).__name__}: {said}"
                return []
            half = len(places) // 2
            return self._within(rows, places[:half]) + self._within(rows, places[half:])
        return places


@contextlib.contextmanager
def naming_rows(program: Program, rows: Rows) -> Iterator[None]:
    """Around what scores all rows: an error of the model names the row.

    Raises:
        DataError: Which row the model can't score, and what it raises.
    """
    try:
        yield
    except RankcError:
        raise
    except Exception as error:
        domain = Domain(program)
        domain.scored(rows)
        if not domain.raised:
            raise
        place, said = min(domain.raised.items())
        raise DataError(
            f"the model itself can't score row {rows.first + place}: {said}. Leave such rows out, "
            "or let the model take them, as by a clamp or a where ahead of the table."
        ) from error


def picked(rows: Rows, places: Sequence[int]) -> dict[str, Tensor]:
    """Some rows' features."""
    return take(rows.features, rows.ragged, torch.tensor(places, dtype=torch.int64))


def finite_rows(outputs: Mapping[str, Tensor], rows: int) -> Tensor:
    """Which rows have finite outputs alone, ``[rows]``."""
    found = torch.ones(rows, dtype=torch.bool)
    for value in outputs.values():
        if value.is_floating_point():
            found &= value.isfinite().reshape(rows, -1).all(1)
    return found


def some_finite(outputs: Mapping[str, Tensor], rows: int) -> Tensor:
    """Which rows have any finite output, ``[rows]``."""
    found = torch.zeros(rows, dtype=torch.bool)
    for value in outputs.values():
        found |= value.isfinite().reshape(rows, -1).any(1) if value.numel() else False
    return found
