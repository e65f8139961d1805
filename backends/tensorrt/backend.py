"""TensorRT: strongly typed engines, built ahead of time; one module for both of its packages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from ...optimizer.backend import Built, Here
from ...optimizer.errors import TargetError, UnsupportedError
from ...optimizer.formats import LINEAR
from ...optimizer.ir import Program
from ...optimizer.ir.ops import QUANTIZE, ROWWISE_LINEAR
from ...optimizer.target import Target
from ..inductor.gpu_kernels import gpu_sm
from ..onnx.backend import PlainOnnx
from ..onnx.emulation import write_emulated
from ..onnx.files import EMULATED, MODEL
from ..onnx.forms import in_words_of_tensorrt
from ..onnx.tables import decode_tables_first, tables_as_inputs
from ..onnx.translate import save_onnx, to_onnx
from .build_log import LinearRun, kernels, linear_runs, mismatches
from .engine import FACTS, EngineFacts
from .rules import FULL, RTX, Library, require_formats, require_legal, site_of
from .runtime import ENGINE, TensorRTRuntime

FUSION = "fusion.json"
_UNCHECKED = "ONNX, not checked by TensorRT"
_aten = torch.ops.aten
#: Ids of one row in a feature of lists: the profile's best, and the most it allows.
_IDS_PER_ROW = (16, 256)
_BATCHES = (64, 512)
_REFUSED: dict[Any, str] = {
    _aten.scatter_reduce.two: "TensorRT doesn't compare rows by index; pool padded ids [B, L]",
    _aten.nonzero.default: "TensorRT has no number of rows that depends on the data; mask them",
}


@dataclass(frozen=True)
class _Plan:
    """Which package builds, and for what.

    Attributes:
        library: The package.
        sm: The compute capability that is built for.
        kept: Whether the engine is for the target; otherwise it only checks the graph.
    """

    library: Library
    sm: int
    kept: bool


class TensorRT(TensorRTRuntime, PlainOnnx):
    """Builds ONNX that TensorRT takes, and the engine where a package for that GPU is here.

    Where none is, the file is written all the same, says what is missing, and `complete` makes the
    engine on the machine that serves it.

    Everything is typed: what the plan put in FP8 or INT8 is Q/DQ in the graph, what it put in FP16
    or BF16 is cast, and TF32 is off, so that the engine computes what was verified. Without the
    target's GPU the scores come from ONNX Runtime's CPU kernels, on the same ONNX file.
    """

    def missing(self) -> str:
        """The line that installs what a build needs; empty if it is here."""
        return "" if FULL.installed() or RTX.installed() else RTX.pip

    def here(self, target: Target) -> Here:
        """The engine, or the ONNX file and a check of it; run on the GPU, or by emulation."""
        if target.device.sm is None:
            return Here("", "")
        try:
            plan = _plan_for(target)
        except TargetError:
            return Here("", "") if _serves_here(target) else Here(_UNCHECKED, "by emulation")
        if plan.kept:
            run = "yes" if gpu_sm() == plan.sm else "by emulation"
            return Here(f"engine for SM{plan.sm}", run)
        return Here(f"ONNX, checked by an engine for SM{plan.sm}", "by emulation")

    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None, or why the node has no form."""
        if node.target is ROWWISE_LINEAR.op:
            return "TensorRT has no linear whose input rows have a range each; place int8 or fp8"
        refused = super().supports(node, target) or _REFUSED.get(node.target)
        if refused is not None:
            return refused
        adds = node.target is _aten.index_put.default and len(node.args) > 3 and bool(node.args[3])
        if adds or node.target in (_aten.index_add.default, _aten.scatter_add.default):
            return (
                "TensorRT doesn't add rows by index (ScatterND with a reduction). What would "
                "help: padded ids [B, L] with a mask, which become a lookup and a sum"
            )
        if node.target is QUANTIZE.op and node.args[4] is torch.uint8:
            return "TensorRT has no uint8 codes; a target with int8_activations='int8' has int8"
        return None

    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes ``model.onnx``, ``fusion.json``, and ``model.engine`` if it is for this GPU.

        Raises:
            UnsupportedError: A node that TensorRT doesn't take.
            TargetError: This is the target's GPU, and no package that builds for it is installed.
        """
        require_formats(target)
        self.require(program, target)
        plan, lacking = _plan_or_why_not(target)
        model = to_onnx(decode_tables_first(program))
        require_legal(model, target)
        files = save_onnx(model, folder / MODEL, metadata)
        if write_emulated(folder / MODEL, folder / EMULATED):
            files += (EMULATED,)
        if plan is None:
            return Built(files, {"onnx": ir.__version__}, (*self.notes(), lacking))
        stored = metadata.get("rankc.batch_sizes", "")
        sizes = tuple(int(size) for size in stored.split(",")) if stored else _BATCHES
        runs, version = _engine(folder / MODEL, folder, plan, sizes)
        unmet = mismatches(runs)
        _write_report(folder, plan, version, runs)
        files += (FUSION, ENGINE, FACTS) if plan.kept else (FUSION,)
        return Built(
            files,
            {"onnx": ir.__version__, plan.library.module: version},
            (*self.notes(), _note(plan, version, target, runs), *unmet),
            {f"{run.runs} linears": _count(runs, run.runs) for run in runs},
            unmet,
        )

    def complete(
        self, folder: Path, made: Path, target: Target, batch_sizes: Sequence[int]
    ) -> tuple[str, ...]:
        """Builds the engine of a saved artifact on the machine that serves it.

        Raises:
            TargetError: No package here builds for the target; the pip line, and what is needed.
        """
        plan = _plan_for(target)
        if not plan.kept:
            raise TargetError(
                f"{plan.library.module} doesn't build for {target.device.name} "
                f"(SM{target.device.sm}). On a machine with that GPU: {FULL.pip}"
            )
        runs, version = _engine(folder / MODEL, made, plan, tuple(batch_sizes))
        _write_report(made, plan, version, runs)
        return (FUSION, ENGINE, FACTS)


def _plan_for(target: Target) -> _Plan:
    """The package that builds for the target here.

    Raises:
        TargetError: There is none, and how to get one.
    """
    sm = target.device.sm
    assert sm is not None
    if FULL.installed() and gpu_sm() == sm:
        return _Plan(FULL, sm, kept=True)
    if not RTX.installed():
        here = "has none" if gpu_sm() is None else f"has SM{gpu_sm()}"
        needs = f" ({FULL.module} builds on the GPU itself, SM{sm}; this machine {here})"
        raise TargetError(
            f"building TensorRT engines for {target.name} needs a package that isn't installed: "
            f"{RTX.pip}" + (needs if FULL.installed() else "")
        )
    if sm in RTX.sms:
        return _Plan(RTX, sm, kept=True)
    # The newest with the same formats that is no newer than the target, or the oldest with them.
    since = max((LINEAR[name].since for name in target.formats), default=0)
    having = [other for other in RTX.sms if other >= since]
    older = [other for other in having if other <= sm]
    return _Plan(RTX, max(older) if older else min(having, default=RTX.sms[-1]), kept=False)


def _serves_here(target: Target) -> bool:
    """Whether this is the GPU that is built for: then another backend serves it, if need be."""
    return gpu_sm() == target.device.sm


def _plan_or_why_not(target: Target) -> tuple[_Plan | None, str]:
    """The package that builds for the target here; or None, and what is missing.

    Raises:
        TargetError: There is none, and this is the target's GPU.
    """
    try:
        return _plan_for(target), ""
    except TargetError as error:
        if _serves_here(target):
            raise
        return None, (
            f"TensorRT is missing here: the file was written for it, and no engine has checked it. "
            f"{error}. `rankc build` makes the engine on the serving machine, an "
            f"{target.device.name}, with {FULL.pip}"
        )


def _engine(
    source: Path, folder: Path, plan: _Plan, batch_sizes: tuple[int, ...]
) -> tuple[tuple[LinearRun, ...], str]:
    """Builds the engine of an ONNX file; writes it to a folder if it is to be kept.

    Returns:
        What each coded linear runs in, and the version of the package.

    Raises:
        UnsupportedError: TensorRT refuses the graph; which nodes, by the user's names.
    """
    trt = plan.library.load()
    model = ir.load(source)
    tables = tables_as_inputs(model)
    in_words_of_tensorrt(model)
    graph = folder / "graph.onnx"
    ir.save(model, graph)
    weights = _weights_beside(model, source.parent, folder)
    log = _logger(trt)
    try:
        batches = (1, sorted(batch_sizes)[len(batch_sizes) // 2], max(batch_sizes))
        serialized = _build(trt, graph, model, plan, batches, log)
    finally:
        for path in (graph, *weights):
            path.unlink()
    if plan.kept:
        (folder / ENGINE).write_bytes(memoryview(serialized))
        facts = EngineFacts(plan.library.module, trt.__version__, plan.sm, batches, tables)
        facts.save(folder)
    return linear_runs(model, kernels(log.messages)), trt.__version__


def _weights_beside(model: ir.Model, source: Path, folder: Path) -> list[Path]:
    """Names in another folder for the files of weights that a graph reads there."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    names = {str(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)}
    made = []
    for name in sorted(names) if folder != source else ():
        made.append(folder / name)
        try:
            os.link(source / name, made[-1])
        except OSError:  # a file system without links
            shutil.copyfile(source / name, made[-1])
    return made


def _logger(trt: Any) -> Any:
    """A logger that keeps what TensorRT says."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _build(
    trt: Any,
    graph: Path,
    model: ir.Model,
    plan: _Plan,
    batches: tuple[int, int, int],
    log: Any,
) -> Any:
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        raise UnsupportedError(_told(model, [(e.node_name(), e.desc()) for e in found], plan))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for value in model.graph.inputs:
        if value.name is not None and not all(isinstance(d, int) for d in value.shape or ()):
            profile.set_shape(value.name, *_shapes(value, batches))
    config.add_optimization_profile(profile)
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{plan.sm}"), 0)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise UnsupportedError(_told(model, [("", message) for message in log.errors], plan))
    return serialized


def _shapes(value: ir.Value, batches: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The smallest, the best and the largest shape of an input."""
    ids = (1, _IDS_PER_ROW[0] * batches[1], _IDS_PER_ROW[1] * batches[2])
    found = []
    for batch, rows in zip(batches, ids, strict=True):
        sizes = []
        for dim in value.shape or ():
            if isinstance(dim, int):
                sizes.append(dim)
                continue
            symbol = str(dim.value)
            if symbol == "batch":
                sizes.append(batch)
            else:  # ids of all rows together, or where each row's begin
                sizes.append(batch + 1 if symbol.replace(" ", "") == "batch+1" else rows)
        found.append(tuple(sizes))
    return found


def _told(model: ir.Model, errors: Sequence[tuple[str, str]], plan: _Plan) -> str:
    """TensorRT's refusals by the user's names."""
    nodes = {node.name: node for node in model.graph.all_nodes() if node.name}
    lines = []
    for name, said in errors[:8]:
        node = nodes.get(name) or next((n for k, n in nodes.items() if k and k in said), None)
        place = f"{site_of(node)} ({node.op_type})" if node is not None else "the graph"
        lines.append(f"  {place}: {said.splitlines()[0][:240]}")
    return (
        f"{plan.library.module} refuses the graph for SM{plan.sm}. `rankc doctor` shows the node; "
        "`pipeline=` can leave out the pass that made it:\n" + "\n".join(lines)
    )


def _write_report(folder: Path, plan: _Plan, version: str, runs: Sequence[LinearRun]) -> None:
    report = {
        "library": plan.library.module,
        "version": version,
        "sm": plan.sm,
        "engine_kept": plan.kept,
        "linears": [run.to_json() for run in runs],
    }
    (folder / FUSION).write_text(json.dumps(report, indent=1) + "\n")


def _note(plan: _Plan, version: str, target: Target, runs: Sequence[LinearRun]) -> str:
    kept = sum(run.as_planned for run in runs)
    standing = sum(len(run.standing) for run in runs)
    built = f"engine built by {plan.library.module} {version} for SM{plan.sm}"
    if not plan.kept:
        built = (
            f"{plan.library.module} {version} doesn't build for SM{target.device.sm}: the graph "
            f"was checked by an engine for SM{plan.sm}, and `rankc build` makes the engine on the "
            "serving machine"
        )
    return (
        f"{built}; {kept} of {len(runs)} coded linears run as planned, {standing} quantize or "
        f"dequantize nodes are kernels of their own ({FUSION})"
    )


def _count(runs: Sequence[LinearRun], kind: str) -> int:
    return sum(run.runs == kind for run in runs)
