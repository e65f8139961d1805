"""Whether two programs, or a program and what was built of it, score rows alike.

A score may differ by a few steps of its format; where it differs by more, rounding must explain it:
the row is run again with its rounding moved at random, and what lies far outside of where that
takes the score is a difference. So a score that is the difference of two large numbers, or hangs on
a code between two, is let be, and one that is simply wrong is not, whatever its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.ragged import join
from ..data.rows import Rows
from ..ir.program import Program, with_defaults
from .domain import picked
from .numerics import truth
from .parked import rest
from .sensitivity import Spread, spreads

#: Steps of its format that a score may differ by, relative to it or to a usual score, unexplained.
_STEPS = 64.0
#: How many times as far as rounding took it in a few tries a score may be.
_REACH = 4.0
#: Rows whose difference is looked into.
_EXPLAINED = 48


@dataclass(frozen=True)
class Difference:
    """One score that differs.

    Attributes:
        output: The output's name.
        row: The position of the row among those compared; None where it is all of them.
        got: What was scored.
        want: What the reference gives.
        said: In place of ``got``: what was raised instead, or what else is wrong.
    """

    output: str
    row: int
    got: float = float("nan")
    want: float = float("nan")
    said: str = ""

    def __str__(self) -> str:
        if self.said:
            return self.said
        return f"output {self.output!r} is {self.got:.7g}, and {self.want:.7g} is right"


@dataclass
class Reference:
    """A program's scores of rows, and how far rounding may take them.

    Attributes:
        program: What is right.
        rows: The rows.
        reordered: Whether what is compared may compute sums in another order, as passes do.
        outputs: Its scores, by output.
    """

    program: Program
    rows: Rows
    reordered: bool = False
    outputs: Mapping[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = self.program.run(self.rows.features)
        rest()

    @property
    def compares(self) -> bool:
        """Whether any score is a finite number: else every comparison would hold."""
        return any(bool(value.isfinite().any()) for value in self.outputs.values())

    def difference(
        self,
        got: Mapping[str, Any],
        places: Sequence[int] | None = None,
        other: Program | None = None,
    ) -> Difference | None:
        """The first score that differs, or None.

        Args:
            got: Outputs by name, ``[n, …]`` of the rows at ``places``; of those the reference has.
            places: Which rows; all of them when None.
            other: What made ``got``, if it is a program: its own rounding is let be as well.
        """
        order = torch.arange(len(self.rows)) if places is None else torch.tensor(places)
        doubted: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name, value in self.outputs.items():
            if name not in got:
                continue
            want, have = _shared(value, torch.as_tensor(got[name]))
            if have.shape != (len(order), *want.shape[1:]) or have.dtype != want.dtype:
                made = f"{list(have.shape)} of {_plain(have.dtype)}"
                due = f"{[len(order), *want.shape[1:]]} of {_plain(want.dtype)}"
                return Difference(name, 0, said=f"output {name!r} is {made}, and {due} is right")
            want = want[order].reshape(len(order), -1)
            have = have.reshape(len(order), -1)
            bad = _apart(have, want, self._usual(name))
            if bool(bad.any()):
                doubted[name] = have, want, bad
        if not doubted:
            return None
        return self._unexplained(order, doubted, other)

    def _usual(self, name: str) -> Tensor:
        """The size of a usual score, by column of an output."""
        value = self.outputs[name].double().abs().reshape(len(self.rows), -1)
        known = torch.where(value.isfinite(), value, torch.nan)
        return known.nanmedian(dim=0).values.nan_to_num(0.0) if len(known) else value.sum(0)

    def _unexplained(
        self,
        order: Tensor,
        doubted: Mapping[str, tuple[Tensor, Tensor, Tensor]],
        other: Program | None,
    ) -> Difference | None:
        rows = torch.stack([bad.any(1) for _, _, bad in doubted.values()]).any(0)
        asked = rows.nonzero().flatten()[:_EXPLAINED]
        features = picked(self.rows, order[asked].tolist())
        reach = spreads(self.program, features, reordered=self.reordered)
        own = spreads(other, features, reordered=self.reordered) if other is not None else {}
        exact = truth(self.program, features)
        for name, (have, want, bad) in doubted.items():
            got, right = have[asked].double(), want[asked].double()
            columns = right.shape[1]
            allowed, unsure = _allowed([s[name] for s in (reach, own) if name in s], columns)
            # The original itself overflows where fp64 doesn't: nobody can say what is right.
            lost = ~right.isfinite() & _shaped(exact[name], columns).isfinite()
            near = (got - right).abs() <= _REACH * allowed + _tight(want, self._usual(name))[asked]
            fine = near | unsure | lost | ~bad[asked]
            if bool(fine.all()):
                continue
            where = (~fine).nonzero()[0]
            place, column = int(where[0]), int(where[1])
            return Difference(
                name if columns == 1 else f"{name}[{column}]",
                int(asked[place]),
                float(got[place, column]),
                float(right[place, column]),
            )
        return None


def _shared(want: Tensor, have: Tensor) -> tuple[Tensor, Tensor]:
    """The first columns that both have."""
    if want.dim() == have.dim() == 2:
        columns = min(want.shape[1], have.shape[1])
        return want[:, :columns], have[:, :columns]
    return want, have


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tight(want: Tensor, usual: Tensor) -> Tensor:
    """What a score may differ by unexplained, ``[n, columns]``."""
    if not want.is_floating_point():
        return torch.zeros(want.shape, dtype=torch.float64)
    size = want.double().abs().nan_to_num(0.0, posinf=0.0)
    return _STEPS * torch.finfo(want.dtype).eps * torch.maximum(size, usual[: size.shape[1]])


def _apart(have: Tensor, want: Tensor, usual: Tensor) -> Tensor:
    """Where scores differ by more than a few steps."""
    got, right = have.double(), want.double()
    same = (got == right) | (got.isnan() & right.isnan())
    both = got.isfinite() & right.isfinite()
    return ~same & ~(both & ((got - right).abs() <= _tight(want, usual)))


def _shaped(value: Tensor, columns: int) -> Tensor:
    return value.reshape(len(value), -1)[:, :columns].double()


def _allowed(found: Sequence[Spread], columns: int) -> tuple[Tensor, Tensor]:
    """How far rounding takes scores by any of the programs, and where it decides whether finite."""
    reach = torch.stack([_shaped(one.reach, columns) for one in found]).amax(0)
    unsure = torch.stack([_shaped(one.unsure, columns) for one in found]).amax(0)
    return reach, unsure > 0


def joined(first: Rows, second: Rows) -> Rows:
    """Rows of two sets, one after the other, without labels."""
    return Rows(
        join([dict(first.features), dict(second.features)], first.ragged), ragged=first.ragged
    )


def completed(rows: Rows, program: Program) -> Rows:
    """The rows with what a program takes besides, at its default."""
    return Rows(with_defaults(program.signature, rows.features), ragged=rows.ragged)
