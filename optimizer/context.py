"""What a pass is given besides the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import fx

from .ir.facts import site_of
from .ir.program import Features, Program
from .ir.rewrite import Rewriter
from .report import Kind, Remark, Report
from .target import Target

if TYPE_CHECKING:
    from .assumed import Assumptions
    from .data import Rows
    from .differences import Reference
    from .distill import Recovery
    from .instruments import Instrument
    from .kernels import KernelTimes
    from .knowledge import Knowledge
    from .passbase import Pass
    from .verdict import Verdict

T = TypeVar("T")


class PlanJudge(Protocol):
    """Judges programs on the rows that choose a plan, against the original."""

    def __call__(self, program: Program) -> Verdict:
        """The verdict, with labels where there are any."""

    def promises(self, program: Program, spare: float = 1.0) -> bool:
        """Whether the program will most likely pass on the rows that prove."""

    def damages(self, program: Program) -> Mapping[str, float]:
        """``{task or cohort: rise of NE}`` on soft labels (see `optimizer/placement.py`)."""

    def allowances(self) -> Mapping[str, float]:
        """The largest damages a plan can have and still be judged within the budget."""

    def sample(self) -> Features:
        """Features of a few thousand of the rows, from all over them."""

    def rebased(self, program: Program, *, trained: bool = False) -> PlanJudge:
        """A judge whose damages and allowances count from a program that was let differ."""


@dataclass
class PassContext:
    """The surroundings of a pipeline run.

    Attributes:
        target: What is built for.
        report: Where records and remarks go.
        rows: A few hundred real (or synthetic) rows, features by name, for checking numerics.
        hostile: Rows at the edges of what the model takes, for checking that nothing but rounding
            changes; None for none.
        calibration: Batches for ranges and statistics; disjoint from what judges.
        judge: Scores a program on the rows that choose a plan, against the original; where it is
            None no lossy pass runs.
        assumed: What formats are placed on where those rows are made up; None with data.
        original: What rounding errors are measured against: the captured program, or the program
            as the last lossy or trained pass left it.
        instruments: What observes the passes.
        strict: A pass that fails or breaks its promise raises instead of being rolled back.
        batch_sizes: The batch sizes that will be served.
        seed: For whatever samples.
        may_train: Whether passes that need finetuning may run; never without being asked for.
        recovery: What they finetune on and how.
        knowledge: Damages that need not be measured again.
        say: Told what a long pass is at.
        cache: The folder that measured times are remembered in; the user's own when None.
    """

    target: Target
    report: Report = field(default_factory=Report)
    rows: Features | None = None
    hostile: Rows | None = None
    calibration: Sequence[Features] = ()
    judge: PlanJudge | None = None
    assumed: Assumptions | None = None
    original: Program | None = None
    instruments: Sequence[Instrument] = ()
    strict: bool = False
    batch_sizes: tuple[int, ...] = (64, 512)
    seed: int = 0
    may_train: bool = False
    recovery: Recovery | None = None
    knowledge: Knowledge | None = None
    say: Callable[[str], None] = field(default=lambda message: None)
    cache: Path | None = None
    current: Pass | None = None
    _edges: tuple[str, Reference] | None = None
    _analyses: dict[tuple[str, str], Any] = field(default_factory=dict)

    @cached_property
    def kernels(self) -> KernelTimes:
        """How long kernels take on the target."""
        from .kernel_cache import default_folder
        from .kernels import KernelTimes

        return KernelTimes(self.target, self.cache or default_folder())

    def remark(self, kind: Kind, message: str, *nodes: fx.Node | str, **data: Any) -> None:
        """Says what a pass did (APPLIED), left alone and why (MISSED), or found (ANALYSIS).

        Args:
            kind: Which of the three.
            message: A sentence in the field's words.
            *nodes: The nodes, or site names, it is about.
            **data: Numbers behind it, JSON-able.
        """
        sites = tuple(n if isinstance(n, str) else site_of(n) for n in nodes)
        name = self.current.name if self.current else ""
        self.report.remarks.append(Remark(kind, name, message, sites, data))

    def applied(self, message: str, *nodes: fx.Node | str, **data: Any) -> None:
        """`remark` of kind APPLIED."""
        self.remark(Kind.APPLIED, message, *nodes, **data)

    def missed(self, message: str, *nodes: fx.Node | str, **data: Any) -> None:
        """`remark` of kind MISSED."""
        self.remark(Kind.MISSED, message, *nodes, **data)

    def get(self, analysis: Callable[[Program], T], program: Program) -> T:
        """An analysis of the program, remembered as long as the program is the same."""
        key = (f"{analysis.__module__}.{analysis.__qualname__}", program.fingerprint())
        if key not in self._analyses:
            self._analyses[key] = analysis(program)
        found: T = self._analyses[key]
        return found

    def edges(self, program: Program) -> Reference:
        """A program's scores of the hostile rows, remembered as long as it is the same."""
        from .differences import Reference

        assert self.hostile is not None
        mark = program.fingerprint()
        if self._edges is None or self._edges[0] != mark:
            # One alone: it keeps the program's tensors in memory.
            self._edges = mark, Reference(program, self.hostile, reordered=True)
        return self._edges[1]

    def release(self) -> None:
        """Lets go of the programs that passes were held against; no pass may run after."""
        self.original = self.judge = self._edges = None
        self._analyses.clear()

    def rewriter(self, program: Program) -> Rewriter:
        """The editor for the current pass; the instruments may hold back single rewrites."""
        current = self.current
        name = current.name if current else ""

        def may_rewrite(where: str) -> bool:
            return current is None or all(i.may_rewrite(current, where) for i in self.instruments)

        return Rewriter(program, name, may_rewrite)
