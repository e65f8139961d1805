"""Pipelines as text, and the protocol around a pass: planted mistakes must be caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from rankc.frontends.export import capture
from rankc.optimizer.errors import PassError, PipelineError, PreconditionError
from rankc.optimizer.ir import Form, Program, Rewriter, Rule, apply_rules, verify
from rankc.optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from rankc.optimizer.pipeline.pipeline import FixedPoint, Pipeline
from rankc.optimizer.quality.verdict import Status
from rankc.optimizer.report.records import Kind, Outcome, SiteRecord
from rankc.optimizer.report.report import Report
from rankc.optimizer.target import Target
from support import RuleJudge, verdict
from torch import fx, nn

aten = torch.ops.aten
Make = Callable[..., PassContext]


def linears(program: Program) -> list[fx.Node]:
    return program.graph.find_nodes(op="call_function", target=aten.linear.default)


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("canonicalize", "canonicalize"),
        ("canonicalize, eliminate", "canonicalize,eliminate"),
        ("fixpoint(eliminate,fold-constants{max_bytes=8})",) * 2,
        ("exact", "canonicalize,fixpoint(fold-constants,eliminate)"),
        ("exact,-fold-constants", "canonicalize,fixpoint(eliminate)"),
        ("exact,-canonicalize", "fixpoint(fold-constants,eliminate)"),
        ("exact,+fold-affine", "canonicalize,fixpoint(fold-constants,eliminate),fold-affine"),
        (
            "exact,+fold-affine@after:canonicalize",
            "canonicalize,fold-affine,fixpoint(fold-constants,eliminate)",
        ),
        (
            "exact,+fold-affine@before:eliminate",
            "canonicalize,fold-affine,fixpoint(fold-constants,eliminate)",
        ),
        (
            "exact,+fold-constants{max_bytes=3}@after:eliminate",
            "canonicalize,fixpoint(fold-constants,eliminate),fold-constants{max_bytes=3}",
        ),
        ("eliminate,eliminate,+fold-affine@after:eliminate", "eliminate,eliminate,fold-affine"),
        ("eliminate,eliminate,+fold-affine@before:eliminate", "fold-affine,eliminate,eliminate"),
        ("", ""),
    ],
)
def test_text_there_and_back(text: str, spec: str) -> None:
    pipeline = Pipeline.parse(text)
    assert pipeline.spec() == spec
    assert Pipeline.parse(spec) == pipeline


def test_named_pipelines_parse() -> None:
    default = Pipeline.parse("default")
    assert default.spec().startswith(f"strip-train-only,{Pipeline.parse('rounding').spec()}")
    assert Pipeline.parse("rounding").spec().startswith(Pipeline.parse("exact").spec())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canonicalise", "no pass is called 'canonicalise'; did you mean canonicalize?"),
        ("defualt", "no pass is called 'defualt'; did you mean default"),
        ("fixpoint(eliminat)", "did you mean eliminate"),
        ("exact,-canonicalise", r"'-canonicalise': no 'canonicalise' in \['canonicalize', 'fix"),
        ("exact,+eliminate@behind:eliminate", "write the place as @after:pass or @before:pass"),
        ("exact,+eliminate@after", "write the place as"),
        ("exact,+eliminate@after:fold-affine", "no 'fold-affine' in"),
        ("exact,+nonsense", "no pass is called 'nonsense'"),
        ("fold-constants{max_size=1}", r"fold-constants has no option 'max_size'"),
        ("fixpoint(eliminate", "is no pass"),
    ],
)
def test_bad_text_is_told(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(text)


# --- planted passes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted(Pass):
    """Edits the graph as its subclasses say."""

    name: ClassVar[str] = "planted"


@dataclass(frozen=True)
class WrongExact(Planted):
    """Claims to be exact and moves a bias by very little."""

    name: ClassVar[str] = "wrong-exact"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Moves it."""
        rw = ctx.rewriter(program)
        rw.set_parameter("head.bias", program.tensor("head.bias") + 1e-5)
        ctx.applied("moved a bias", "head")
        ctx.missed("a near miss", "layers.0")


@dataclass(frozen=True)
class Coarse(Planted):
    """Claims to be rounding and goes through a narrower format."""

    name: ClassVar[str] = "coarse"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    through: str = "bfloat16"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Rounds the first linear's output."""
        rw = ctx.rewriter(program)
        node = linears(program)[0]
        relu = next(iter(node.users))
        with rw.before(relu):
            narrow = rw.emit(aten._to_copy.default, node, dtype=getattr(torch, self.through))
            wide = rw.emit(aten._to_copy.default, narrow, dtype=torch.float32, like=node)
        rw.set_argument(relu, 0, wide)


@dataclass(frozen=True)
class Lossy(Coarse):
    """The same, declared honestly."""

    name: ClassVar[str] = "lossy"
    exactness: ClassVar[Exactness] = Exactness.LOSSY


@dataclass(frozen=True)
class Raises(Planted):
    """Fails half way."""

    name: ClassVar[str] = "raises"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Edits, then raises."""
        ctx.rewriter(program).set_parameter("head.bias", torch.zeros(1))
        raise ZeroDivisionError("halfway\nthrough")


@dataclass(frozen=True)
class Invalid(Planted):
    """Leaves a node whose value is a lie."""

    name: ClassVar[str] = "invalid"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Edits around the rewriter."""
        node = linears(program)[0]
        relu = next(iter(node.users))
        with program.graph.inserting_before(relu):
            made = program.graph.call_function(aten.neg.default, (node,))
        relu.replace_input_with(node, made)


@dataclass(frozen=True)
class Unwilling(Planted):
    """Doesn't apply."""

    name: ClassVar[str] = "unwilling"

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips."""
        raise Skip("there is nothing for it here")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Is never called."""
        raise AssertionError


@dataclass(frozen=True)
class LateSkip(Planted):
    """Notices too late that it doesn't apply."""

    name: ClassVar[str] = "late-skip"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Edits, then skips."""
        ctx.rewriter(program).set_parameter("head.bias", torch.zeros(1))
        raise Skip("changed its mind")


@dataclass(frozen=True)
class Idle(Planted):
    """Emits nodes nobody uses."""

    name: ClassVar[str] = "idle"

    def run(self, program: Program, ctx: PassContext) -> None:
        """Emits a dead node and a dead parameter."""
        rw = ctx.rewriter(program)
        node = linears(program)[0]
        with rw.before(node):
            rw.emit(aten.neg.default, node.args[0])
        rw.parameter("dead", torch.zeros(3))


@dataclass(frozen=True)
class Bypass(Planted):
    """Skips the first relu that is left: one a round."""

    name: ClassVar[str] = "bypass"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    def run(self, program: Program, ctx: PassContext) -> None:
        """Replaces one relu by its input."""
        relus = program.graph.find_nodes(op="call_function", target=aten.relu.default)
        if relus:
            ctx.rewriter(program).replace(relus[0], relus[0].args[0])


@dataclass(frozen=True)
class Harmless(Planted):
    """Turns relu into clamp."""

    name: ClassVar[str] = "harmless"
    times: int = 1

    def run(self, program: Program, ctx: PassContext) -> None:
        """Does it everywhere."""
        count = apply_rules([ClampForRelu()], ctx.rewriter(program), lambda *miss: None)
        if count:
            ctx.applied(f"clamped {count} times")


class ClampForRelu(Rule):
    """Replaces a relu by a clamp at zero."""

    roots = (aten.relu.default,)

    def match(self, node: fx.Node) -> Any:
        return node

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node | None:
        return rw.emit(aten.clamp_min.default, node.args[0], 0.0, like=node)


over_budget = RuleJudge(lambda _: verdict(Status.FAIL, 0.03, "ΔNE is 3 %, 0.02 % is allowed"))
within_budget = RuleJudge(lambda _: verdict(Status.PASS, 1e-5))


BROKEN = [
    (WrongExact(), Outcome.ROLLED_BACK, "declared exact, but outputs moved by up to 1"),
    (Coarse(), Outcome.ROLLED_BACK, "declared rounding, but its error against fp64 is"),
    (Raises(), Outcome.FAILED, "halfway"),
    (Invalid(), Outcome.FAILED, "neg_default has no value; make nodes with Rewriter.emit"),
]


@pytest.mark.parametrize(("pass_", "outcome", "why"), BROKEN)
def test_a_broken_pass_is_rolled_back(
    program: Program, context: Make, pass_: Pass, outcome: Outcome, why: str
) -> None:
    before, ctx = program.fingerprint(), context()
    Pipeline((pass_, Harmless())).run(program, ctx)
    first, second = ctx.report.passes
    assert (first.spec, first.outcome) == (pass_.spec(), outcome)
    assert why in first.note
    assert "\n" not in first.note
    assert first.before == first.after
    (failed,) = ctx.report.said(Kind.FAILED)
    assert failed.pass_name == pass_.name
    assert "rolled back" in failed.message
    # The pipeline goes on with the program as it was.
    assert second.outcome is Outcome.CHANGED
    assert program.recipe[-1] == "harmless"
    assert pass_.spec() not in program.recipe
    verify(program)
    again = program.clone()
    assert again.fingerprint() != before


def test_only_remarks_that_still_hold_are_kept(program: Program, context: Make) -> None:
    ctx = context()
    Pipeline((WrongExact(),)).run(program, ctx)
    kinds = [(remark.kind, remark.message[:12]) for remark in ctx.report.remarks]
    assert kinds == [(Kind.MISSED, "a near miss"), (Kind.FAILED, "rolled back:")]


def test_formats_that_were_rolled_back_are_not_told_as_taken(
    program: Program, context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context()
    ctx.report.sites += [
        SiteRecord("top.0", "linear", (64, 32), "int8", (), "2 times as fast"),
        SiteRecord("tables.0", "table", (9, 8), "int4", (), "1 times as fast"),
    ]
    monkeypatch.setattr(WrongExact, "realises", "linear")
    Pipeline((WrongExact(),)).run(program, ctx)
    linear, table = ctx.report.sites
    assert (linear.chosen, table.chosen) == ("fp32", "int4")
    assert linear.reason.startswith("rolled back: it is declared exact")


@pytest.mark.parametrize(("pass_", "outcome", "why"), BROKEN)
def test_strict_raises_and_names_the_pass(
    program: Program, context: Make, pass_: Pass, outcome: Outcome, why: str
) -> None:
    with pytest.raises(PassError, match=pass_.name) as caught:
        Pipeline((pass_,)).run(program, context(strict=True))
    assert caught.value.pass_spec == pass_.spec()
    assert why in str(caught.value)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("judge", "outcome", "why"),
    [
        (over_budget, Outcome.ROLLED_BACK, "over budget: ΔNE is 3 %, 0.02 % is allowed"),
        (None, Outcome.ROLLED_BACK, "a lossy pass needs data to be judged on"),
        (within_budget, Outcome.CHANGED, ""),
    ],
)
def test_a_lossy_pass_is_judged(
    program: Program, context: Make, judge: Any, outcome: Outcome, why: str, strict: bool
) -> None:
    before, ctx = program.fingerprint(), context(judge=judge, strict=strict)
    Pipeline((Lossy(),)).run(program, ctx)
    (record,) = ctx.report.passes
    assert record.outcome is outcome
    assert record.note.startswith(why)
    assert record.divergence is not None
    assert record.divergence["relative"] > 1e-5
    assert (program.fingerprint() == before) == (outcome is Outcome.ROLLED_BACK)


def test_a_rounding_pass_within_its_promise_is_kept(program: Program, context: Make) -> None:
    ctx = context(strict=True)
    Pipeline((Coarse(through="float64"),)).run(program, ctx)
    assert ctx.report.passes[0].outcome is Outcome.CHANGED
    assert program.recipe[-1] == "coarse{through='float64'}"


@pytest.mark.parametrize("exactness", [Exactness.LOSSY, Exactness.TRAINED])
def test_after_a_lossy_pass_rounding_is_measured_from_what_it_left(
    program: Program, context: Make, monkeypatch: pytest.MonkeyPatch, exactness: Exactness
) -> None:
    monkeypatch.setattr(Lossy, "exactness", exactness)
    ctx = context(judge=within_budget, strict=True, may_train=True)
    Pipeline((Lossy(), Coarse(through="float64"), Coarse(through="float64"))).run(program, ctx)
    assert [r.outcome for r in ctx.report.passes] == [Outcome.CHANGED] * 3
    assert ctx.report.failures == []
    with pytest.raises(PassError, match="its error against fp64 is"):
        Pipeline((Coarse(through="float8_e5m2"),)).run(program, ctx)


def test_after_a_lossy_pass_that_was_undone_the_reference_stays(
    program: Program, context: Make, chain: Program
) -> None:
    ctx = context(judge=over_budget)
    Pipeline((Lossy(), Coarse())).run(program, ctx)
    assert ctx.original is chain
    assert [r.outcome for r in ctx.report.passes] == [Outcome.ROLLED_BACK] * 2
    # Being over budget is what the gate is for; a broken promise is a fault of the pass.
    (failure,) = ctx.report.failures
    assert failure.startswith("coarse")


def test_skipping_is_a_missed_remark(program: Program, context: Make) -> None:
    before = program.fingerprint()
    for pass_, why in ((Unwilling(), "there is nothing for it here"), (LateSkip(), "changed its")):
        ctx = context(strict=True)
        Pipeline((pass_,)).run(program, ctx)
        (record,) = ctx.report.passes
        assert (record.outcome, record.note[: len(why)]) == (Outcome.SKIPPED, why)
        (remark,) = ctx.report.said(Kind.MISSED, pass_.name)
        assert remark.message.startswith(why)
        assert program.fingerprint() == before


def test_dead_code_is_no_change(program: Program, context: Make) -> None:
    before, ctx = program.fingerprint(), context(strict=True)
    Pipeline((Idle(), Harmless(), Harmless())).run(program, ctx)
    outcomes = [record.outcome.value for record in ctx.report.passes]
    assert outcomes == ["unchanged", "changed", "unchanged"]
    assert not hasattr(program.module, "dead")
    assert program.fingerprint() != before
    assert program.recipe == ("canonicalize", "harmless")
    assert [record.index for record in ctx.report.passes] == [1, 2, 3]


def test_a_fixpoint_stops_when_nothing_changes(program: Program, context: Make) -> None:
    ctx = context(judge=within_budget, strict=True)
    loop = FixedPoint((Bypass(),))
    assert loop.spec() == "fixpoint(bypass)"
    loop.run(program, ctx)
    assert [r.outcome.value for r in ctx.report.passes] == ["changed"] * 5 + ["unchanged"]
    assert ctx.report.notes == []


def test_a_fixpoint_that_does_not_settle_says_so(program: Program, context: Make) -> None:
    ctx = context(judge=within_budget)
    FixedPoint((Bypass(),), rounds=3).run(program, ctx)
    assert ctx.report.notes == ["fixpoint(bypass) still changed things after 3 rounds"]


def test_leaving_out_classes_reaches_into_fixpoints() -> None:
    whole = Pipeline((Harmless(), FixedPoint((Lossy(), Harmless())), Lossy()))
    kept = whole.without(Exactness.LOSSY, Exactness.TRAINED)
    assert kept == Pipeline((Harmless(), FixedPoint((Harmless(),))))


def test_the_wrong_form_is_the_pipelines_mistake(chain: Program, context: Make) -> None:
    program = chain.clone()
    program.form = Form.CAPTURED
    with pytest.raises(PreconditionError, match="harmless requires a program that is canonical"):
        Pipeline((Harmless(),)).run(program, context())


def test_the_context_remembers_analyses(program: Program, context: Make) -> None:
    calls = []

    def count(program: Program) -> int:
        calls.append(program)
        return len(calls)

    ctx = context()
    assert [ctx.get(count, program), ctx.get(count, program), ctx.get(count, program.clone())] == [
        1,
        1,
        1,
    ]
    Harmless().run(program, ctx)
    assert ctx.get(count, program) == 2


def test_what_needs_an_undone_pass_does_not_run() -> None:
    @dataclass(frozen=True)
    class Undone(Pass):
        """Fails where canonicalize should have been."""

        name: ClassVar[str] = "undone"
        requires: ClassVar[Form] = Form.CAPTURED
        produces: ClassVar[Form | None] = Form.CANONICAL

        def run(self, program: Program, ctx: PassContext) -> None:
            raise RuntimeError("no")

    report = Report()
    program = capture(nn.Linear(4, 1).eval(), (torch.randn(3, 4),))
    context = PassContext(target=Target.of("cpu-fp32"), report=report)
    Pipeline((Undone(), Pipeline.parse("eliminate").passes[0])).run(program, context)
    assert [record.outcome for record in report.records] == [Outcome.FAILED]
    assert report.notes == ["eliminate did not run: it needs a pass that was undone"]
