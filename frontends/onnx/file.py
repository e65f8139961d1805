"""Capture of an ONNX file: from its graph to a `Program` that scores the same."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as onnx_passes
from torch import Tensor, fx

from ...optimizer.data.synthetic import synthesize
from ...optimizer.errors import CaptureError, DataError
from ...optimizer.ir import Facts, Form, Program, Signature, set_facts
from ...optimizer.ir.infer import infer_signature
from ...optimizer.ir.program import flatten_exported
from ...optimizer.ir.structure import Structure
from ...optimizer.ir.torchapi import core_decompositions, silenced
from ..check_file import BATCHES, check_rows, compare
from ..contract import with_contract
from ..origins import drop_effects
from .call import DTYPES
from .graph import ORIGIN, STORE, OnnxGraph, as_arrays

#: Example sizes of dynamic dimensions: unlike any width.
_EXAMPLE = (23, 29, 31, 37, 41, 43)


def load(
    path: Path,
    *,
    signature: Signature | None = None,
    outputs: tuple[str, ...] | None = None,
    checked: bool = True,
) -> Program:
    """Captures an ONNX file with a dynamic batch, and checks it against ONNX Runtime.

    Features are called like the file's inputs, tasks like its outputs; the program is called with
    them by position or by name.

    Args:
        path: The file.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.
        checked: Whether it is compared with ONNX Runtime: a file of low formats rounds a value
            that lies between two codes here one way and there the other.

    Raises:
        CaptureError: An operator without a form and which nodes it is used at, a batch size fixed
            in the file, or scores that aren't ONNX Runtime's.
        DataError: Weights that are NaN or Inf.
    """
    model = _read(path)
    features = _names([value.name or "" for value in model.graph.inputs], "input")
    scores = _names([value.name or "" for value in model.graph.outputs], "score", features)
    inputs = {name: v.name or "" for name, v in zip(features, model.graph.inputs, strict=True)}
    examples, dims = _examples(path, model.graph.inputs)
    graph = OnnxGraph(model)
    _check_weights(path, graph)
    module = _exported(path, graph, examples, dims, features)
    drop_effects(module)
    _record_origins(module)
    program = Program(
        module,
        infer_signature(module.graph, scores),
        Structure.of({name: name for name in features}, "input", lambda v: v in features),
        _nesting(scores),
        features,
        Form.CAPTURED,
    )
    if checked:
        _check_parity(path, program, inputs)
    return with_contract(program, signature, outputs)


def _read(path: Path) -> ir.Model:
    """The model; its tensors are read from the disk when they are asked for."""
    try:
        model = ir.load(path)
        onnx_passes.InlinePass()(model)
        onnx_passes.LiftSubgraphInitializersToMainGraphPass()(model)
    except Exception as error:
        raise CaptureError(f"{path} is no ONNX file that can be read: {error}") from error
    # Old files list their tensors among the inputs as well.
    own = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    if len(own) != len(model.graph.inputs):
        model.graph.inputs[:] = own
    if not own:
        raise CaptureError(f"{path} takes no inputs.")
    return model


def _names(given: list[str], root: str, taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of inputs or outputs made to fit Python, each once, and none that is taken."""
    made: list[str] = []
    for name in given:
        fitted = re.sub(r"\W+", "_", name).strip("_") or root
        if not fitted.isidentifier() or keyword.iskeyword(fitted) or fitted == "self":
            fitted = f"{root}_{fitted}"
        while fitted in taken or fitted in made:
            fitted += "_out" if root == "score" else "_2"
        made.append(fitted)
    return tuple(made)


def _nesting(outputs: tuple[str, ...]) -> Structure:
    """One output is returned as it is, several by name."""
    value: Any = outputs[0] if len(outputs) == 1 else {name: name for name in outputs}
    found = Structure.of(value, "score", lambda v: v in outputs)
    return found.rename(dict(zip(found.names, outputs, strict=True)))


def _examples(path: Path, inputs: Any) -> tuple[list[Tensor], list[dict[int, str]]]:
    """An example of each input, and the names of its dynamic dimensions."""
    examples, dims = [], []
    sizes: dict[str, int] = {}
    for value in inputs:
        dtype = DTYPES.get(int(value.dtype)) if value.dtype is not None else None
        if dtype is None:
            raise CaptureError(
                f"input {value.name!r} of {path} holds {value.dtype}; inputs are numbers. "
                "Turn text into ids before the model."
            )
        if value.shape is None or len(value.shape) == 0:
            raise CaptureError(
                f"input {value.name!r} of {path} has {'no known' if value.shape is None else 'no'} "
                "dimensions; the first dimension of every input is the row."
            )
        if isinstance(value.shape[0], int):
            raise CaptureError(
                f"{path} fixes the batch: input {value.name!r} is {list(value.shape)}. Export it "
                "again with a dynamic first dimension: "
                'torch.onnx.export(…, dynamo=True, dynamic_shapes={…: {0: "batch"}}), or '
                'dynamic_axes={"input": {0: "batch"}} in older exporters.'
            )
        named = {
            index: str(size.value or ("batch" if index == 0 else f"{value.name}_{index}"))
            for index, size in enumerate(value.shape)
            if not isinstance(size, int)
        }
        for name in named.values():
            sizes.setdefault(name, _EXAMPLE[len(sizes) % len(_EXAMPLE)])
        shape = [sizes[named[i]] if i in named else int(s) for i, s in enumerate(value.shape)]
        examples.append(torch.zeros(shape, dtype=dtype))
        dims.append(named)
    return examples, dims


def _check_weights(path: Path, graph: OnnxGraph) -> None:
    for name, tensor in graph.named_buffers():
        if tensor.dtype.is_floating_point and tensor.element_size() > 1 and tensor.dim() > 0:
            total = tensor.sum(dtype=torch.float64)
            bad = 0 if bool(torch.isfinite(total)) else int((~torch.isfinite(tensor)).sum())
            if bad:
                raise DataError(
                    f"weight {name.removeprefix(f'{STORE}.')!r} of {path} has {bad:,} NaN or Inf "
                    "values; the model is broken or was not trained to the end."
                )


def _exported(
    path: Path,
    graph: OnnxGraph,
    examples: list[Tensor],
    dims: list[dict[int, str]],
    names: tuple[str, ...],
) -> fx.GraphModule:
    """The flat graph over core ATen, first dimensions dynamic."""
    made: dict[str, Any] = {}
    for named in dims:
        made.setdefault(named[0], torch.export.Dim(f"rows_{len(made)}", min=0))
    # Other dimensions may turn out to be fixed by what the graph does with them.
    dynamic = tuple(
        {i: made[named[0]] if i == 0 else torch.export.Dim.AUTO for i in named} for named in dims
    )
    try:
        with torch.no_grad(), silenced(), fx.traceback.preserve_node_meta():
            exported = torch.export.export(
                graph, tuple(examples), dynamic_shapes=(dynamic,), strict=False
            ).run_decompositions(core_decompositions())
        return flatten_exported(exported, names, prefix=f"{STORE}.")
    except CaptureError:
        raise
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        raise CaptureError(
            f"{path} can't be captured with a dynamic batch: {type(error).__name__}: {first}. "
            "A size of the example may be fixed in a Reshape or Expand; export the model again "
            "with x.shape[0] and -1 instead of numbers."
        ) from error


def _record_origins(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        origin = (node.meta.get("custom") or {}).get(ORIGIN, "")
        node.meta["custom"] = {}  # torch leaves notes of its own there
        if node.op == "call_function":
            set_facts(node, Facts(origin=(origin,) if origin else ()))


def _check_parity(path: Path, program: Program, inputs: Mapping[str, str]) -> None:
    """The program must score like the file in ONNX Runtime, at every batch."""
    run = _session(path)
    for size in BATCHES:
        feeds, expected = _scored(path, program, inputs, run, size)
        try:
            got = program.run(feeds)
        except Exception as error:
            raise CaptureError(
                f"the program captured from {path} doesn't run at batch {size}: {error}"
            ) from error
        for (name, score), want in zip(got.items(), expected, strict=True):
            compare(f"{path}", name, score, torch.from_numpy(np.array(want)), size)
    check_rows(program, feeds)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise CaptureError("checking an ONNX file needs onnxruntime, which is missing") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CaptureError(f"ONNX Runtime can't open {path}: {error}") from error


def _scored(
    path: Path, program: Program, inputs: Mapping[str, str], run: Any, size: int
) -> tuple[dict[str, Tensor], list[Any]]:
    """Made-up rows and ONNX Runtime's scores of them.

    Integers whose table isn't known, since they are hashed first or aren't ids at all, are drawn
    from the widest range that the file takes.
    """
    failure: Exception | None = None
    for highest in (1000, 2, 1):
        feeds = dict(synthesize(program.signature, size, seed=size).features)
        for feature in program.signature:
            if feature.is_integer and not feature.cardinalities and feature.dtype != "bool":
                like = feeds[feature.name]
                drawn = torch.randint(highest, like.shape, generator=torch.Generator())
                feeds[feature.name] = drawn.to(like.dtype) if not like.any() else like
        arrays = {inputs[name]: array for name, array in as_arrays(feeds).items()}
        try:
            return feeds, list(run.run(None, arrays))
        except Exception as error:
            failure = error
    raise CaptureError(f"ONNX Runtime can't run {path} at batch {size}: {failure}") from failure
