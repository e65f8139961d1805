"""What a pass is, what it is given, and what observes it.

A pass is a frozen dataclass whose fields are its options; `PassContext` is all it is given besides
the program; an `Instrument` has hooks around passes and is never inside one.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from torch import fx

from ..compare.differences import Reference
from ..data.rows import Rows
from ..errors import PipelineError
from ..ir.facts import site_of
from ..ir.forms import Form
from ..ir.program import Features, Program
from ..ir.rewrite import Rewriter
from ..quality.budget import Budget
from ..quality.verdict import Verdict
from ..report.records import Kind, PassRecord, Remark
from ..report.report import Report
from ..target import Target
from .spec import coerce, split_spec

T = TypeVar("T")


class Exactness(StrEnum):
    """What a pass promises about the numbers; the pipeline holds it to that."""

    #: Bit-equal outputs.
    EXACT = "exact"
    #: Equal in exact arithmetic; error against an fp64 truth of the original's own size
    #: (`numerics.ROUNDING_SLACK`).
    ROUNDING = "rounding"
    #: Approximate: charged to the error budget, rolled back if over.
    LOSSY = "lossy"
    #: Approximate and needs finetuning; never applied silently.
    TRAINED = "trained"


class Skip(Exception):  # noqa: N818 - it is a decision, not an error
    """Raised by `Pass.check` when there is nothing to do; becomes a Missed remark."""


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a program.

    Subclass as a frozen dataclass. Fields are options and must be numbers, bools, strings or
    tuples of them, with defaults; ``spec()`` and ``parse()`` round-trip them.

    Class attributes:
        name: The pass's name in pipelines: its file's name with dashes.
        exactness: What it promises about the numbers.
        requires: The form a program must be in.
        produces: The form a program is in afterwards, if it changes.
        idempotent: Whether a second run right after changes nothing.
        keeps_contract: Whether callers see the same features and outputs as before.
        realises: The kind of the sites whose placed formats it realises, ``"linear"`` or
            ``"table"``: if it is undone, they are as they were.
        places: Whether it decides formats that other passes realise.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[Form] = Form.CANONICAL
    produces: ClassVar[Form | None] = None
    idempotent: ClassVar[bool] = True
    keeps_contract: ClassVar[bool] = True
    realises: ClassVar[str] = ""
    places: ClassVar[bool] = False

    def check(self, program: Program, ctx: PassContext) -> None:  # noqa: B027 - optional hook
        """Raises `Skip` with the reason when the pass can't apply to this program or target."""

    @abstractmethod
    def run(self, program: Program, ctx: PassContext) -> None:
        """Rewrites the program in place. It must be valid after, not during."""

    def spec(self) -> str:
        """The pass as pipeline text: its name and the options that differ from the defaults."""
        options = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                options.append(f"{item.name}={value!r}")
        return f"{self.name}{{{','.join(options)}}}" if options else self.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """The pass that ``spec()`` wrote.

        Raises:
            PipelineError: Malformed text, or an option the pass doesn't have.
        """
        name, options = split_spec(text)
        if name != cls.name:
            raise PipelineError(f"{text!r} names {name!r}, not {cls.name!r}")
        known = {item.name: item for item in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in options.items():
            if key not in known:
                raise PipelineError(
                    f"{cls.name} has no option {key!r}; it has {sorted(known) or 'none'}"
                )
            values[key] = coerce(cls.name, key, value, known[key].default)
        return cls(**values)


class Instrument:
    """Hooks around passes; override what is needed."""

    def should_run(self, pass_: Pass, program: Program) -> bool:
        """Whether the pass may run; asked before anything else."""
        return True

    def may_rewrite(self, pass_: Pass, where: str) -> bool:
        """Whether the pass may do the rewrite it just announced at ``where``."""
        return True

    def before(self, pass_: Pass, program: Program) -> None:
        """Called right before the pass."""

    def check(self, pass_: Pass, before: Program, program: Program) -> None:
        """Called after a pass that changed something; raises if the program is broken."""

    def after(self, record: PassRecord, before: Program, program: Program) -> None:
        """Called when the pass is done, with what came of it."""


class PlanJudge(Protocol):
    """Judges programs on the rows that choose a plan, against the original."""

    @property
    def budget(self) -> Budget:
        """The limits."""

    @property
    def rows(self) -> Rows:
        """The rows that choose."""

    def __call__(self, program: Program) -> Verdict:
        """The verdict, with labels where there are any."""

    def promises(self, program: Program, spare: float = 1.0) -> bool:
        """Whether the program will most likely pass on the rows that prove."""

    def damages(self, program: Program) -> Mapping[str, float]:
        """``{task or cohort: rise of NE}`` on soft labels (see `knapsack.py`)."""

    def allowances(self) -> Mapping[str, float]:
        """The largest damages a plan can have and still be judged within the budget."""

    def sample(self) -> Features:
        """Features of a few thousand of the rows, from all over them."""

    def scaled(self, share: float) -> PlanJudge:
        """The same judge with a share of the budget."""

    def against(self, program: Program, rows: Rows) -> PlanJudge:
        """A judge of other rows, with another original and the same limits."""

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
        original: What rounding errors are measured against: the captured program, or the program
            as the last lossy or trained pass left it.
        instruments: What observes the passes.
        strict: A pass that fails or breaks its promise raises instead of being rolled back.
        batch_sizes: The batch sizes that will be served.
        seed: For whatever samples.
        may_train: Whether passes that need finetuning may run; never without being asked for.
        resources: What only some passes ask for, by its type; see `resource`.
        say: Told what a long pass is at.
        cache: The folder that measured times are remembered in; the user's own when None.
    """

    target: Target
    report: Report = field(default_factory=Report)
    rows: Features | None = None
    hostile: Rows | None = None
    calibration: Sequence[Features] = ()
    judge: PlanJudge | None = None
    original: Program | None = None
    instruments: Sequence[Instrument] = ()
    strict: bool = False
    batch_sizes: tuple[int, ...] = (64, 512)
    seed: int = 0
    may_train: bool = False
    resources: list[object] = field(default_factory=list)
    say: Callable[[str], None] = field(default=lambda message: None)
    cache: Path | None = None
    current: Pass | None = None
    _edges: tuple[str, Reference] | None = None
    _analyses: dict[tuple[str, str], Any] = field(default_factory=dict)

    def resource(self, kind: type[T]) -> T | None:
        """What the driver, or an earlier pass, put here of a kind; None where it is absent.

        `Recovery`: what may be finetuned on, and how. `Knowledge`: damages that were measured
        before. `Assumptions`: ranges and made-up rows where there are no others. `KernelTimes`: how
        long kernels take on the target, once a pass asked.
        """
        return next((one for one in self.resources if isinstance(one, kind)), None)

    def put(self, resource: T) -> T:
        """Adds what later passes find by `resource`."""
        self.resources.append(resource)
        return resource

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
        assert self.hostile is not None
        mark = program.fingerprint()
        if self._edges is None or self._edges[0] != mark:
            # One alone: it keeps the program's tensors in memory.
            self._edges = mark, Reference(program, self.hostile, reordered=True)
        return self._edges[1]

    def release(self) -> None:
        """Lets go of the programs that passes were held against; no pass may run after."""
        self.original = self.judge = self._edges = None
        self.resources.clear()
        self._analyses.clear()

    def rewriter(self, program: Program) -> Rewriter:
        """The editor for the current pass; the instruments may hold back single rewrites."""
        current = self.current
        name = current.name if current else ""

        def may_rewrite(where: str) -> bool:
            return current is None or all(i.may_rewrite(current, where) for i in self.instruments)

        return Rewriter(program, name, may_rewrite)
