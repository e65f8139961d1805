"""Two programs in lock-step: at which site their scores begin to differ, and what would help."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, fx

from ..errors import DataError
from ..ir.facts import facts_of
from ..ir.ops import QUANTIZE
from ..ir.program import Program

_aten = torch.ops.aten
_LOW: Final = {
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}

_MOVED: Final = 1e-5
"""Values that differ by less, relative, differ by rounding; nobody asks what they cost."""

_DOUBTED: Final = 0.05
"""Pairs that differ by more may not be one value at all; that is tried before it is believed."""

_ENTERS: Final = 1.0 / 3.0
"""The first site that shifts the scores by this share of the worst is where the error enters."""

_OUTLIER, _FEW_COLUMNS, _NAMED = 8.0, 0.1, 4
_SATURATED: Final = 1e-3
_LISTED: Final = 10


@dataclass(frozen=True)
class Finding:
    """How one value of the optimized program differs from the original's.

    Attributes:
        site: The user's name of where it is made.
        shape: Of the value.
        formats: The low formats it is made with.
        along: Other sites in low formats on the way to it, whose values the optimized program
            doesn't have apart.
        isolated: Its relative L2 error when all it is made from is the original's.
        accumulated: The same with the optimized program's own inputs.
        shift: What the isolated error alone does to the scores: the rms shift of the output it
            moves most, over that output's standard deviation.
        broken: How many of its numbers are NaN or Inf where the original's are finite.
        saturated: The share of what is quantized on the way to it that lies beyond the range.
        advice: What to do about it.
    """

    site: str
    shape: tuple[int, ...]
    formats: tuple[str, ...]
    along: tuple[str, ...]
    isolated: float
    accumulated: float
    shift: float
    broken: int
    saturated: float
    advice: str

    @property
    def place(self) -> str:
        """The site, and whatever can't be told from it, with the formats."""
        others = ", ".join(map(repr, self.along[:_NAMED])) + (", …" * (len(self.along) > _NAMED))
        told = f"{self.site!r} or {others}" if others else repr(self.site)
        return f"{told} ({', '.join(self.formats) or 'no low format'})"


@dataclass(frozen=True)
class Diagnosis:
    """What two programs in lock-step told.

    Attributes:
        rows: How many rows went through both.
        shift: The rms shift of each output over its standard deviation.
        findings: The values both programs have, in the order they are made.
        runtime: What the runtime shifts beyond the graph it runs; empty where only programs were
            run.
        notes: What puts the comparison in doubt.
    """

    rows: int
    shift: dict[str, float]
    findings: tuple[Finding, ...]
    runtime: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> Finding | None:
        """What alone shifts the scores most; None if nothing does."""
        found = max(self.findings, key=lambda f: (f.shift, f.isolated), default=None)
        return found if found is not None and found.shift > 0.0 else None

    @property
    def first(self) -> Finding | None:
        """Where the error enters: the first that shifts the scores about as much as the worst."""
        worst = self.worst
        if worst is None:
            return None
        return next(f for f in self.findings if f.shift >= _ENTERS * worst.shift)

    @property
    def sentence(self) -> str:
        """Where the error enters, and what to do."""
        first, worst = self.first, self.worst
        if first is None or worst is None:
            return "no value differs by more than rounding"
        total = max(self.shift.values())
        said = (
            f"the error enters at {first.place}: alone it shifts the scores by {first.shift:.2g} "
            f"of their spread, all sites together by {total:.2g}; {first.advice}"
        )
        if worst is not first:
            said += f". The most comes from {worst.place}: {worst.shift:.2g}; {worst.advice}"
        return said

    @property
    def summary(self) -> str:
        """How far the scores are apart."""
        said = f"on {self.rows:,} rows, scores shift by {_listed(self.shift)} of their spread"
        if self.runtime:
            said += f"; the runtime itself shifts them by {_listed(self.runtime)}"
        return "; ".join([said, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return asdict(self)

    def __str__(self) -> str:
        moved = [f for f in self.findings if f.isolated > _MOVED]
        lines = [
            f"  {one.place}: isolated {one.isolated:.2g}, accumulated {one.accumulated:.2g}, "
            f"shifts the scores by {one.shift:.2g}"
            for one in sorted(moved, key=lambda f: -f.shift)[:_LISTED]
        ]
        return "\n".join([self.summary, self.sentence, *lines])


def compare(reference: Program, optimized: Program, features: Mapping[str, Tensor]) -> Diagnosis:
    """Runs both on the same rows and tells how every value that both have differs.

    Values are paired by the user's module (or line of code) they stem from and by shape, the
    nearest ones first; a pair that differs much is believed only if putting the original's value
    in its place doesn't make the scores worse. After the numeric debuggers of Caffe2's DNNLOWP
    and of PT2E.

    Args:
        reference: The original.
        optimized: What became of it; an output or more has the same name.
        features: Rows that both take, by feature name.

    Raises:
        DataError: No output of both has the same shape.
    """
    there = _Original(reference, features)
    _check_outputs(there.outputs, _outputs(optimized, features))
    pairs = _pairs(there, optimized, features)
    lock = _lockstep(there, optimized, features, pairs)
    findings = []
    for node, twin in pairs.items():
        isolated = lock.isolated[node]
        shift = 0.0
        if isolated > _MOVED:
            alone = {twin: lock.values[node].to(there.values[twin].dtype)}
            shift = there.shift(_outputs(reference, features, alone))
        findings.append(_finding(there, lock, node, twin, shift))
    moved = shifts(there.outputs, _outputs(optimized, features))
    return Diagnosis(len(next(iter(there.outputs.values()))), moved, tuple(findings))


def _check_outputs(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    if not shifts(before, after):
        first, second = (
            ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
            for outputs in (before, after)
        )
        raise DataError(
            f"no output of the two models can be compared: {first} of the first, {second} of the "
            "second. Is the second made from the first?"
        )


def _listed(shift: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.2g} ({name})" for name, value in shift.items())


class _Visit(fx.Interpreter):
    """Runs a graph and lets a visitor see, and change, every value."""

    def __init__(
        self, program: Program, visit: Callable[[fx.Node, tuple[Any, ...], Any], Any]
    ) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self._visit = visit

    def run_node(self, n: fx.Node) -> Any:
        args: tuple[Any, ...] = ()
        if n.op == "call_function":
            args = tuple(self.map_nodes_to_values(n.args, n))  # type: ignore[arg-type]
        return self._visit(n, args, super().run_node(n))


def _visited(
    program: Program,
    features: Mapping[str, Tensor],
    visit: Callable[[fx.Node, tuple[Any, ...], Any], Any],
) -> dict[str, Tensor]:
    with torch.no_grad():
        results = _Visit(program, visit).run(*program.ordered(features))
    return dict(zip(program.signature.outputs, results, strict=True))


def _outputs(
    program: Program,
    features: Mapping[str, Tensor],
    instead: Mapping[fx.Node, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The program's outputs with some values in place of its own."""
    taken = instead or {}
    return _visited(program, features, lambda node, _, value: taken.get(node, value))


class _Original:
    """The original's values on the rows.

    Attributes:
        outputs: Its output tensors by name.
        nodes: The nodes that make them.
        values: What the last node of each site and shape makes.
        outliers: Per site, the columns of a linear's input that reach much further than the rest.
        tables: The sites of lookups.
        sites: All sites.
    """

    def __init__(self, program: Program, features: Mapping[str, Tensor]) -> None:
        self.values: dict[fx.Node, Tensor] = {}
        self.outliers: dict[str, tuple[int, ...]] = {}
        self.tables: set[str] = set()
        self.sites: set[str] = set()
        last: dict[tuple[str, tuple[int, ...]], fx.Node] = {}
        fed = _fed(program)
        self.nodes = _made_by(program)

        def visit(node: fx.Node, args: tuple[Any, ...], value: Any) -> Any:
            if node not in fed or not _is_real(value):
                return value
            self.values[node] = value
            for key in _keys(node)[:1]:
                self.sites.add(key)
                last[key, tuple(value.shape)] = node
                if node.target is _aten.linear.default:
                    self.outliers[key] = _outliers(args[0])
                if node.target is _aten.embedding.default:
                    self.tables.add(key)
            return value

        self.outputs = _visited(program, features, visit)
        kept = {*last.values(), *self.nodes.values()}
        self.values = {node: v for node, v in self.values.items() if node in kept}

    def shift(self, outputs: Mapping[str, Tensor]) -> float:
        """How far scores are from the original's: the largest of `shifts`."""
        return max(shifts(self.outputs, outputs).values(), default=0.0)


def shifts(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """The rms shift of each output that both have, over its standard deviation."""
    return {
        name: _shift(value, after[name])
        for name, value in before.items()
        if name in after and value.shape == after[name].shape
    }


def _shift(before: Tensor, after: Tensor) -> float:
    wide = before.double()
    moved = float((after.double() - wide).square().mean().sqrt())
    spread = float(wide.std(correction=0)) or float(wide.abs().max()) or 1.0
    return moved / spread if math.isfinite(moved) else math.inf


def _fed(program: Program) -> set[fx.Node]:
    """The computations that depend on the rows."""
    fed: set[fx.Node] = set()
    for node in program.graph.nodes:
        given = any(n in fed or n.op == "placeholder" for n in node.all_input_nodes)
        if node.op == "call_function" and given:
            fed.add(node)
    return fed


def _made_by(program: Program) -> dict[str, fx.Node]:
    (output,) = program.graph.find_nodes(op="output")
    return dict(zip(program.signature.outputs, output.args[0], strict=True))


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _keys(node: fx.Node) -> tuple[str, ...]:
    """The modules a node stems from; its line of code where it is in none."""
    facts = facts_of(node)
    return facts.origin or ((facts.source,) if facts.source else ())


def _outliers(rows: Tensor) -> tuple[int, ...]:
    reach = rows.abs().flatten(0, -2).amax(0)
    alive = reach[reach > 0]
    if alive.numel() == 0:
        return ()
    found = (reach > _OUTLIER * alive.median()).nonzero().flatten()
    return tuple(found.tolist()) if len(found) <= _FEW_COLUMNS * len(reach) else ()


def _relative(before: Tensor, after: Tensor) -> float:
    wide = before.double()
    moved, size = float((after.double() - wide).norm()), float(wide.norm())
    if not math.isfinite(moved):
        return math.inf
    return moved / size if size else (math.inf if moved else 0.0)


def _pairs(
    there: _Original, optimized: Program, features: Mapping[str, Tensor]
) -> dict[fx.Node, fx.Node]:
    """The optimized program's values that the original has too, in the order they are made."""
    values: dict[fx.Node, Tensor] = {}
    fed = _fed(optimized)

    def visit(node: fx.Node, _: tuple[Any, ...], value: Any) -> Any:
        if node in fed and _is_real(value):
            values[node] = value
        return value

    before = there.shift(_visited(optimized, features, visit))
    pairs: dict[fx.Node, fx.Node] = {}
    for name, node in _made_by(optimized).items():
        twin = there.nodes.get(name)
        if (
            twin in there.values
            and node in values
            and there.values[twin].shape == values[node].shape
        ):
            pairs[node] = twin
    for error, node, twin in _nearest(there, values):
        if node in pairs or twin in pairs.values():
            continue
        if error > _DOUBTED:
            own = {node: there.values[twin].to(values[node].dtype)}
            after = there.shift(_outputs(optimized, features, own))
            if not after <= 2.0 * before + 1e-4:
                continue
        pairs[node] = twin
    return {node: pairs[node] for node in optimized.graph.nodes if node in pairs}


def _nearest(
    there: _Original, values: Mapping[fx.Node, Tensor]
) -> list[tuple[float, fx.Node, fx.Node]]:
    """Nodes that may be one value, the nearest and then the latest first."""
    by_key: dict[tuple[str, tuple[int, ...]], list[tuple[int, fx.Node]]] = {}
    for place, (node, value) in enumerate(values.items()):
        for key in _keys(node):
            by_key.setdefault((key, tuple(value.shape)), []).append((place, node))
    found = []
    for order, (twin, value) in enumerate(there.values.items()):
        for key in _keys(twin)[:1]:
            for place, node in by_key.get((key, tuple(value.shape)), ()):
                found.append((_relative(value, values[node]), -place, -order, node, twin))
    return [(error, node, twin) for error, _, _, node, twin in sorted(found, key=lambda f: f[:3])]


@dataclass
class _Lock:
    """What a run told in which every paired value is replaced by the original's once seen."""

    values: dict[fx.Node, Tensor] = field(default_factory=dict)
    isolated: dict[fx.Node, float] = field(default_factory=dict)
    accumulated: dict[fx.Node, float] = field(default_factory=dict)
    formats: dict[fx.Node, tuple[str, ...]] = field(default_factory=dict)
    sites: dict[fx.Node, tuple[str, ...]] = field(default_factory=dict)
    saturated: dict[fx.Node, float] = field(default_factory=dict)


def _lockstep(
    there: _Original,
    optimized: Program,
    features: Mapping[str, Tensor],
    pairs: Mapping[fx.Node, fx.Node],
) -> _Lock:
    lock = _Lock()
    low: dict[fx.Node, str] = {}
    beyond: dict[fx.Node, float] = {}

    def drift(node: fx.Node, args: tuple[Any, ...], value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in _LOW and node.op != "placeholder":
            low[node] = _LOW[value.dtype]
        if node.target is QUANTIZE.op:
            beyond[node] = _beyond(*args)
        if node in pairs:
            lock.accumulated[node] = _relative(there.values[pairs[node]], value)
        return value

    def hold(node: fx.Node, _: tuple[Any, ...], value: Any) -> Any:
        if node not in pairs:
            return value
        exact = there.values[pairs[node]]
        lock.values[node] = value
        lock.isolated[node] = _relative(exact, value)
        return exact.to(value.dtype)

    _visited(optimized, features, drift)
    _visited(optimized, features, hold)
    for node in pairs:
        region = _region(node, pairs)
        coded = [n for n in region if n in low]
        lock.formats[node] = tuple(dict.fromkeys(low[n] for n in coded))
        lock.sites[node] = tuple(dict.fromkeys(key for n in coded for key in _keys(n)))
        lock.saturated[node] = max((beyond[n] for n in region if n in beyond), default=0.0)
    return lock


def _beyond(x: Tensor, scale: Tensor, zero: Tensor, axis: int, dtype: torch.dtype) -> float:
    """The share of values that codes of a static range can't reach."""
    if scale.dim() or not x.numel():
        return 0.0
    whole = not dtype.is_floating_point
    limits = torch.iinfo(dtype) if whole else torch.finfo(dtype)
    codes = x.double() / scale.double() + (zero.double() if whole else 0.0)
    slack = 0.5 if whole else 0.0
    outside = (codes > limits.max + slack) | (codes < limits.min - slack)
    return float(outside.double().mean())


def _region(node: fx.Node, pairs: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """What is computed between a value and the paired values it is made from."""
    found: dict[fx.Node, None] = {node: None}
    stack = [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in pairs and source not in found:
                found[source] = None
                stack.append(source)
    return list(found)


def _finding(there: _Original, lock: _Lock, node: fx.Node, twin: fx.Node, shift: float) -> Finding:
    exact, value = there.values[twin], lock.values[node]
    key = next(iter(_keys(twin)), "")
    broken = int((exact.isfinite() & ~value.isfinite()).sum())
    found = Finding(
        site=key or twin.name,
        shape=tuple(value.shape),
        formats=lock.formats[node],
        along=tuple(s for s in lock.sites[node] if s in there.sites and s not in _keys(node)),
        isolated=lock.isolated[node],
        accumulated=lock.accumulated[node],
        shift=shift,
        broken=broken,
        saturated=lock.saturated[node],
        advice="",
    )
    advice = _advice(found, there.outliers.get(key, ()), key in there.tables)
    return Finding(**{**vars(found), "advice": advice})


def _advice(found: Finding, outliers: tuple[int, ...], is_table: bool) -> str:
    if found.isolated <= _MOVED:
        return ""
    if found.broken:
        return f"{found.broken:,} of its numbers are NaN or Inf: keep it in fp32 or bf16"
    if not found.formats:
        return "no low format is at work there: `rankc bisect` finds the pass that moves it"
    if is_table:
        return "keep this table in a higher format"
    if found.saturated > _SATURATED:
        return (
            f"{found.saturated:.1%} of what it quantizes lies beyond the calibrated range: give "
            "more calibration rows, like those that are served, or keep it in bf16 or fp32"
        )
    if outliers:
        more = ", …" * (len(outliers) > _NAMED)
        named = ", ".join(map(str, outliers[:_NAMED])) + more
        return (
            f"column{'s' * (len(outliers) > 1)} {named} of its input reach over {_OUTLIER:g} times "
            "further than the others: keep these columns, or the whole of it, in fp32"
        )
    return "keep it in bf16 or fp32"
