"""Operators alone, eager beside what a backend runs."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from conformance.cases import GROUPS, Case
from conformance.values import BOUNDS, Values, rows
from rankc.frontends.decompose import to_core
from rankc.optimizer.backend import Backend
from rankc.optimizer.errors import UnsupportedError
from rankc.optimizer.ir import Form, Program
from rankc.optimizer.ir.infer import infer_signature
from rankc.optimizer.ir.program import flatten_exported
from rankc.optimizer.ir.rewrite import sweep
from rankc.optimizer.ir.signature import Signature
from rankc.optimizer.ir.structure import Branch, Leaf, Structure
from rankc.optimizer.pipeline.passbase import PassContext
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.target import Target
from torch import Tensor, nn

#: Of each group of cases.
DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "floats": (torch.float32, torch.float64),
    "integers": (torch.int64, torch.int32),
    "truths": (torch.bool,),
}
#: Steps of the format, relative to the value or, for sums, to the largest of the row.
_STEPS = 64


_SUMS = frozenset(
    (
        *("sum", "mean", "var", "cumsum", "linalg_vector_norm", "scatter_add", "scatter"),
        *("scatter_reduce", "index_put", "normalize", "cosine_similarity", "layer_norm"),
    )
)


class Found(Enum):
    """How a backend's values compare with eager's, worst last."""

    EXACT = "exact"
    ROUNDING = "rounding"
    REFUSED = "refused"
    DIFFERS = "differs"


@dataclass(frozen=True)
class Outcome:
    """What came of a case on a backend.

    Attributes:
        found: How it compares.
        why: The first value that differs, or the refusal.
        values: How many were compared.
    """

    found: Found
    why: str = ""
    values: int = 0

    def worse(self, other: Outcome) -> Outcome:
        """The worse of two, with the values of both."""
        order = list(Found)
        found = max(self, other, key=lambda outcome: order.index(outcome.found))
        return replace(found, values=self.values + other.values)


@dataclass(frozen=True)
class Alone:
    """One case for one type of values.

    Attributes:
        group: Of `GROUPS`.
        operator: aten's name of it.
        variant: Which case of the operator.
        dtype: Of the values.
    """

    group: str
    operator: str
    variant: str
    dtype: torch.dtype

    @property
    def case(self) -> Case:
        """The function."""
        found: Case = GROUPS[self.group][self.operator][self.variant]
        return found

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join(filter(None, (self.operator, self.variant and f"({self.variant})", dtype)))


def every_case() -> list[Alone]:
    """All cases, group by group."""
    return [
        Alone(group, operator, variant, dtype)
        for group, operators in GROUPS.items()
        for dtype in DTYPES[group]
        for operator, variants in operators.items()
        for variant in variants
    ]


class _Together(nn.Module):
    """Many cases over the same rows, an output each."""

    def __init__(self, cases: Sequence[Alone], names: Sequence[str]) -> None:
        super().__init__()
        self.cases = cases
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = SimpleNamespace(**dict(zip(self.names, inputs, strict=True)))
        return tuple(one.case(given).clone() for one in self.cases)


@functools.cache
def captured(cases: tuple[Alone, ...], values: Values) -> Program:
    """The cases, of one type, as one program; captured without asking that rows be independent."""
    example = vars(rows(cases[0].dtype, 5, 0))
    names = tuple(example)
    batch = torch.export.Dim("batch", min=0)
    module = _Together(cases, names).eval()
    with torch.no_grad():
        exported = torch.export.export(
            module,
            tuple(example.values()),
            dynamic_shapes=(tuple({0: batch} for _ in names),),
            strict=False,
        )
        exported = to_core(exported)
    graph = flatten_exported(exported, names, prefix="module.")
    structure = Structure.of(dict(example), "input", lambda value: isinstance(value, Tensor))
    made = tuple(torch.empty(0) for _ in cases)
    outputs = Structure.of(made, "score", lambda value: isinstance(value, Tensor))
    signature = infer_signature(graph.graph, outputs.names)
    if values is Values.ORDINARY:
        for feature in signature.features:
            if feature.is_integer and feature.name in BOUNDS:
                signature = signature.with_feature(feature.name, bounds=BOUNDS[feature.name])
    program = Program(graph, signature, structure, outputs, names, Form.CAPTURED)
    context = PassContext(target=Target.of("cpu-fp32"))
    Pipeline.parse("canonicalize,fold-constants,eliminate").run(program, context)
    return program


def compare(
    cases: Sequence[Alone],
    backend: Backend,
    target: Target,
    batches: Sequence[tuple[int, int]],
    values: Values = Values.HOSTILE,
) -> dict[Alone, Outcome]:
    """What a backend makes of cases of one type, built as one model.

    Args:
        cases: All of one type.
        backend: Builds them.
        target: What for.
        batches: How many rows, and the seed they are drawn by.
        values: Which values rows have.
    """
    if not cases:
        return {}
    program = captured(tuple(cases), values)
    return _compared(cases, program.clone(), _Trial(backend, target, batches, values))


@dataclass(frozen=True)
class _Trial:
    """What cases are tried with."""

    backend: Backend
    target: Target
    batches: Sequence[tuple[int, int]]
    values: Values


def _compared(cases: Sequence[Alone], program: Program, trial: _Trial) -> dict[Alone, Outcome]:
    reasons = dict(trial.backend.refusals(program, trial.target))
    found = {}
    for one, sources in zip(cases, _sources_of(program), strict=True):
        said = [reasons[node] for node in sources if node in reasons]
        if said:
            found[one] = Outcome(Found.REFUSED, said[0])
    left = [one for one in cases if one not in found]
    while left:
        part = _part(program, cases, left)
        try:
            return found | _run(left, part, trial)
        except Exception as error:
            blamed = _blamed(error, left, part)
            kind = Found.REFUSED if isinstance(error, UnsupportedError) else Found.DIFFERS
            if not blamed and len(left) > 1:
                half = len(left) // 2
                for some in (left[:half], left[half:]):
                    found |= _compared(some, _part(program, cases, some), trial)
                return found
            blamed = blamed or left
            said = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
            found |= dict.fromkeys(blamed, Outcome(kind, said))
            left = [one for one in left if one not in blamed]
    return found


def _part(program: Program, cases: Sequence[Alone], kept: Sequence[Alone]) -> Program:
    """The program of some of its cases."""
    result = program.clone()
    (output,) = result.graph.find_nodes(op="output")
    places = [place for place, one in enumerate(cases) if one in set(kept)]
    output.args = (tuple(output.args[0][place] for place in places),)
    sweep(result)
    names = tuple(program.signature.outputs[place] for place in places)
    result.signature = Signature(result.signature.features, (), names)
    result.outputs = Structure(Branch("dict", names, tuple(map(Leaf, names))))
    return result


def _sources_of(program: Program) -> list[set[Any]]:
    (output,) = program.graph.find_nodes(op="output")
    return [_sources(made) for made in output.args[0]]


def _blamed(error: Exception, cases: Sequence[Alone], program: Program) -> list[Alone]:
    """The cases whose nodes an error names."""
    text = str(error)
    names = set(re.findall(r"\w+(?:\.\w+)?", text))
    stripped = {name.removeprefix("node_") for name in names}
    at = [
        node
        for node in program.graph.nodes
        if node.op == "call_function" and (node.name in stripped or f"used at {node.name}:" in text)
    ]
    each = zip(cases, _sources_of(program), strict=True)
    return [one for one, sources in each if set(at) & sources]


def _sources(node: Any) -> set[Any]:
    found, todo = set(), [node]
    while todo:
        here = todo.pop()
        if here not in found:
            found.add(here)
            todo += here.all_input_nodes
    return found


def _run(cases: Sequence[Alone], program: Program, trial: _Trial) -> dict[Alone, Outcome]:
    found = {one: Outcome(Found.EXACT) for one in cases}
    with tempfile.TemporaryDirectory() as folder:
        trial.backend.build(program, trial.target, Path(folder), {})
        runner = trial.backend.open(Path(folder), 1)
        for count, seed in trial.batches:
            given = rows(cases[0].dtype, count, seed, trial.values)
            arrays = {
                name: np.ascontiguousarray(value.numpy()) for name, value in vars(given).items()
            }
            scores = runner({name: arrays[name] for name in program.signature.names})
            for one, name in zip(cases, program.signature.outputs, strict=True):
                with torch.no_grad():
                    expected = one.case(given)
                outcome = _judged(expected, torch.as_tensor(scores[name]), _scale(one, given))
                found[one] = found[one].worse(replace(outcome, values=expected.numel()))
    return found


def _scale(one: Alone, given: SimpleNamespace) -> float | Tensor:
    """What rounding is relative to besides the value: for sums, the largest that goes into one."""
    if one.operator not in _SUMS or not one.dtype.is_floating_point:
        return 1.0
    values = [v for v in vars(given).values() if v.is_floating_point() and v.numel()]
    largest = [torch.where(v.isfinite(), v, 0.0).double().abs().flatten(1).amax(1) for v in values]
    return torch.stack(largest).amax(0) if largest else 1.0


def _judged(expected: Tensor, found: Tensor, scale: float | Tensor) -> Outcome:
    if found.shape != expected.shape:
        return Outcome(Found.DIFFERS, f"shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if found.dtype != expected.dtype:
        return Outcome(Found.DIFFERS, f"{found.dtype}, not {expected.dtype}")
    if not expected.dtype.is_floating_point:
        return _first(found == expected, expected, found, Outcome(Found.EXACT))
    same = (found == expected) & (found.signbit() == expected.signbit())
    same |= found.isnan() & expected.isnan()
    if bool(same.all()):
        return Outcome(Found.EXACT)
    info = torch.finfo(expected.dtype)
    finite = torch.where(expected.isfinite(), expected, 0.0).abs().double()
    if isinstance(scale, Tensor):
        scale = scale.reshape([-1, *[1] * (expected.dim() - 1)])
    allowed = _STEPS * info.eps * torch.clamp(finite, min=scale) + info.tiny
    near = (found.double() - expected.double()).abs() <= allowed
    return _first(same | (near & found.isfinite()), expected, found, Outcome(Found.ROUNDING))


def _first(right: Tensor, expected: Tensor, found: Tensor, otherwise: Outcome) -> Outcome:
    if bool(right.all()):
        return otherwise
    wrong = int((~right).sum())
    place = tuple((~right).nonzero()[0].tolist())
    return Outcome(
        Found.DIFFERS,
        f"{found[place].item()!r} in place of {expected[place].item()!r}, "
        f"{wrong} of {right.numel()}",
    )


def arranged(cases: Sequence[Alone]) -> dict[Any, list[Alone]]:
    """The cases by the type of their values."""
    found: dict[Any, list[Alone]] = {}
    for one in cases:
        found.setdefault((one.group, one.dtype), []).append(one)
    return found


#: Of integers, and real all the same.
_REAL = frozenset(("div", "exp", "log", "log1p", "mean", "sigmoid", "pow", "sqrt", "floor_divide"))


def is_right(one: Alone, found: Found) -> bool:
    """Whether a case may come out so: integers and truths exactly, floats but for rounding."""
    if found is Found.ROUNDING:
        return one.dtype.is_floating_point or one.operator in _REAL
    return found is not Found.DIFFERS
