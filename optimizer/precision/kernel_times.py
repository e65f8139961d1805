"""How long a linear takes on the target in each format: measured where it can run, else estimated.

The kernels of a plan are built together as one program, each with an input and an output of its
own, lowered by the backend as an artifact would be, cut apart and timed on real rows: quantizing
the input, the borders of a format and the ReLU behind it are all in the time (LoKA's Probe and
Dispatch, 2605.10886). What was measured is remembered on disk, so that a second run decides alike.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..analysis.cost import Cost
from ..errors import TargetError
from ..formats import FP32, LINEAR, UNPLACED
from ..ir.facts import Precision
from ..ir.forms import Form
from ..ir.infer import infer_signature
from ..ir.pattern import argument, is_op
from ..ir.program import Program, flatten_exported
from ..ir.rewrite import Rewriter, sweep
from ..ir.structure import Structure
from ..ir.torchapi import silenced
from ..pipeline.passbase import PassContext
from ..registry import backend
from ..target import Target
from .kernel_cache import KernelCache, default_folder
from .linear_formats import realise
from .table_formats import realise_table, table_bytes

_aten = torch.ops.aten
#: Rows a linear sees are rounded up to so many significant bits: 26 × 64 and 27 × 64 time alike.
_ROW_STEPS = 8


@dataclass(frozen=True)
class Kernel:
    """A linear in a format, as it is timed.

    Attributes:
        inputs: K.
        outputs: N.
        rows: Rows a call, all leading dimensions together.
        bias: Whether it has one.
        relu: Whether a ReLU, and nothing else, follows.
        format: The precision's; ``"fp32"`` for none.
        scaled: Whether columns are multiplied first.
        kept: How many columns stay fp32.
    """

    inputs: int
    outputs: int
    rows: int
    bias: bool
    relu: bool
    format: str
    scaled: bool = False
    kept: int = 0

    @classmethod
    def of(cls, linear: fx.Node, precision: Precision | None, rows: float) -> Kernel:
        """The kernel of a linear whose weight is a parameter."""
        outputs, inputs = linear.args[1].meta["val"].shape  # type: ignore[union-attr]
        users = list(linear.users)
        relu = len(users) == 1 and is_op(users[0], _aten.relu.default)
        return cls(
            int(inputs),
            int(outputs),
            _rounded(rows),
            argument(linear, 2, "bias") is not None,
            relu,
            precision.format if precision else UNPLACED,
            bool(precision and precision.column_scale),
            len(precision.kept) if precision else 0,
        )

    @property
    def key(self) -> str:
        """What it is remembered under."""
        marks = {"bias": self.bias, "relu": self.relu, "scaled": self.scaled}
        marked = "".join(f"+{name}" for name, there in marks.items() if there)
        kept = f"+kept{self.kept}" if self.kept else ""
        return f"{self.rows}x{self.inputs}x{self.outputs} {self.format}{marked}{kept}"


@dataclass(frozen=True)
class Trial:
    """A kernel with what it is timed on.

    Attributes:
        kernel: What is timed.
        precision: How it is realised; None for fp32.
        samples: ``[n, K]`` real inputs.
        weight: ``[N, K]``.
    """

    kernel: Kernel
    precision: Precision | None = field(compare=False)
    samples: Tensor = field(compare=False, repr=False)
    weight: Tensor = field(compare=False, repr=False)


class KernelTimes:
    """Seconds a call of kernels on a target.

    Args:
        target: Whose first backend is timed.
        folder: Where measurements are kept; None keeps them in memory.
    """

    @classmethod
    def of(cls, ctx: PassContext) -> KernelTimes:
        """Those of the context's target, opened when a pass first asks."""
        known = ctx.resource(cls)
        return known or ctx.put(cls(ctx.target, ctx.cache or default_folder()))

    def __init__(self, target: Target, folder: Path | None = None) -> None:
        self._target = target
        self._cache = KernelCache(folder)
        self._known: dict[str, float] = {}
        self.measured = False
        if target.measured:
            self._open()

    def _open(self) -> None:
        try:
            self._backend = backend(self._target.backends[0])
        except TargetError:
            return
        self.measured = self._backend.times
        if self.measured:
            self._known = self._cache.read(self._machine())

    def learn(self, trials: Sequence[Trial]) -> None:
        """Times the kernels that aren't known yet, all in one build."""
        if not self.measured:
            return
        new = {t.kernel.key: t for t in trials if t.kernel.key not in self._known}
        if not new:
            return
        groups: dict[tuple[Any, ...], list[Trial]] = {}
        for trial in new.values():
            shape = (*(getattr(trial.kernel, n) for n in _FORM),)
            groups.setdefault(shape, []).append(trial)
        firsts = [group[0] for group in groups.values()]
        program = _program_of(firsts)
        names = program.signature.names
        rows = {
            names[index]: [trial.kernel.rows for trial in group]
            for index, group in enumerate(groups.values())
        }
        features = {
            names[index]: _filled(group[0].samples, max(rows[names[index]]))
            for index, group in enumerate(groups.values())
        }
        seconds = self._backend.seconds_apart(program, self._target, features, rows)
        for index, group in enumerate(groups.values()):
            for trial in group:
                self._known[trial.kernel.key] = seconds[names[index]][trial.kernel.rows]
        self._keep()

    def seconds(self, kernel: Kernel) -> float:
        """Measured, if it was learned; else the roofline's estimate."""
        known = self._known.get(kernel.key)
        return known if known is not None else estimate(kernel, self._target)

    def lookup_seconds(self, elements: float, number_format: str) -> float:
        """Looking up ``elements`` numbers in a table of a format, many rows at once."""
        if self.measured:
            key = f"lookup {number_format}"
            if key not in self._known:
                program, ids = _lookup_program(number_format)
                count, (name,) = len(ids), program.signature.names
                timed = self._backend.seconds_apart(
                    program, self._target, {name: ids}, {name: [count]}
                )
                self._known[key] = timed[name][count] / (count * _LOOKUP_WIDTH)
                self._keep()
            return self._known[key] * elements
        read = table_bytes(1, _LOOKUP_WIDTH, number_format) / _LOOKUP_WIDTH
        return Cost(0.0, (read + 4.0) * elements).seconds(self._target, UNPLACED)

    def _machine(self) -> str:
        versions = ", ".join(f"{k} {v}" for k, v in sorted(self._backend.versions().items()))
        return f"{_processor()}; {self._backend.name}: {versions}"

    def _keep(self) -> None:
        """To disk; of what another process has measured meanwhile, theirs is taken."""
        self._known = {**self._known, **self._cache.merged(self._machine(), self._known)}


#: What of a kernel makes it another node; its rows don't.
_FORM = ("inputs", "outputs", "bias", "relu", "format", "scaled", "kept")


#: The table that lookups are timed in: too large for the caches near the core.
_LOOKUP_ROWS, _LOOKUP_WIDTH, _LOOKUP_IDS = 60_000, 64, 2048


def _lookup_program(number_format: str) -> tuple[Program, Tensor]:
    """A lookup in a table of the format, and ids for it."""
    generator = torch.Generator().manual_seed(0)
    table = nn.Embedding(_LOOKUP_ROWS, _LOOKUP_WIDTH)
    table.weight = nn.Parameter(
        torch.randn(_LOOKUP_ROWS, _LOOKUP_WIDTH, generator=generator), requires_grad=False
    )
    ids = torch.randint(_LOOKUP_ROWS, (_LOOKUP_IDS,), generator=generator)
    program = _exported(_Apart([table]), (ids[:2],))
    rw = Rewriter(program, "kernels")
    lookups = [n for n in program.graph.nodes if is_op(n, _aten.embedding.default)]
    if number_format != UNPLACED:
        realise_table(rw, lookups, number_format)
    sweep(program)
    return program, ids


def estimate(kernel: Kernel, target: Target) -> float:
    """Roofline seconds, with what the format does around the product."""
    read, written = kernel.rows * kernel.inputs, kernel.rows * kernel.outputs
    weight = kernel.inputs * kernel.outputs
    flops = 2.0 * read * kernel.outputs
    around = FP32.nbytes * (read + weight + written)
    data = LINEAR.get(kernel.format)
    if data is None:
        return Cost(flops, around).seconds(target, kernel.format)
    # Each input is read as four bytes and written as what the format rounds it to.
    moved = data.input.nbytes
    before = (4.0 + moved) * read + (8.0 * read if kernel.scaled else 0.0)
    seconds = Cost(0.0, before).seconds(target, UNPLACED)
    if kernel.kept:
        share = kernel.kept / kernel.inputs
        picked = 8.0 * share * read + 12.0 * written
        seconds += Cost(flops * share, picked).seconds(target, UNPLACED)
    product = Cost(flops, moved * (read + written) + data.weight_bytes * weight)
    return seconds + product.seconds(target, kernel.format)


def _rounded(rows: float) -> int:
    """Rows to three significant bits, upwards."""
    whole = max(int(rows), 1)
    step = max(1 << (whole.bit_length() - 1), _ROW_STEPS) // _ROW_STEPS
    return -(-whole // step) * step


class _Apart(nn.Module):
    """Modules side by side, each over an input of its own."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.apart = nn.ModuleList(modules)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(module(x) for module, x in zip(self.apart, inputs, strict=True))


def _linear_of(trial: Trial) -> nn.Module:
    outputs, inputs = trial.weight.shape
    linear = nn.Linear(inputs, outputs, bias=trial.kernel.bias)
    linear.weight = nn.Parameter(trial.weight, requires_grad=False)
    return nn.Sequential(linear, nn.ReLU()) if trial.kernel.relu else linear


def _program_of(trials: Sequence[Trial]) -> Program:
    """The kernels as a program: input ``x_3`` gives output ``y_3``."""
    modules = [_linear_of(trial) for trial in trials]
    program = _exported(_Apart(modules), tuple(trial.samples[:2] for trial in trials))
    linears = [n for n in program.graph.nodes if is_op(n, _aten.linear.default)]
    rw = Rewriter(program, "kernels")
    for linear, trial in zip(linears, trials, strict=True):
        if trial.precision is not None:
            realise(rw, linear, trial.precision)
    sweep(program)
    return program


def _exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> Program:
    batch = torch.export.Dim("batch", min=0)
    with torch.no_grad(), silenced():
        exported = torch.export.export(
            module, (inputs,), dynamic_shapes=(tuple({0: batch} for _ in inputs),), strict=False
        ).run_decompositions({})
    structure = Structure.of(inputs, "x", lambda value: isinstance(value, Tensor))
    outputs = Structure.of(inputs, "y", lambda value: isinstance(value, Tensor))
    graph = flatten_exported(exported, structure.names, prefix="")
    signature = infer_signature(graph.graph, outputs.names)
    return Program(graph, signature, structure, outputs, structure.names, Form.CANONICAL)


def _filled(samples: Tensor, rows: int) -> Tensor:
    """Real rows, repeated until there are enough."""
    return samples.repeat(-(-rows // len(samples)), 1)[:rows].contiguous()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named: Mapping[str, str] = dict(
        line.replace("\t", "").split(": ", 1) for line in lines if ": " in line
    )
    return f"{named.get('model name', platform.machine())} {named.get('stepping', '')}".strip()
