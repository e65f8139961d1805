"""What observes passes, and bisecting with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rankc.optimizer.compare.numerics import divergence
from rankc.optimizer.diagnose.bisect import Culprit, bisect
from rankc.optimizer.errors import PipelineError, VerifyError
from rankc.optimizer.ir import Program, Rewriter, Rule, apply_rules, site_of
from rankc.optimizer.pipeline.instruments import Disable, Dump, Limit, Progress, Time, Verify
from rankc.optimizer.pipeline.passbase import Exactness, Pass, PassContext
from rankc.optimizer.pipeline.pipeline import FixedPoint, Pipeline
from rankc.optimizer.report.records import Outcome
from torch import fx

aten = torch.ops.aten
Make = Callable[..., PassContext]


class ForRelu(Rule):
    """Replaces a relu by a clamp at zero; at one site, by the wrong clamp."""

    roots = (aten.relu.default,)

    def __init__(self, wrong_at: str) -> None:
        self.wrong_at = wrong_at

    def match(self, node: fx.Node) -> Any:
        return node

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        low = 0.3 if site_of(node.args[0]) == self.wrong_at else 0.0  # type: ignore[arg-type]
        return rw.emit(aten.clamp_min.default, node.args[0], low, like=node.args[0])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Clamp(Pass):
    """Rewrites five sites, one of them wrongly if asked to."""

    name: ClassVar[str] = "clamp"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    wrong_at: str = ""

    def run(self, program: Program, ctx: PassContext) -> None:
        """Rewrites."""
        apply_rules([ForRelu(self.wrong_at)], ctx.rewriter(program), lambda *miss: None)


@dataclass(frozen=True)
class Nudge(Pass):
    """Breaks the program without announcing a site."""

    name: ClassVar[str] = "nudge"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, program: Program, ctx: PassContext) -> None:
        """Moves a bias."""
        ctx.rewriter(program).set_parameter("head.bias", program.tensor("head.bias") + 1)


def unchecked(context: Make, *instruments: Any) -> PassContext:
    """Without rows, so that the protocol doesn't notice wrong numbers first."""
    return context(rows=None, instruments=instruments, strict=True)


def test_verify_is_what_notices(program: Program, context: Make) -> None:
    program.graph.find_nodes(op="get_attr")[0].meta.pop("val")
    Verify().before(Clamp(), program)
    with pytest.raises(VerifyError):
        Verify().check(Clamp(), program, program)


def test_disabled_passes_do_not_run(program: Program, context: Make) -> None:
    ctx = unchecked(context, Disable(("nudge",)))
    Pipeline((Nudge(), Clamp())).run(program, ctx)
    assert [record.spec for record in ctx.report.passes] == ["clamp"]


def test_limits_count_passes_then_rewrites(program: Program, context: Make) -> None:
    limit = Limit(passes=2, sites=3)
    ctx = unchecked(context, limit)
    Pipeline((Nudge(), Clamp(), Nudge())).run(program, ctx)
    assert limit.ran == ["nudge", "clamp"]
    assert len(limit.rewrites) == 3
    clamps = program.graph.find_nodes(op="call_function", target=aten.clamp_min.default)
    assert len(clamps) == 3
    assert [record.spec for record in ctx.report.passes] == ["nudge", "clamp"]


def test_no_limit_only_counts(program: Program, context: Make) -> None:
    limit = Limit()
    Pipeline((Clamp(), Nudge())).run(program, unchecked(context, limit))
    assert limit.ran == ["clamp", "nudge"]
    assert limit.rewrites == []


def test_dumps_show_what_changed(program: Program, context: Make, tmp_path: Path) -> None:
    pipeline = Pipeline((Clamp(), Clamp(), Nudge()))
    pipeline.run(program, unchecked(context, Dump(tmp_path / "out")))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["001-clamp.diff", "001-clamp.txt", "003-nudge.diff", "003-nudge.txt"]
    changed = (tmp_path / "out" / "001-clamp.diff").read_text()
    assert changed.count("+") - 1 >= changed.count("= clamp_min(") == 5
    assert "program canonical" in (tmp_path / "out" / "003-nudge.txt").read_text()


def test_progress_names_pass_and_site(program: Program, context: Make) -> None:
    heard: list[str] = []
    Pipeline((Clamp(),)).run(program, unchecked(context, Progress(heard.append)))
    assert heard[0] == "clamp"
    assert len(heard) == 6
    assert all(line.startswith("clamp: ") for line in heard[1:])


def test_time_adds_up(program: Program, context: Make) -> None:
    clock = Time()
    ctx = unchecked(context, clock)
    Pipeline((Clamp(wrong_at="x"), Clamp(), Nudge())).run(program, ctx)
    assert set(clock.seconds) == {"clamp", "nudge"}
    assert clock.seconds["clamp"] == sum(r.seconds for r in ctx.report.passes[:2])


@pytest.fixture
def good(chain: Program, context: Make) -> Callable[[Program], bool]:
    rows = context().rows
    assert rows is not None
    want = chain.run(rows)
    return lambda program: divergence(want, program.run(rows)).bit_equal


@pytest.mark.parametrize("layer", range(5))
def test_bisect_finds_the_rewrite(
    chain: Program, context: Make, good: Callable[[Program], bool], layer: int
) -> None:
    before = chain.fingerprint()
    wrong = Clamp(wrong_at=f"layers.{layer}")
    pipeline = Pipeline((Pipeline.parse("eliminate"), wrong, Pipeline.parse("eliminate")))
    culprit = bisect(chain, pipeline, good, unchecked(context))
    assert culprit is not None
    assert (culprit.index, culprit.pass_spec) == (2, wrong.spec())
    assert culprit.rewrite == layer + 1
    assert str(culprit).startswith(f"{wrong.spec()} (pass 2, rewrite {layer + 1}, at ")
    assert chain.fingerprint() == before


def test_bisect_finds_a_pass_without_sites(
    chain: Program, context: Make, good: Callable[[Program], bool]
) -> None:
    pipeline = Pipeline((Clamp(), FixedPoint((Nudge(),), rounds=2)))
    assert bisect(chain, pipeline, good, unchecked(context)) == Culprit(2, "nudge", None, "")
    assert str(Culprit(2, "nudge", None, "")) == "nudge (pass 2)"


def test_bisect_keeps_the_contexts_own_limits(
    chain: Program, context: Make, good: Callable[[Program], bool]
) -> None:
    pipeline = Pipeline((Nudge(), Clamp(wrong_at="layers.2")))
    culprit = bisect(chain, pipeline, good, unchecked(context, Disable(("nudge",))))
    assert culprit is not None
    assert (culprit.index, culprit.rewrite) == (1, 3)


def test_bisect_needs_something_broken(
    chain: Program, context: Make, good: Callable[[Program], bool]
) -> None:
    assert bisect(chain, Pipeline((Clamp(),)), good) is None
    with pytest.raises(PipelineError, match="fails before the first pass"):
        bisect(chain, Pipeline((Clamp(),)), lambda program: False)


def test_records_say_how_each_pass_ended(program: Program, context: Make) -> None:
    ctx = unchecked(context)
    Pipeline((Clamp(), Clamp())).run(program, ctx)
    assert [r.outcome for r in ctx.report.passes] == [Outcome.CHANGED, Outcome.UNCHANGED]
