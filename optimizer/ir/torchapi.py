"""The one file that touches torch's private names.

Everything here works on torch 2.11 to 2.13; when torch moves, this is what to mend.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import linecache
import logging
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from traceback import FrameSummary, StackSummary
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.exc import UserError
from torch._guards import detect_fake_mode
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import graph_module
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    ShapeEnv,
    free_unbacked_symbols,
)
from torch.fx.proxy import TracerBase
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "GuardOnDataDependentSymNode",
    "HigherOrderOperator",
    "OpOverload",
    "ShapeEnv",
    "TorchDispatchMode",
    "UserError",
    "WeakIdKeyDictionary",
    "aoti_compile",
    "aoti_load",
    "captured_operators",
    "compiled",
    "core_decompositions",
    "core_program",
    "detect_fake_mode",
    "exported_as_onnx",
    "fake_call",
    "fake_mode_of",
    "fake_of",
    "fixed_size",
    "flat_graph_module",
    "forgetting",
    "free_unbacked_symbols",
    "int_mm",
    "is_composite",
    "is_fake",
    "no_dispatch",
    "operator_name",
    "plain_transformers",
    "quiet",
    "scaled_mm",
    "shared_copy",
    "silenced",
    "stacks_of",
    "unlift",
    "weight_norm",
]


def is_fake(value: object) -> bool:
    """Whether ``value`` is a tensor without data."""
    return isinstance(value, FakeTensor)


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The fake mode in which the graph's values were inferred; a fresh one if there are none."""
    values = [node.meta["val"] for node in graph.nodes if "val" in node.meta]
    found = detect_fake_mode(values)
    return found or FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def fake_of(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """``tensor`` without its data, all sizes static."""
    if isinstance(tensor, FakeTensor):
        return tensor
    with torch.no_grad():
        return mode.from_tensor(tensor.detach(), static_shapes=True)


def fake_call(
    target: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], mode: FakeTensorMode
) -> Any:
    """The value ``target`` would return, without computing it.

    Inference takes milliseconds an operator, and passes ask for the same one over and over: what
    was inferred in ``mode`` from values of the same shapes and dtypes is returned again.
    """

    def value_of(node: fx.Node) -> Any:
        return node.meta["val"]

    fake_args = fx.map_arg(args, value_of)
    fake_kwargs = fx.map_arg(dict(kwargs), value_of)
    known: dict[Any, Any] = mode.__dict__.setdefault("rankc_inferred", {})
    key = _inference_key(target, fake_args, fake_kwargs)
    if key is not None and key in known:
        return known[key]
    # C++ takes a composite operator apart with plain numbers for sizes, which fixes the batch;
    # Python's own decompositions, such as those of recurrent layers, don't.
    apart = enable_python_dispatcher() if _has_parts(target) else contextlib.nullcontext()
    with mode, torch.no_grad(), quiet(mode), apart:
        value = target(*fake_args, **fake_kwargs)
    if key is not None and not _of_unknown_size(value):
        known[key] = value
    return value


def _inference_key(target: object, args: Any, kwargs: Any) -> Hashable | None:
    """What inference looks at; None if that can't be said, as of values known at inference."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    looked_at: list[Hashable] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            if (
                not isinstance(leaf, FakeTensor)
                or leaf.constant is not None
                or _of_unknown_size(leaf)
            ):
                return None
            sizes = (*leaf.shape, *leaf.stride(), leaf.storage_offset())
            looked_at.append((leaf.dtype, leaf.device, leaf.ndim, *map(_size_key, sizes)))
        elif isinstance(leaf, torch.SymInt):
            looked_at.append(_size_key(leaf))
        elif isinstance(leaf, _PLAIN):
            looked_at.append((type(leaf), repr(leaf)))
        else:
            return None
    return (target, structure, tuple(looked_at))


#: What an operator takes beside tensors and sizes.
_PLAIN = (
    bool,
    int,
    float,
    str,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    type(None),
)


def _size_key(size: int | torch.SymInt) -> Hashable:
    return size if isinstance(size, int) else size.node.expr


def _of_unknown_size(value: Any) -> bool:
    """Whether a size in it is only known when the values are: each inference has its own."""
    leaves = pytree.tree_leaves(value)
    return any(
        isinstance(leaf, torch.Tensor | torch.SymInt) and free_unbacked_symbols(leaf)
        for leaf in leaves
    )


def fixed_size(size: int | torch.SymInt) -> int | None:
    """The number that a size is, also where a symbol was found to be no other; None if open."""
    if isinstance(size, int):
        return size
    known: int | None = size.node.maybe_as_int()
    return known


@contextlib.contextmanager
def quiet(mode: FakeTensorMode) -> Iterator[None]:
    """Data-dependent sizes met here are not recorded for a later export to bind."""
    shape_env = mode.shape_env
    if shape_env is None:
        yield
        return
    with shape_env.ignore_fresh_unbacked_symbols():
        yield


#: What both forms of ``weight_norm`` compute their weight with: ``(v, g, dim)``.
weight_norm: Callable[..., torch.Tensor] = torch._weight_norm

_TALKATIVE = (
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "onnx_ir",
)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps torch's exporters from talking to the user about their own affairs."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        said = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_EXPORTING = threading.Lock()


def exported_as_onnx(
    exported: torch.export.ExportedProgram, opset: int, forms: Mapping[Any, Callable[..., Any]]
) -> Any:
    """What ``torch.onnx.export`` writes of a program, its own optimizer left out: it isn't exact.

    Half of its time goes where nothing is to be done. Its table of operators, read anew at every
    call, is read once here, and a program of whose operators each has a form isn't traced again to
    take them apart. ``exported`` may be changed.

    Args:
        exported: The program.
        opset: ONNX's version of the operators.
        forms: What operators are written as that aren't written as torch would.

    Returns:
        The model, an ``onnx_ir.Model``.
    """
    from torch.onnx._internal.exporter import _fx_passes, _registration

    with _EXPORTING:
        table = functools.partial(_copied, _onnx_table(opset))
        apart = functools.partial(_taken_apart, _fx_passes.decompose_with_registry)
        with (
            mock.patch.object(_registration.ONNXRegistry, "from_torchlib", staticmethod(table)),
            mock.patch.object(_fx_passes, "decompose_with_registry", apart),
        ):
            made = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=dict(forms),
                verbose=False,
                optimize=False,
            )
    assert made is not None
    return made.model


@functools.cache
def _onnx_table(opset: int) -> Any:
    """Torch's table of operators in ONNX."""
    from torch.onnx._internal.exporter import _registration

    return _registration.ONNXRegistry.from_torchlib(opset_version=opset)


def _copied(table: Any, opset_version: int) -> Any:
    """A table that forms can be added to."""
    copied = copy.copy(table)
    copied.functions = {target: list(forms) for target, forms in table.functions.items()}
    return copied


def _taken_apart(
    decompose: Callable[..., Any], exported: torch.export.ExportedProgram, registry: Any
) -> Any:
    """The program in operators that have a form; itself where it is already."""
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    nested = any(node.op == "get_attr" for node in exported.graph.nodes)
    if nested or not all(registry.is_registered(node.target) for node in calls):
        return decompose(exported, registry)
    return exported


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Lets torch forget, afterwards, what it keeps of the graphs that were made inside.

    It keeps the source text of each version of each graph, for tracebacks, for each operator the
    symbols of the shapes that it was tried with, and what was asked of those symbols.
    """
    sources = graph_module._loader.eval_cache
    known = set(sources)
    try:
        yield
    finally:
        for name in set(sources) - known:
            sources.pop(name, None)
            linecache.cache.pop(name, None)
        FakeTensorMode.cache_clear()
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()


@contextlib.contextmanager
def plain_transformers() -> Iterator[None]:
    """While exporting, transformer layers compute by their parts, whatever mask they are given.

    Their fused kernel has no decomposition, and whether a mask is causal is asked of its values;
    a mask that is given is applied either way.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    as_given = mock.patch.object(
        torch.nn.modules.transformer,
        "_detect_is_causal_mask",
        lambda mask, is_causal=None, size=None: bool(is_causal),
    )
    try:
        with as_given:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def stacks_of(keep: Callable[[StackSummary], list[FrameSummary]]) -> Iterator[None]:
    """While exporting, what a node's stack trace holds; torch keeps only frames called forward."""

    def kept(tracer: Any, frames: StackSummary) -> StackSummary:
        return StackSummary.from_list(keep(frames))

    if not hasattr(TracerBase, "_filter_traceback_frames"):  # older releases keep all frames
        yield
        return
    with mock.patch.object(TracerBase, "_filter_traceback_frames", kept):
        yield


def unlift(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    """The exported program as a module whose parameters are attributes again."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def flat_graph_module(graph: fx.Graph, attributes: Mapping[str, Any]) -> fx.GraphModule:
    """A graph module over ``graph`` with just these parameters and buffers, and flat arguments."""
    graph.set_codegen(fx.graph.CodeGen())
    # Its code is generated when it is first run: most copies never are.
    with _use_lazy_graph_module(True):
        return _make_graph_module(dict(attributes), graph)


def shared_copy(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph over the *same* parameter tensors: tables aren't duplicated."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(module.graph, copies)
    graph.output(output)
    for old, new in copies.items():
        new.meta = copy.copy(old.meta)
        if "custom" in old.meta:
            new.meta["custom"] = dict(old.meta["custom"])  # facts are replaced, never written into
    attributes = {
        node.target: _attribute(module, str(node.target))
        for node in module.graph.nodes
        if node.op == "get_attr"
    }
    copied = flat_graph_module(graph, attributes)
    for old_output, new_output in zip(
        module.graph.find_nodes(op="output"), graph.find_nodes(op="output"), strict=True
    ):
        new_output.meta = copy.copy(old_output.meta)
    return copied


def _attribute(module: torch.nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


#: Composite operators that are kept whole because passes and backends know them.
_KEPT_WHOLE = (
    "aten::linear",
    "aten::layer_norm",
    "aten::embedding",
    "aten::embedding_bag",
    "aten::scaled_dot_product_attention",
    "aten::gelu",
    "aten::silu",
    "aten::hardswish",
    "aten::softmax",
    "aten::log_softmax",
    "aten::leaky_relu",
    "aten::prelu",
    "aten::selu",
    "aten::elu",
    "aten::matmul",
    "aten::relu6",
    "aten::mse_loss",
    "aten::softplus",
    "aten::stack",
    "aten::square",
    "aten::reshape",
    "aten::transpose",
    "aten::split",
    "aten::split_with_sizes",
    "aten::chunk",
    "aten::unbind",
    "aten::masked_fill",
    "aten::index_select",
    "aten::conv1d",
    "aten::conv2d",
    "aten::rms_norm",
    "aten::addcmul",
    "aten::hardsigmoid",
    "aten::expand_as",
    "aten::logsumexp",
    "aten::gru",
    "aten::lstm",
    "aten::one_hot",
    "aten::triu",
    "aten::tril",
    "aten::pad",
    "aten::group_norm",
    "aten::dropout",
)


def captured_operators() -> frozenset[str]:
    """ATen's names, without overloads, of what capture leaves: core ATen and what is whole."""
    # `dir(torch.ops.aten)` only has what was called before.
    registered = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    names = {name.split(".")[0] for space, name in registered if space == "aten"}
    packets = (getattr(torch.ops.aten, name, None) for name in sorted(names))
    found = [packet for packet in packets if isinstance(packet, torch._ops.OpOverloadPacket)]
    core = {
        packet.__name__
        for packet in found
        if any(torch.Tag.core in getattr(packet, name).tags for name in packet.overloads())
    }
    return frozenset(core | {name.removeprefix("aten::") for name in _KEPT_WHOLE})


def operator_name(target: Any) -> str | None:
    """ATen's name of an operator, without its overload; None for what isn't ATen's."""
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return None
    return str(target._schema.name).removeprefix("aten::")


def is_composite(target: OpOverload) -> bool:
    """Whether `core_decompositions` would take an operator apart that isn't in its table either."""
    name = target.name().split(".")[0]
    return name not in _KEPT_WHOLE and _has_parts(target)


def _has_parts(target: Any) -> bool:
    """Whether torch computes an operator by others; the dialect's count as whole."""
    if not isinstance(target, OpOverload) or target.name().startswith("rankc::"):
        return False
    return bool(target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def scaled_mm(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scale: torch.Tensor,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``(left · left_scale) @ (right · right_scale)`` of FP8 codes.

    Args:
        left: ``[M, K]`` float8, row-major.
        right: ``[K, N]`` float8, column-major.
        left_scale: ``[]``, or ``[M, 1]`` for a scale per row.
        right_scale: ``[]``, or ``[1, N]``.
        dtype: Of the result ``[M, N]``.
    """
    return torch._scaled_mm(left, right, left_scale, right_scale, out_dtype=dtype)


def int_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``[M, K] @ [K, N]`` of int8 codes, in int32."""
    return torch._int_mm(left, right)


def compiled(call: Callable[..., torch.Tensor], mode: str = "default") -> Callable[..., Any]:
    """The callable compiled for the shapes it is called with.

    Kernels of many linears share code; without raising its limit, torch would stop compiling after
    eight of them and run the rest eagerly.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4096)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4096)
    found: Callable[..., Any] = torch.compile(call, dynamic=False, mode=mode)
    return found


def aoti_compile(exported: torch.export.ExportedProgram, path: Path) -> None:
    """Compiles a program ahead of time into one ``.pt2`` file."""
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(exported, package_path=str(path))


def aoti_load(path: Path) -> Callable[..., Any]:
    """What `aoti_compile` wrote, as a function of flat tensors."""
    from torch._inductor import aoti_load_package

    found: Callable[..., Any] = aoti_load_package(str(path))
    return found


def core_program(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program over core ATen alone: kept operators and the dialect taken apart too."""
    lowered: torch.export.ExportedProgram = exported.run_decompositions(
        torch.export.default_decompositions()
    )
    return lowered


def core_decompositions() -> Any:
    """The one decomposition table: core ATen, less the operators that are kept whole."""
    table = torch.export.default_decompositions()
    for operator in list(table):
        name = operator.name().split(".")[0] if isinstance(operator, OpOverload) else ""
        if name in _KEPT_WHOLE or name.startswith("rankc::"):
            table.pop(operator)
    return table
