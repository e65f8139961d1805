"""What the tests of passes share: capturing small modules, running passes on them, comparing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rankc.frontends.export import capture
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.ir import Form, Program
from rankc.optimizer.ir.infer import infer_signature
from rankc.optimizer.ir.ops import DEQUANTIZE, ROWWISE_LINEAR
from rankc.optimizer.ir.printer import line, text
from rankc.optimizer.ir.program import flatten_exported
from rankc.optimizer.ir.structure import Structure
from rankc.optimizer.ir.torchapi import core_decompositions
from rankc.optimizer.ir.verifier import same_value
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.intervals import Interval
from rankc.optimizer.quality.judge import Judge
from rankc.optimizer.quality.metrics import ShiftSummary
from rankc.optimizer.quality.scores import task_logits
from rankc.optimizer.quality.verdict import Metrics, Status, TaskResult, Verdict
from rankc.optimizer.report.records import Kind, Outcome
from rankc.optimizer.report.report import Report
from rankc.optimizer.target import DeviceSpec, Target
from rankc.optimizer.training.distill import Distill, Recovery
from torch import Tensor, fx, nn

#: Parameters must be the same bit for bit: what exact passes are held to.
BIT_EQUAL = 0.0
#: Parameters that were computed in fp64 and rounded to fp32 once may differ by one step of fp32,
#: relative to the parameter's largest value.
ONE_ROUNDING = torch.finfo(torch.float32).eps

#: A made-up device on which every INT8 linear pays, however small, and every table has rows.
EAGER_INT8 = Target(
    "test-int8",
    DeviceSpec("test", "cpu", bandwidth=1e6, peaks=(("fp32", 1e-3), ("int8", 1.0))),
    formats=("int8",),
    table_formats=("int8",),
    int8_activations="uint8",
    min_linear=4,
    memory_weight=0.0,
)


# --- capturing ------------------------------------------------------------------------------------


def capture_small(module: nn.Module, *inputs: Tensor) -> Program:
    """The captured module in eval mode, batch dynamic."""
    return capture(module.eval(), inputs)


def capture_ragged(module: nn.Module, **inputs: Tensor) -> Program:
    """A module whose inputs have different dynamic first dimensions, such as ids and lengths.

    Inputs of one size share a dimension. Unlike `capture`, it doesn't check that rows are
    independent.
    """
    names = tuple(inputs)
    sizes = {len(value): torch.export.Dim(f"size_{len(value)}", min=0) for value in inputs.values()}
    dynamic = tuple({0: sizes[len(value)]} for value in inputs.values())
    with torch.no_grad():
        exported = torch.export.export(
            _Tupled(module.eval()), tuple(inputs.values()), dynamic_shapes=(dynamic,), strict=False
        ).run_decompositions(core_decompositions())
    graph = flatten_exported(exported, names, prefix="module.")
    structure = Structure.of(dict(inputs), "input", lambda value: isinstance(value, Tensor))
    outputs = Structure.of(torch.empty(0), "score", lambda value: isinstance(value, Tensor))
    signature = infer_signature(graph.graph, outputs.names)
    return Program(graph, signature, structure, outputs, names, Form.CAPTURED)


class _Tupled(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        return (self.module(*inputs),)


def with_auxiliary(program: Program, *tasks: str) -> Program:
    """The program, with these tasks only learned."""
    for task in tasks:
        program.signature = program.signature.with_task(task, auxiliary=True)
    return program


def made_up(program: Program, count: int, seed: int) -> dict[str, Tensor]:
    """Random rows that fit the program's signature, by feature name."""
    return dict(synthesize(program.signature, count, seed).features)


# --- running --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What came of running passes: a program of its own, and the report."""

    program: Program
    report: Report

    def said(self, kind: Kind, pass_name: str) -> list[str]:
        """The messages of one kind that one pass left."""
        return [remark.message for remark in self.report.said(kind, pass_name)]

    def missed(self, pass_name: str) -> list[str]:
        """Why the pass left things alone."""
        return self.said(Kind.MISSED, pass_name)

    def applied(self, pass_name: str) -> list[str]:
        """What the pass did."""
        return self.said(Kind.APPLIED, pass_name)

    @property
    def outcomes(self) -> list[Outcome]:
        """How each pass ended, in the order they ran."""
        return [record.outcome for record in self.report.records]

    def reasons(self) -> dict[str, str]:
        """Why each site got the format it has, by site."""
        return {site.site: site.reason for site in self.report.sites}

    def chosen(self) -> dict[str, str]:
        """The format each site got."""
        return {site.site: site.chosen for site in self.report.sites}


def run_passes(
    program: Program,
    passes: str,
    *,
    target: str | Target = "cpu-fp32",
    rows: Mapping[str, Tensor] | None = None,
    judge: Callable[[Program], Verdict] | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
    batch_sizes: tuple[int, ...] = (64, 512),
    recovery: Recovery | None = None,
) -> Ran:
    """Runs passes on a copy of the program; whatever fails or breaks its promise raises.

    Args:
        program: Is not changed.
        passes: A pipeline as text.
        target: What is built for.
        rows: Rows the numerics are checked on; 64 made up from the signature when None.
        judge: Judges lossy passes; without it they don't run.
        calibration: Batches for ranges.
        batch_sizes: The batch sizes that will be served.
        recovery: What passes that finetune work with; without it they don't run.
    """
    result = program.clone()
    context = PassContext(
        target=Target.of(target),
        rows=made_up(program, 64, seed=1) if rows is None else rows,
        original=program,
        judge=judge if judge is None or hasattr(judge, "damages") else RuleJudge(judge),
        calibration=calibration,
        strict=True,
        batch_sizes=batch_sizes,
        may_train=recovery is not None,
        resources=[] if recovery is None else [recovery],
    )
    Pipeline.parse(passes).run(result, context)
    return Ran(result, context.report)


def canonical(module: nn.Module, *inputs: Tensor) -> Program:
    """The captured module after ``canonicalize``."""
    return run_passes(capture_small(module, *inputs), "canonicalize").program


@dataclass(frozen=True)
class RuleJudge:
    """A judge that only has a rule: what its verdict says of NE counts as damage, either way."""

    rule: Callable[[Program], Verdict]
    allowed: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, program: Program) -> Verdict:
        return self.rule(program)

    def promises(self, program: Program, spare: float = 1.0) -> bool:
        return self.rule(program).status is Status.PASS

    def damages(self, program: Program) -> dict[str, float]:
        found = self.rule(program).delta_ne
        return {task: max(delta.high, -delta.low) for task, delta in found.items()}

    def allowances(self) -> Mapping[str, float]:
        return self.allowed

    def rebased(self, program: Program, *, trained: bool = False) -> RuleJudge:
        return self


def permissive_judge(original: Program, count: int = 512) -> Judge:
    """A judge on random rows and soft labels whose budget only a wrecked model exceeds."""
    budget = Budget(ne=0.5, max_rms_shift=1.0)
    return Judge.of(original, synthesize(original.signature, count, seed=2), budget)


def made_up_recovery(original: Program, count: int = 512, **plan: Any) -> Recovery:
    """Random rows to finetune on, scored by the original; ``plan`` is for `Distill`."""
    rows = synthesize(original.signature, count, seed=7)
    outputs = original.run(rows.features)
    teacher = {t.name: task_logits(t, outputs) for t in original.signature.served}
    return Recovery(Distill(None, **plan), rows, teacher, "made up", lambda message: None)


def verdict(status: Status, damage: float, reason: str = "") -> Verdict:
    """A verdict as a stub of a judge gives it: ``damage`` is the upper bound of ΔNE."""
    interval = Interval(damage, damage, damage, 0.0, rows=100, clusters=100)
    shift = ShiftSummary(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    task = TaskResult("score", status, "labels", interval, Metrics(0.5), Metrics(0.5), shift, ())
    return Verdict(status, 100, 0.95, "labels", (task,), reasons=(reason,) if reason else ())


# --- looking --------------------------------------------------------------------------------------


def operators(program: Program) -> list[str]:
    """The operators' short names, in graph order: ``["linear", "relu"]``."""
    return [_short(node) for node in program.graph.nodes if node.op == "call_function"]


def _short(node: fx.Node) -> str:
    name = str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return name.removeprefix("aten.").split(".")[0] if name.startswith("aten") else name
    return getattr(node.target, "__name__", name)


def quantized_linears(program: Program) -> list[fx.Node]:
    """Linears whose weight is decoded from codes, and those that take codes."""
    find = program.graph.find_nodes
    found = find(op="call_function", target=torch.ops.aten.linear.default)
    static = [node for node in found if getattr(node.args[1], "target", None) is DEQUANTIZE.op]
    return [*static, *find(op="call_function", target=ROWWISE_LINEAR.op)]


# --- comparing ------------------------------------------------------------------------------------


def assert_same_graph(
    program: Program,
    expected: nn.Module | Program,
    inputs: tuple[Tensor, ...],
    *,
    tolerance: float,
) -> None:
    """Asserts that a program is what the plain module ``expected`` is when canonicalized.

    Both graphs are walked from their outputs in step: operators, arguments (defaults written out),
    dtypes, shapes, and which values are shared must be the same. Names and the order of parameters
    don't matter.

    Args:
        program: After the passes under test.
        expected: A plain module, or a program where a plain module can't be captured.
        inputs: An example of its inputs.
        tolerance: How far parameters may differ, relative to their largest value: `BIT_EQUAL` for
            exact passes, `ONE_ROUNDING` where parameters were folded.
    """
    if isinstance(expected, nn.Module):
        expected = canonical(expected, *inputs)
    walk = _Walk(program, expected, tolerance)
    (left,) = program.graph.find_nodes(op="output")
    (right,) = expected.graph.find_nodes(op="output")
    try:
        walk.same(left.args[0], right.args[0])
        counts = [len(operators(p)) for p in (program, expected)]
        assert counts[0] == counts[1], f"{counts[0]} operators, expected {counts[1]}"
    except AssertionError as difference:
        raise AssertionError(
            f"{difference}\n--- got\n{text(program)}\n--- expected\n{text(expected)}"
        ) from None


class _Walk:
    """Walks two graphs in step; every node of one must always meet the same node of the other."""

    def __init__(self, left: Program, right: Program, tolerance: float) -> None:
        self.left, self.right, self.tolerance = left, right, tolerance
        self.met: dict[fx.Node, fx.Node] = {}
        self.met_by: dict[fx.Node, fx.Node] = {}

    def same(self, left: Any, right: Any) -> None:
        if isinstance(left, fx.Node) and isinstance(right, fx.Node):
            self._same_node(left, right)
        elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            assert len(left) == len(right), f"{left} has another length than {right}"
            for one, other in zip(left, right, strict=True):
                self.same(one, other)
        else:
            assert type(left) is type(right), f"{left!r}, expected {right!r}"
            assert left == right, f"{left!r}, expected {right!r}"

    def _same_node(self, left: fx.Node, right: fx.Node) -> None:
        if left in self.met or right in self.met_by:
            assert self.met.get(left) is right, (
                f"%{left.name} and %{right.name} are shared differently"
            )
            return
        self.met[left], self.met_by[right] = right, left
        assert left.op == right.op, f"{line(left)}\n  expected {line(right)}"
        if left.op == "get_attr":
            self._same_parameter(str(left.target), str(right.target))
            return
        assert left.target == right.target, f"{line(left)}\n  expected {line(right)}"
        for one, other in zip(_arguments(left), _arguments(right), strict=True):
            self.same(one, other)
        assert same_value(left.meta["val"], right.meta["val"]), (
            f"{line(left)}\n  expected {line(right)}"
        )

    def _same_parameter(self, left: str, right: str) -> None:
        got, want = self.left.tensor(left), self.right.tensor(right)
        assert (got.dtype, got.shape) == (want.dtype, want.shape), (
            f"parameter {left} is {got.dtype} {list(got.shape)}, "
            f"expected {right}, {want.dtype} {list(want.shape)}"
        )
        if self.tolerance == BIT_EQUAL:
            assert torch.equal(got, want), f"parameter {left} is {got}, expected {right}, {want}"
            return
        off = float((got.double() - want.double()).abs().max())
        allowed = self.tolerance * float(want.double().abs().max())
        assert off <= allowed, f"parameter {left} is off {right} by {off:.3g} > {allowed:.3g}"


#: Where a tensor lives is not what a pass decides.
_PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format"})


def _arguments(node: fx.Node) -> list[Any]:
    """All arguments in the order of the schema, defaults written out."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*node.args, *node.kwargs.values()]
    found = []
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.name in _PLACEMENT:
            continue
        if index < len(node.args):
            found.append(node.args[index])
        else:
            default = argument.default_value if argument.has_default_value() else None
            found.append(node.kwargs.get(argument.name, default))
    return found


def lookups(program: Program) -> list[fx.Node]:
    """The nodes that look rows of a table up, quantized or not."""
    names = ("embedding", "rankc.rowwise_embedding.default", "rankc.rowwise_embedding4.default")
    return [n for n in program.graph.nodes if n.op == "call_function" and _short(n) in names]
