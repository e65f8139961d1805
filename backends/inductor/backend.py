"""PyTorch's own compiler, ahead of time: an AOTInductor package, on a GPU or on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from ...optimizer.backend import Backend, Built, Here
from ...optimizer.errors import ArtifactError, TargetError, UnsupportedError
from ...optimizer.ir import Program, site_of
from ...optimizer.ir.ops import DEQUANTIZE, QUANTIZE, ROWWISE_LINEAR
from ...optimizer.ir.torchapi import aoti_compile, aoti_load, compiled, silenced
from ...optimizer.runtime import Arrays
from ...optimizer.target import Target
from .gpu_kernels import (
    BF16,
    KERNELS,
    Dispatched,
    Kernel,
    LowWeight,
    dispatch,
    gpu_sm,
    multiply_rows,
    time_on_gpu,
)

PACKAGE, FACTS = "model.pt2", "inductor.json"
_aten = torch.ops.aten
_BATCHES = (64, 512)


class Inductor(Backend):
    """Compiles the program with torch.export and AOTInductor; quantized linears run as such.

    A linear whose input and weight are codes becomes one product of codes: ``_scaled_mm`` for FP8,
    ``_int_mm`` for INT8. On a GPU each is dispatched: the fastest of the kernels that compute what
    was planned, and of BF16, which is off by less. A package runs on the kind of device it was
    compiled on. On a GPU each batch size served has a CUDA graph; others are padded to the next.
    """

    name: ClassVar[str] = "inductor"

    def missing(self) -> str:
        """What a build needs and isn't here."""
        return "" if shutil.which("g++") else "apt-get install g++"

    def here(self, target: Target) -> Here:
        """A package, where the target's device is."""
        try:
            device = _device_for(target)
        except TargetError:
            return Here("", "")
        return Here("" if self.missing() else f"package for {device.type}", "yes")

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None: what can be exported can be compiled."""
        return None

    def code_in(self, files: Collection[str]) -> str:
        """A package is a compiled library."""
        return f"{PACKAGE} is compiled code, which is loaded as a library"

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.pt2`` and ``inductor.json``.

        Raises:
            TargetError: The target's GPU isn't in this machine.
            UnsupportedError: The compiler refuses the program.
        """
        if self.missing():
            raise TargetError(f"AOTInductor compiles C++, and there is no g++: {self.missing()}")
        device = _device_for(target)
        stored = metadata.get("rankc.batch_sizes", "")
        sizes = tuple(int(size) for size in stored.split(",")) if stored else _BATCHES
        kernels = _dispatched(program, target, device, max(sizes))
        exported = _exported(program, kernels, device)
        try:
            with silenced():
                aoti_compile(exported, folder / PACKAGE)
        except Exception as error:
            first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
            raise UnsupportedError(
                f"AOTInductor can't compile the program: {type(error).__name__}: {first}"
            ) from error
        facts = PackageFacts(
            device=device.type,
            sm=gpu_sm() if device.type == "cuda" else None,
            torch=torch.__version__,
            buckets=sizes if device.type == "cuda" and _plain_batches(program) else (),
            inputs=program.signature.names,
            outputs=program.signature.outputs,
        )
        facts.save(folder)
        notes = tuple(f"{site}: {found.kernel}, {found.reason}" for site, found in kernels.items())
        counts: dict[str, int] = {}
        for found in kernels.values():
            counts[found.kernel] = counts.get(found.kernel, 0) + 1
        return Built((PACKAGE, FACTS), {"torch": torch.__version__}, notes, counts)

    def open(self, folder: Path, threads: int | None = None) -> InductorRunner:
        """Loads ``model.pt2``."""
        facts = PackageFacts.load(folder)
        facts.require(gpu_sm())
        if threads is not None:
            torch.set_num_threads(threads)
        return InductorRunner(folder / PACKAGE, facts)


@dataclass(frozen=True)
class PackageFacts:
    """What a package was compiled for.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        sm: The GPU's compute capability times ten; None on a CPU.
        torch: The torch that compiled it.
        buckets: Batch sizes that get a CUDA graph.
        inputs: Names of the features, in order.
        outputs: Names of the outputs, in order.
    """

    device: str
    sm: int | None
    torch: str
    buckets: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Writes them beside the package."""
        (folder / FACTS).write_text(json.dumps(vars(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> PackageFacts:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: The file is damaged.
        """
        try:
            data = json.loads((folder / FACTS).read_text())
            for name in ("buckets", "inputs", "outputs"):
                data[name] = tuple(data[name])
            return cls(**data)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder / FACTS} is damaged or foreign: {error!r}") from error

    def require(self, sm: int | None) -> None:
        """Raises unless this machine runs the package.

        Raises:
            ArtifactError: It is for another GPU or another torch.
        """
        if self.torch != torch.__version__:
            raise ArtifactError(
                f"the package was compiled by torch {self.torch}, and {torch.__version__} is "
                f"installed: pip install torch=={self.torch.split('+')[0]}, or optimize again"
            )
        if self.device == "cuda" and sm != self.sm:
            here = "there is no GPU here" if sm is None else f"this GPU is SM{sm}"
            raise ArtifactError(
                f"the package was compiled for SM{self.sm}, and {here}; optimize again on the "
                "serving machine"
            )


def _device_for(target: Target) -> torch.device:
    """Where the program is compiled.

    Raises:
        TargetError: It would have to be another machine.
    """
    if target.device.kind == "cpu":
        return torch.device("cpu")
    if gpu_sm() == target.device.sm:
        return torch.device("cuda")
    here = "none" if gpu_sm() is None else f"an SM{gpu_sm()}"
    raise TargetError(
        f"AOTInductor compiles on the GPU it is for, {target.device.name} "
        f"(SM{target.device.sm}), and this machine has {here}"
    )


@dataclass(frozen=True)
class _Coded:
    """A linear whose input and weight are codes: the nodes they come from.

    Attributes:
        source: The input before it is coded.
        step: Its static scale; None where each row has one of its own.
        codes: The weight's codes.
        scale: The weight's scale per output.
    """

    source: fx.Node
    step: fx.Node | None
    codes: fx.Node
    scale: fx.Node


def _coded(node: fx.Node) -> _Coded | None:
    """The linear taken apart, if it is one that `insert-quantize` made, symmetric."""
    if node.target is ROWWISE_LINEAR.op:
        source, codes, scale, _, *extra = node.args
        plain = isinstance(source, fx.Node) and not any(extra)
        return _Coded(source, None, codes, scale) if plain else None  # type: ignore[arg-type]
    if node.target is not _aten.linear.default:
        return None
    restored, decoded = node.args[0], node.args[1]
    if not (isinstance(restored, fx.Node) and isinstance(decoded, fx.Node)):
        return None
    codes, scale = decoded.args[0:2] if decoded.target is DEQUANTIZE.op else (None, None)
    if not (isinstance(codes, fx.Node) and isinstance(scale, fx.Node)):
        return None
    quantized = restored.args[0] if restored.target is DEQUANTIZE.op else None
    if not isinstance(quantized, fx.Node):
        return None
    if quantized.target is not QUANTIZE.op or quantized.args[4] is torch.uint8:
        return None
    source, step = quantized.args[0], quantized.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(step, fx.Node)
    return _Coded(source, step, codes, scale)


def _dispatched(
    program: Program, target: Target, device: torch.device, rows: int
) -> dict[str, Dispatched]:
    """The kernel of each coded linear, by the user's name of it."""
    found = {}
    for node in program.graph.nodes:
        coded = _coded(node)
        if coded is None:
            continue
        codes = program.tensor(str(coded.codes.target))
        own_scales = coded.step is None
        plan = [k for k in KERNELS if k.dtype is codes.dtype and k.dynamic == own_scales]
        if device.type == "cpu":
            found[site_of(node)] = Dispatched(plan[0].name, {}, {}, "as planned")
            continue
        open_to = [BF16, *plan]
        weight = codes.float() * program.tensor(str(coded.scale.target))[:, None]
        found[site_of(node)] = _measured(open_to, weight.to(device), rows)
    return found


def _measured(kernels: list[Kernel], weight: Tensor, rows: int) -> Dispatched:
    """The fastest of kernels that are all as right as the plan."""
    x = torch.randn(rows, weight.shape[1], device=weight.device)
    step = torch.tensor(0.01, device=weight.device)
    calls: dict[str, Callable[[], Tensor]] = {}
    for kernel in kernels:
        run = compiled(partial(kernel.run, weight=kernel.prepare(weight), bias=None))
        calls[kernel.name] = partial(run, x, step=step)
    return dispatch(calls, None, float("inf"), time_on_gpu)


class _Lowering(fx.Interpreter):
    """Runs a program with coded linears as products of codes, on one device."""

    def __init__(
        self, program: Program, kernels: Mapping[str, Dispatched], device: torch.device
    ) -> None:
        super().__init__(program.module, garbage_collect_values=False)
        self._kernels = kernels
        self._device = device
        self._named = {kernel.name: kernel for kernel in KERNELS}

    def run_node(self, n: fx.Node) -> Any:
        coded = _coded(n)
        if coded is None and n.target is ROWWISE_LINEAR.op:
            values: Any = self.map_nodes_to_values(n.args, n)
            x, codes, scale, *rest = values
            flat = multiply_rows(x.reshape(-1, x.shape[-1]), LowWeight(codes, scale), *rest)
            return flat.reshape([*x.shape[:-1], flat.shape[-1]])
        if coded is None:
            return super().run_node(n)
        kernel = self._named[self._kernels[site_of(n)].kernel]
        x = self.env[coded.source]
        codes, scale = self.env[coded.codes], self.env[coded.scale]
        place = 3 if n.target is ROWWISE_LINEAR.op else 2
        given = n.args[place] if len(n.args) > place else None
        bias = self.env[given] if isinstance(given, fx.Node) else None
        weight: LowWeight | Tensor = LowWeight(codes, scale)
        if kernel is BF16:
            weight = (codes.float() * scale[:, None]).to(torch.bfloat16)
        flat = x.reshape(-1, x.shape[-1])
        step = self.env[coded.step] if coded.step is not None else None
        out = kernel.run(flat, weight, bias, step)
        return out.reshape([*x.shape[:-1], out.shape[-1]])

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().get_attr(target, args, kwargs).to(self._device)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self._device}
        return super().call_function(target, args, kwargs)


class _Lowered(torch.nn.Module):
    def __init__(self, lowering: _Lowering) -> None:
        super().__init__()
        self.program = lowering.module
        self.lowering = lowering

    def forward(self, *features: Tensor) -> Any:
        return self.lowering.run(*features)


def _exported(
    program: Program, kernels: Mapping[str, Dispatched], device: torch.device
) -> torch.export.ExportedProgram:
    example, dynamic = program.example()
    on_device = program.clone()
    on_device.module.to(device)
    lowered = _Lowered(_Lowering(on_device, kernels, device))
    with torch.no_grad(), silenced():
        return torch.export.export(
            lowered,
            tuple(x.to(device) for x in example),
            dynamic_shapes=(dynamic,),
            strict=False,
        )


def _plain_batches(program: Program) -> bool:
    """Whether every input has one row a candidate, so that a batch can be padded."""
    example, dynamic = program.example()
    symbols = {str(dims.get(0)) for dims in dynamic}
    return len(example) > 0 and len(symbols) == 1 and all(set(dims) == {0} for dims in dynamic)


class InductorRunner:
    """A package that takes and returns numpy arrays by name."""

    def __init__(self, path: Path, facts: PackageFacts) -> None:
        try:
            self._call = aoti_load(path)
        except Exception as error:
            raise ArtifactError(f"{path} can't be opened: {error}") from error
        self._facts = facts
        self._graphs: dict[int, _Graph] = {}

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""
        given = [torch.from_numpy(features[name]) for name in self._facts.inputs]
        with torch.no_grad():
            found = self._call(*given) if self._facts.device == "cpu" else self._on_gpu(given)
        return {
            name: value.cpu().numpy()
            for name, value in zip(self._facts.outputs, found, strict=True)
        }

    def _on_gpu(self, given: list[Tensor]) -> list[Tensor]:
        rows = len(given[0])
        bucket = min((size for size in self._facts.buckets if size >= rows), default=None)
        if bucket is None:
            return list(self._call(*(value.cuda() for value in given)))
        if bucket not in self._graphs:
            self._graphs[bucket] = _Graph(self._call, given, bucket)
        return self._graphs[bucket](given)


class _Graph:
    """A CUDA graph of one batch size; smaller batches use its first rows."""

    def __init__(self, call: Callable[..., Any], like: list[Tensor], rows: int) -> None:
        self._inputs = [
            torch.zeros((rows, *value.shape[1:]), dtype=value.dtype, device="cuda")
            for value in like
        ]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = list(call(*self._inputs))

    def __call__(self, given: list[Tensor]) -> list[Tensor]:
        rows = len(given[0])
        for held, value in zip(self._inputs, given, strict=True):
            held[:rows].copy_(value)
        self._graph.replay()
        return [value[:rows] for value in self._outputs]
