"""What is recorded of passes and sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..analysis.cost import Size


class Kind(StrEnum):
    """What a remark says."""

    APPLIED = "applied"
    MISSED = "missed"
    ANALYSIS = "analysis"
    FAILED = "failed"


@dataclass(frozen=True)
class Remark:
    """One sentence from a pass.

    Attributes:
        kind: Whether something was done, left alone, found, or went wrong.
        pass_name: Who says so.
        message: The sentence.
        sites: The places it is about, by the user's own module names.
        data: Numbers behind it.
    """

    kind: Kind
    pass_name: str
    message: str
    sites: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f" [{', '.join(self.sites[:4])}{', …' if len(self.sites) > 4 else ''}]"
        return f"{self.message}{where if self.sites else ''}"


class Outcome(StrEnum):
    """How a pass ended."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    ROLLED_BACK = "rolled back"
    FAILED = "failed"


@dataclass(frozen=True)
class PassRecord:
    """One run of one pass.

    Attributes:
        index: Its number in the pipeline's run.
        spec: The pass as pipeline text.
        exactness: What it promised.
        outcome: How it ended.
        seconds: How long it took, checks included.
        before: The program's size before.
        after: The program's size after.
        divergence: How far outputs moved on the real rows; None when unchanged or unchecked.
        note: Why it was skipped, rolled back or failed.
        estimate: Estimated seconds at the largest batch served, before and after; None when
            unchanged.
        delta_ne: ``{task: ΔNE}`` of the program so far, on the rows that choose; None unless it was
            judged.
    """

    index: int
    spec: str
    exactness: str
    outcome: Outcome
    seconds: float
    before: Size
    after: Size
    divergence: dict[str, Any] | None = None
    note: str = ""
    estimate: tuple[float, float] | None = None
    delta_ne: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict; seconds are left out, so that the same input gives the same bytes."""
        data = asdict(self)
        data.pop("seconds")
        data["outcome"] = self.outcome.value
        return data


@dataclass(frozen=True)
class SiteRecord:
    """The decision at one site: a table or a linear.

    Attributes:
        site: The user's name of it.
        kind: ``"table"``, ``"linear"``, or ``"parameter"`` where it is shared with another.
        shape: Rows and width of a table, outputs and inputs of a linear.
        chosen: The format it got.
        candidates: Per other format: error, estimated time, ΔNE and why (not).
        reason: Why the chosen one.
    """

    site: str
    kind: str
    shape: tuple[int, ...]
    chosen: str
    candidates: tuple[dict[str, Any], ...] = ()
    reason: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SiteRecord:
        """The record that a saved report holds."""
        candidates = tuple(dict(candidate) for candidate in data["candidates"])
        return cls(**{**data, "shape": tuple(data["shape"]), "candidates": candidates})


@dataclass(frozen=True)
class Bought:
    """What one pass bought.

    Attributes:
        spec: The pass.
        seconds: Share of the first program's estimated time that it took away; negative if added.
        nbytes: Bytes it took away.
        delta_ne: ``{task: rise of ΔNE}`` it caused, on the rows that choose; empty for passes that
            promise to change nothing.
        so_far: ``{task: ΔNE}`` with all passes up to it.
    """

    spec: str
    seconds: float
    nbytes: int
    delta_ne: dict[str, float]
    so_far: dict[str, float]
