"""Finding the pass, then the single rewrite, that breaks a predicate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import PipelineError
from ..ir.program import Program
from ..pipeline.instruments import Limit
from ..pipeline.passbase import PassContext
from ..pipeline.pipeline import Pipeline
from ..report.report import Report
from ..target import Target


@dataclass(frozen=True)
class Culprit:
    """What broke the predicate.

    Attributes:
        index: Which pass of the run, counted from 1.
        pass_spec: The pass.
        rewrite: Which of its rewrites, counted from 1; None if it announced none.
        site: Where that rewrite was, by the user's name.
    """

    index: int
    pass_spec: str
    rewrite: int | None
    site: str

    def __str__(self) -> str:
        where = f", rewrite {self.rewrite}, at {self.site}" if self.rewrite is not None else ""
        return f"{self.pass_spec} (pass {self.index}{where})"


def bisect(
    program: Program,
    pipeline: Pipeline,
    good: Callable[[Program], bool],
    context: PassContext | None = None,
) -> Culprit | None:
    """The first pass, and in it the first rewrite, after which ``good`` no longer holds.

    Args:
        program: The program before the pipeline; it isn't changed.
        pipeline: What breaks it.
        good: Whether a program is as it should be.
        context: The surroundings of the passes; its own limits are kept.

    Returns:
        The culprit, or None if the whole pipeline leaves the program good.

    Raises:
        PipelineError: The program isn't good to begin with.
    """
    if not good(program):
        raise PipelineError("the predicate fails before the first pass; nothing to bisect")
    surroundings = context or PassContext(target=Target.of("cpu-fp32"))

    def run(passes: int | None, sites: int | None = None) -> tuple[bool, Limit]:
        limit = Limit(passes, sites)
        trial = program.clone()
        pipeline.run(
            trial,
            replace(surroundings, report=Report(), instruments=(*surroundings.instruments, limit)),
        )
        return good(trial), limit

    fine, limit = run(None)
    if fine:
        return None
    index = _first_bad(len(limit.ran), lambda count: run(count)[0])
    _, limit = run(index)
    spec, rewrites = limit.ran[-1], limit.rewrites
    if not rewrites or not run(index, 0)[0]:
        return Culprit(index, spec, None, "")
    rewrite = _first_bad(len(rewrites), lambda count: run(index, count)[0])
    return Culprit(index, spec, rewrite, rewrites[rewrite - 1])


def _first_bad(count: int, good_up_to: Callable[[int], bool]) -> int:
    """The smallest n in 1..count for which it isn't good; it is good at 0 and bad at count."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if good_up_to(middle):
            low = middle
        else:
            high = middle
    return high
