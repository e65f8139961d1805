"""Choosing among ways to make parts of a program smaller, all under one allowance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar


@dataclass(frozen=True)
class Option:
    """What could be done at one place.

    Attributes:
        place: Of which at most one option is taken.
        saved: Bytes or seconds.
        lost: ``{task: rise of NE}``, measured with this option alone.
    """

    place: str
    saved: float
    lost: Mapping[str, float]

    def price(self, room: Mapping[str, float]) -> float:
        """The largest share of a task's room that it takes, for what it saves."""
        shares = (self.lost.get(task, 0.0) / max(limit, 1e-12) for task, limit in room.items())
        return max(shares, default=inf) / self.saved


O = TypeVar("O", bound=Option)  # noqa: E741 - an option


def choose(
    options: Sequence[O], room: Mapping[str, float], passes: Callable[[Sequence[O]], bool]
) -> list[O]:
    """At most one option a place: most saved for the damage first, fewer until all together pass.

    Args:
        options: What could be done.
        room: ``{task: largest rise of NE}``.
        passes: Whether some options together are within the budget.
    """
    taken: dict[str, O] = {}
    left = dict(room)
    for option in sorted(options, key=lambda o: o.price(room)):
        before = taken.get(option.place)
        if before is not None and before.saved >= option.saved:
            continue
        after = {
            task: limit - option.lost.get(task, 0.0) + (before.lost.get(task, 0.0) if before else 0)
            for task, limit in left.items()
        }
        if all(limit >= 0.0 for limit in after.values()):
            taken[option.place], left = option, after
    chosen = sorted(taken.values(), key=lambda o: o.price(room))
    while chosen and not passes(chosen):
        last = chosen.pop()
        lesser = [o for o in options if o.place == last.place and o.saved < last.saved]
        if lesser:
            chosen.append(max(lesser, key=lambda o: o.saved))
    return chosen
