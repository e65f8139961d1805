"""MLIR: the program as text of four dialects by torch-mlir, compiled for the CPU by IREE."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from ..optimizer.backend import Backend, Built
from ..optimizer.errors import ArtifactError, TargetError, UnsupportedError
from ..optimizer.ir import Program, site_of
from ..optimizer.ir.torchapi import core_program, silenced
from ..optimizer.runtime import Arrays
from ..optimizer.target import Target

WEIGHTS, ARGUMENTS, COMPILED = "weights.bin", "arguments.json", "model.vmfb"
_aten = torch.ops.aten
#: Dialects, by torch-mlir's names of them, and their files.
_DIALECTS = {
    "torch": "model.torch.mlir",
    "linalg-on-tensors": "model.linalg.mlir",
    "stablehlo": "model.stablehlo.mlir",
}
#: torch-mlir lowers TOSA for a fixed batch only.
_TOSA = "model.tosa.mlir"
#: Ways to compile, fastest first; some graphs break IREE 3.13's faster ones (allocas in loops).
#: Never with --iree-opt-data-tiling: a batched product of a linear's output is then wrong for every
#: row but the first where the batch is dynamic.
_FLAGS: tuple[tuple[str, ...], ...] = (
    ("--iree-llvmcpu-enable-ukernels=all",),
    (),
    ("--iree-llvmcpu-stack-allocation-limit=1048576", "--iree-llvmcpu-target-cpu=generic"),
)
_ALIGNMENT = 4096
#: What IREE can't take as a value of its own travels as its bits.
_BITS = {torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}
_PIP = 'pip install "rankc[mlir]"'


class Mlir(Backend):
    """Writes MLIR text whose weights are arguments, and a module of IREE that runs on this CPU.

    Constants would take ten times their bytes of memory while compiling; as arguments, tables are
    mapped from ``weights.bin`` and neither compiler ever sees them.
    """

    name: ClassVar[str] = "mlir"

    def missing(self) -> str:
        """The line that installs torch-mlir and IREE; empty if they are here."""
        needed = ("torch_mlir", "iree")
        return _PIP if any(importlib.util.find_spec(name) is None for name in needed) else ""

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None, or why the node has no form."""
        if node.target in (_aten.embedding_bag.default, _aten.embedding_bag.padding_idx):
            return "torch-mlir has no embedding_bag; lower-embedding-bag has no form for this one"
        return None

    def lacks(self, program: Program) -> str:
        """Why torch-mlir has no form for it."""
        if self.missing():
            raise TargetError(f"building MLIR needs packages that aren't installed: {_PIP}")
        names = tuple(name for name, _ in program.tensors())
        try:
            _text(_lifted(program, names, None, bits=True), "linalg-on-tensors", program)
        except UnsupportedError as error:
            return str(error)
        return ""

    def code_in(self, files: Collection[str]) -> str:
        """What IREE compiles is machine code."""
        return f"{COMPILED} is compiled code, which IREE loads"

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.*.mlir``, ``weights.bin``, ``arguments.json`` and ``model.vmfb``."""
        if self.missing():
            raise TargetError(f"building MLIR needs packages that aren't installed: {_PIP}")
        import torch_mlir
        from iree.compiler import version

        self.require(program, target)
        names = tuple(name for name, _ in program.tensors())
        sizes = metadata.get("rankc.batch_sizes", "")
        fixed = max(int(size) for size in sizes.split(",")) if sizes else 64
        texts, notes = _texts(program, names, fixed)
        for kind, text in texts.items():
            (folder / _DIALECTS.get(kind, _TOSA)).write_text(text)
        compiled, flags = _compile(texts["torch"], program)
        (folder / COMPILED).write_bytes(compiled)
        if flags != _FLAGS[0]:
            notes.append(f"IREE took the graph with {' '.join(flags) or 'no flags'} only")
        _write_weights(program, names, folder)
        return Built(
            (
                *(_DIALECTS.get(kind, _TOSA) for kind in texts),
                WEIGHTS,
                ARGUMENTS,
                COMPILED,
            ),
            {"torch-mlir": _version(torch_mlir), "iree": str(version.VERSION or "?")},
            tuple(notes),
        )

    def open(self, folder: Path, threads: int | None = None) -> MlirRunner:
        """Opens ``model.vmfb``; weights are mapped into memory, not read."""
        if self.missing():
            raise ArtifactError(f"running {folder / COMPILED} needs IREE: {_PIP}")
        return MlirRunner(folder)


def _version(module: Any) -> str:
    from importlib.metadata import version

    return version(str(module.__name__).replace("_", "-"))


def _texts(
    program: Program, names: tuple[str, ...], fixed: int
) -> tuple[dict[str, str], list[str]]:
    """The program in every dialect that has a form for it, and what there is to say.

    IREE reads the text in torch's dialect, where FP8 weights are bits that are viewed as FP8: it
    takes no FP8 argument. The other dialects have no such view and take FP8 as it is.
    """
    texts = {"torch": _text(_lifted(program, names, None, bits=True), "torch", program)}
    notes = [f"TOSA is for a batch of {fixed}: its lowering takes no dynamic one"]
    dynamic = _lifted(program, names, None, bits=False)
    for kind in ("linalg-on-tensors", "stablehlo", "tosa"):
        exported = dynamic if kind != "tosa" else _lifted(program, names, fixed, bits=False)
        try:
            texts[kind] = _text(exported, kind, program)
        except UnsupportedError as error:
            notes.append(f"no {kind}: {str(error).splitlines()[0][:200]}")
    return texts, notes


class _Lifted(torch.nn.Module):
    """The program with its weights as arguments, before the features."""

    def __init__(self, program: Program, names: tuple[str, ...]) -> None:
        super().__init__()
        self.program = program.module
        self.dtypes = {name: program.tensor(name).dtype for name in names}

    def forward(self, weights: list[Tensor], features: tuple[Tensor, ...]) -> Any:
        given = dict(zip(self.dtypes, weights, strict=True))
        found = {
            name: given[name].view(dtype) if given[name].dtype is not dtype else given[name]
            for name, dtype in self.dtypes.items()
        }
        return _Lowering(self.program, found).run(*features)


class _Lowering(fx.Interpreter):
    """Runs a graph with the weights given, and with forms torch-mlir takes."""

    def __init__(self, module: fx.GraphModule, weights: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self.weights = weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.weights[str(target)]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in (_aten.squeeze.dims, _aten.squeeze.dim):
            return _squeezed(args[0], args[1])
        return super().call_function(target, args, kwargs)


def _squeezed(x: Tensor, dims: int | list[int]) -> Tensor:
    """`squeeze` as a reshape: torch-mlir has no ``squeeze.dims``."""
    asked = {dim % x.dim() for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}
    gone = {dim for dim in asked if isinstance(x.shape[dim], int) and x.shape[dim] == 1}
    return x.reshape([size for dim, size in enumerate(x.shape) if dim not in gone])


def _stored(tensor: Tensor) -> Tensor:
    """The tensor as it is passed: FP8 as its bits."""
    return tensor.detach().view(_BITS.get(tensor.dtype, tensor.dtype))


def _lifted(
    program: Program, names: tuple[str, ...], batch: int | None, *, bits: bool
) -> torch.export.ExportedProgram:
    """The program over core ATen, dialect ops decomposed, its weights arguments.

    Args:
        program: In canonical form.
        names: Of its weights, in the order they are passed.
        batch: A fixed batch, or None for a dynamic one.
        bits: Whether FP8 weights are passed as their bits.
    """
    example, dynamic = program.example()
    if batch is not None:
        example = tuple(
            torch.zeros([batch if index in dims else n for index, n in enumerate(x.shape)]).to(
                x.dtype
            )
            for x, dims in zip(example, dynamic, strict=True)
        )
        dynamic = tuple({} for _ in dynamic)
    weights = [program.tensor(name).detach() for name in names]
    if bits:
        weights = [_stored(weight) for weight in weights]
    with torch.no_grad(), silenced():
        exported = torch.export.export(
            _Lifted(program, names),
            (weights, example),
            dynamic_shapes=([None] * len(weights), dynamic),
            strict=False,
        )
        return core_program(exported)


def _text(exported: torch.export.ExportedProgram, dialect: str, program: Program) -> str:
    """The program in a dialect.

    Raises:
        UnsupportedError: torch-mlir has no form for a node; which, by the user's name.
    """
    from torch_mlir import fx as torch_mlir_fx

    try:
        with silenced():
            module = torch_mlir_fx.export_and_import(
                exported, output_type=dialect, decomposition_table={}
            )
        return str(module)
    except Exception as error:
        raise UnsupportedError(_told(error, exported, dialect, program)) from error


def _told(
    error: BaseException,
    exported: torch.export.ExportedProgram,
    dialect: str,
    program: Program,
) -> str:
    """The refusal in the user's names: torch-mlir prints operators it doesn't know as such."""
    from torch_mlir import fx as torch_mlir_fx

    raw = torch_mlir_fx.export_and_import(exported, output_type="raw", decomposition_table={})
    unknown = set(re.findall(r'torch\.operator "torch\.(\w+\.\w+)', str(raw)))
    for node in program.graph.nodes:
        name = str(node.target).rsplit(".", 1)[0]
        if node.op == "call_function" and name in unknown:
            return f"{dialect} has no form for {node.target}, used at {site_of(node)}"
    said = [line for line in str(error).splitlines() if line.strip()]
    first = " ".join(said[:2])[:300]
    return f"the program can't be written as {dialect}: {first}"


def _compile(text: str, program: Program) -> tuple[bytes, tuple[str, ...]]:
    """The module of IREE, and the flags it took.

    Raises:
        UnsupportedError: IREE doesn't take the graph.
    """
    import iree.compiler

    said = ""
    for flags in _FLAGS:
        host = () if any("target-cpu" in flag for flag in flags) else (_HOST,)
        try:
            compiled = iree.compiler.compile_str(
                text,
                target_backends=["llvm-cpu"],
                input_type="torch",
                extra_args=[*host, *flags],
            )
        except iree.compiler.CompilerToolError as error:
            said = said or str(error)
            continue
        return bytes(compiled), flags
    first = next((line for line in said.splitlines() if "error:" in line), said)
    raise UnsupportedError(f"IREE doesn't take the graph: {first[:300]}")


_HOST = "--iree-llvmcpu-target-cpu=host"


@dataclass(frozen=True)
class _Argument:
    """A weight in ``weights.bin``.

    Attributes:
        name: The parameter's name.
        dtype: numpy's name of how it is stored.
        shape: Its shape.
        offset: Where it begins, in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def _write_weights(program: Program, names: tuple[str, ...], folder: Path) -> None:
    """Writes every weight once, page by page, and where each is."""
    arguments = []
    with (folder / WEIGHTS).open("wb") as file:
        for name in names:
            values = _numpy(_stored(program.tensor(name)).contiguous())
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            dtype = values.dtype.name
            arguments.append(_Argument(name, dtype, tuple(values.shape), file.tell()))
            file.write(values.reshape(-1).view(np.uint8).data)
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    contract = {
        "arguments": [vars(argument) for argument in arguments],
        "features": list(program.signature.names),
        "outputs": list(program.signature.outputs),
    }
    (folder / ARGUMENTS).write_text(json.dumps(contract, indent=1) + "\n")


def _numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class MlirRunner:
    """A compiled module that takes and returns numpy arrays by name."""

    def __init__(self, folder: Path) -> None:
        import iree.runtime

        try:
            contract = json.loads((folder / ARGUMENTS).read_text())
            self._config = iree.runtime.Config("local-sync")
            context = iree.runtime.SystemContext(config=self._config)
            module = iree.runtime.VmModule.mmap(context.instance, str(folder / COMPILED))
            context.add_vm_module(module)
            self._call = context.modules.module["main"]
            #: What the device reads stays alive as long as the runner does.
            self._kept: list[Any] = [context, module]
            arguments = [_Argument(**a) for a in contract["arguments"]]
            self._weights = [self._mapped(folder / WEIGHTS, a) for a in arguments]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{folder / COMPILED} can't be opened: {error}") from error
        self._features = contract["features"]
        self._outputs = contract["outputs"]

    def _mapped(self, path: Path, argument: _Argument) -> Any:
        """A weight on the device, which for a CPU is the mapped file itself."""
        import iree.runtime
        import ml_dtypes

        shape = tuple(argument.shape)
        dtype = np.dtype(getattr(ml_dtypes, argument.dtype, argument.dtype))
        if not shape or 0 in shape:
            array = np.fromfile(path, dtype, int(np.prod(shape)), offset=argument.offset)
            return iree.runtime.asdevicearray(self._config.device, array.reshape(shape))
        # Copy on write: IREE takes writable memory only, and never writes to an argument.
        array = np.memmap(path, dtype, "c", argument.offset, shape)
        buffer = self._config.device.allocator.import_host_allocation(
            array, iree.runtime.MemoryType.DEVICE_LOCAL, iree.runtime.BufferUsage.DEFAULT
        )
        self._kept += [array, buffer]
        kind = iree.runtime.array_interop.map_dtype_to_element_type(dtype)
        return iree.runtime.HalBufferView(buffer=buffer, shape=shape, element_type=kind)

    def __call__(self, features: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Scores one batch."""
        given = [np.ascontiguousarray(features[name]) for name in self._features]
        results = self._call(*self._weights, *given)
        if not isinstance(results, (tuple, list)):
            results = (results,)
        return {
            name: np.array(value.to_host())
            for name, value in zip(self._outputs, results, strict=True)
        }
