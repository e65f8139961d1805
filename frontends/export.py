"""Capture by torch.export: from an ``nn.Module`` to a `Program`."""

from __future__ import annotations

import contextlib
import inspect
import keyword
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from ..optimizer.data import call_of
from ..optimizer.errors import CaptureError, DataError, SignatureError
from ..optimizer.ir import Facts, Form, Program, Signature, set_facts
from ..optimizer.ir.infer import infer_signature
from ..optimizer.ir.program import flatten_exported
from ..optimizer.ir.structure import Structure
from ..optimizer.ir.torchapi import core_decompositions, silenced
from .doctor import FIXED_BATCH, diagnose, is_library, user_line
from .trace import trace

_COPY = torch.ops.aten.copy_.default
#: Example rows during capture; an odd number, so that it isn't mistaken for a width.
_EXAMPLE_ROWS = 23


def capture(
    model: nn.Module,
    inputs: Any = None,
    *,
    signature: Signature | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Program:
    """Captures a model into a program with a dynamic batch.

    Args:
        model: A trained model. It is captured in eval mode; its mode is put back.
        inputs: One example: a tuple of arguments, a dict, or a tensor. Not needed when the model
            has ``example_inputs()``.
        signature: Overrides the inferred one; its names must be the inferred names.
        outputs: Names for the outputs, in order; or, if they are names of outputs, those to keep.

    Raises:
        CaptureError: What can't be captured, where in the user's code, and what to change.
        SignatureError: The example doesn't fit the model.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"a model is a torch.nn.Module, got {type(model).__name__}. "
            "Wrap a function in a module whose forward calls it."
        )
    arguments = forward_arguments(model)
    given = call_of(arguments, _example(model, inputs))
    structure = Structure.of(given, "input", _is_leaf)
    structure, leaves = _short_names(structure, _tensors(structure.flatten(given)))
    _check_parameters(model)
    with _as_found(model):
        program = _capture(model, arguments, structure, leaves)
    return _with_contract(program, signature, outputs)


@contextlib.contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode; afterwards each module's mode and each buffer is as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(b, b._version, b.clone()) for b in model.buffers() if not is_lazy(b)]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, version, before in buffers:
            if buffer._version != version:
                buffer.copy_(before)


def _capture(
    model: nn.Module, arguments: tuple[str, ...], structure: Structure, given: dict[str, Tensor]
) -> Program:
    wrapper = _Flat(model, structure)
    leaves = _as_rows(given)
    example = tuple(leaves.values())
    expected = _run(wrapper, example, tuple(given.values()))
    wrapper.outputs = _apart(wrapper.outputs, structure.names)
    batch = torch.export.Dim("batch", min=0)
    dynamic = tuple({0: batch} for _ in example)
    try:
        with torch.no_grad(), silenced():
            exported = torch.export.export(
                wrapper, example, dynamic_shapes=(dynamic,), strict=False
            ).run_decompositions(core_decompositions())
        module = flatten_exported(exported, tuple(leaves), prefix="model.")
    except Exception as error:
        module = trace(wrapper, leaves, diagnose(error, model))
    assert wrapper.outputs is not None
    _drop_state_writes(module)
    _record_origins(module)
    inferred = infer_signature(module.graph, wrapper.outputs.names)
    program = Program(module, inferred, structure, wrapper.outputs, arguments, Form.CAPTURED)
    _check_parity(program, leaves, expected)
    return program


class _Flat(nn.Module):
    """The user's model with flat tensors in and out; remembers the outputs' nesting."""

    def __init__(self, model: nn.Module, inputs: Structure) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.outputs: Structure | None = None

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        call = self.inputs.unflatten(dict(zip(self.inputs.names, leaves, strict=True)))
        result = self.model(**call)
        found = Structure.of(result, "score", _is_leaf)
        self.outputs = self.outputs or found
        return tuple(found.flatten(result).values())


def _apart(outputs: Structure | None, features: tuple[str, ...]) -> Structure:
    """The outputs' nesting, with names that no feature has: ONNX has one space of names."""
    assert outputs is not None
    taken = {*outputs.names, *features}
    renamed: dict[str, str] = {}
    for name in outputs.names:
        other = name
        while name in features and other in taken:
            other += "_out"
        taken.add(other)
        renamed[name] = other
    return outputs.rename(renamed)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, fx.Proxy))


def forward_arguments(model: nn.Module) -> tuple[str, ...]:
    """The names of what ``forward`` takes.

    Raises:
        CaptureError: It takes unnamed arguments.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    unnamed = [p for p in parameters if p.kind not in named]
    if unnamed:
        raise CaptureError(
            f"forward of {type(model).__name__} takes {_spelled(unnamed[0])}; its inputs have no "
            "names. Wrap the model in a module whose forward names its arguments."
        )
    return tuple(p.name for p in parameters)


def _spelled(parameter: inspect.Parameter) -> str:
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        return f"{parameter.name} by position only"
    stars = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else "*"
    return f"{stars}{parameter.name}"


def _example(model: nn.Module, inputs: Any) -> Any:
    if inputs is not None:
        return inputs
    make = getattr(model, "example_inputs", None)
    if not callable(make):
        raise CaptureError(
            f"{type(model).__name__} needs an example to be captured: give inputs=(…) as the model "
            "takes them, give data=, or add an example_inputs() method to the model."
        )
    return make()


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The example's tensors, which must have one row each per scored row."""
    leaves = {name: torch.as_tensor(value) for name, value in found.items()}
    if not leaves:
        raise SignatureError("the example holds no tensors.")
    for name, leaf in leaves.items():
        if leaf.dim() == 0:
            raise SignatureError(
                f"input {name!r} of the example is a single number. Give it as a Python number, "
                "which becomes a constant of the program, or as a tensor of one value per row."
            )
    sizes = {name: len(leaf) for name, leaf in leaves.items()}
    if 0 in sizes.values():
        raise SignatureError("the example has no rows.")
    if len(set(sizes.values())) != 1:
        raise SignatureError(
            f"the example's inputs have different numbers of rows: {sizes}. The first dimension "
            "of every input is the row; what all rows share belongs in a buffer of the model."
        )
    return leaves


def _as_rows(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The example's rows, repeated to a batch that can't be mistaken for another size."""
    picked = torch.arange(_EXAMPLE_ROWS) % len(next(iter(leaves.values())))
    return {name: leaf[picked].contiguous() for name, leaf in leaves.items()}


def _short_names(
    structure: Structure, leaves: dict[str, Tensor]
) -> tuple[Structure, dict[str, Tensor]]:
    """Drops the one argument's name from in front of the names of what it holds."""
    names = list(leaves)
    prefixes = {name.split("_", 1)[0] for name in names}
    template = structure.to_json()
    if len(template["keys"]) != 1 or len(names) < 2 or len(prefixes) != 1:
        return structure, leaves
    prefix = template["keys"][0] + "_"
    short = {name: name.removeprefix(prefix) for name in names}
    valid = all(
        s.isidentifier() and not keyword.iskeyword(s) and s != "self" for s in short.values()
    )
    if not valid or len(set(short.values())) != len(names):
        return structure, leaves
    return structure.rename(short), {short[name]: leaf for name, leaf in leaves.items()}


def _check_parameters(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            continue
        if tensor.device.type != "cpu":
            raise CaptureError(
                f"weight {name!r} is on {tensor.device}; models are captured on the CPU. "
                "Load the weights and call model.cpu() first."
            )
        if tensor.is_inference():
            raise CaptureError(
                f"weight {name!r} was made under torch.inference_mode(), which torch.export can't "
                "capture. Build or load the model outside of it; torch.no_grad() is fine."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise DataError(
                    f"weight {name!r} has {bad:,} NaN or Inf values; the model is broken or was "
                    "not trained to the end. Load a good checkpoint."
                )


def _run(
    wrapper: _Flat, example: tuple[Tensor, ...], given: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The model's own outputs: also creates lazy parameters, and shows a model that doesn't run.

    Args:
        wrapper: The model.
        example: The example's rows, repeated.
        given: The example as the user gave it.
    """
    model = type(wrapper.model).__name__
    try:
        with torch.no_grad():
            results = wrapper(*example)
    except SignatureError as error:
        raise CaptureError(
            f"{model} returns something that holds more than tensors: {error}"
        ) from error
    except Exception as error:
        where = user_line(error)
        if _runs(wrapper, given):
            raise CaptureError(
                f"{model} can't be captured{where}: {FIXED_BATCH.construct}: it runs on the "
                f"example's {len(given[0])} rows, but not on {len(example[0])}. "
                f"What to change: {FIXED_BATCH.remedy}. ({error})"
            ) from error
        raise CaptureError(
            f"{model} doesn't run on the example{where}: {type(error).__name__}: {error}. "
            "Check inputs= against what its forward takes."
        ) from error
    if not results:
        raise CaptureError(f"{model} returns no tensor. Return the scores from forward.")
    for name, result in zip(wrapper.outputs.names if wrapper.outputs else (), results, strict=True):
        if result.dim() == 0:
            raise CaptureError(
                f"output {name!r} is a single number, such as a loss. Return a score per row."
            )
        if len(result) != len(example[0]):
            raise CaptureError(
                f"output {name!r} has {len(result)} rows for {len(example[0])} rows of input, such "
                "as a mean over the batch. Return a score per row."
            )
        if result.is_floating_point() and not bool(torch.isfinite(result).all()):
            row = int((~torch.isfinite(result.reshape(len(result), -1))).any(1).nonzero()[0])
            raise DataError(
                f"output {name!r} is NaN or Inf in row {row} of the example. "
                "Check the weights and the example for values out of range."
            )
    return tuple(results)


def _runs(wrapper: _Flat, example: tuple[Tensor, ...]) -> bool:
    try:
        with torch.no_grad():
            wrapper(*example)
    except Exception:
        return False
    return True


def _drop_state_writes(module: fx.GraphModule) -> None:
    """Removes writes into the model's buffers: a program keeps no state, and nobody reads them."""
    for node in reversed(module.graph.find_nodes(op="call_function", target=_COPY)):
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()


def _record_origins(module: torch.fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        stack = node.meta.get("nn_module_stack") or {}
        paths = [str(entry[0]) for entry in stack.values() if isinstance(entry, tuple)]
        path = next((p for p in reversed(paths) if not p.startswith("_empty")), "")
        # Traced modules are one level deeper, in a wrapper of their own.
        path = path.replace("L['self'].", "").removeprefix("wrapper.")
        path = path.removeprefix("model").removeprefix(".")
        set_facts(node, Facts(origin=(path,) if path else (), source=_source(node)))


def _source(node: torch.fx.Node) -> str:
    """``file:line`` of the innermost frame that is the user's."""
    found = ""
    for line in (node.meta.get("stack_trace") or "").splitlines():
        parts = line.strip().split('"')
        if line.strip().startswith("File ") and len(parts) >= 3 and not is_library(parts[1]):
            found = f"{parts[1]}:{parts[2].split('line ', 1)[-1].split(',', 1)[0]}"
    return found


def _check_parity(
    program: Program, leaves: Mapping[str, Tensor], expected: tuple[Tensor, ...]
) -> None:
    """The captured program must score like the model, whole and row by row."""
    for name, got, want in zip(
        program.signature.outputs, program.run(leaves).values(), expected, strict=True
    ):
        _compare(name, got, want, "the example", "the model")
    # An example of equal rows can't show that rows mix, so no two rows are scored alike here.
    varied = {name: _varied(leaf) for name, leaf in leaves.items()}
    whole = program.run(varied)
    for size in (1, 2):
        try:
            few = program.run({name: leaf[:size] for name, leaf in varied.items()})
        except Exception as error:
            raise CaptureError(
                f"the captured program doesn't run at batch {size}: {error}. "
                "Something in forward depends on the example's batch size."
            ) from error
        for name in program.signature.outputs:
            _compare(name, few[name], whole[name][:size], f"batch {size}", "a larger batch")


def _varied(leaf: Tensor) -> Tensor:
    """The rows of a dense input, each a little smaller than the one before; ids as they are."""
    if not leaf.is_floating_point():
        return leaf
    factors = 1 - torch.arange(len(leaf), dtype=leaf.dtype) / (4 * len(leaf))
    return leaf * factors.reshape(-1, *(1 for _ in leaf.shape[1:]))


def _compare(name: str, got: Tensor, want: Tensor, where: str, reference: str) -> None:
    if got.shape != want.shape or not _close(got, want):
        raise CaptureError(
            f"the captured program scores differently from the model at {where}: output {name!r} "
            f"is {got.flatten()[:3].tolist()}, {reference} gives {want.flatten()[:3].tolist()}. "
            "Something in forward depends on the other rows, on the batch size, on randomness, or "
            "on state; make it depend on its inputs alone."
        )


def _close(got: Tensor, want: Tensor) -> bool:
    """Within 1e-4 of the largest score; NaN is close to NaN alone."""
    wide, other = got.double(), want.double()
    known = wide[wide.isfinite()]
    scale = max(float(known.abs().max()), 1e-6) if known.numel() else 1e-6
    return torch.allclose(wide, other, rtol=0.0, atol=1e-4 * scale, equal_nan=True)


def _with_contract(
    program: Program, signature: Signature | None, outputs: tuple[str, ...] | None
) -> Program:
    if signature is not None:
        if signature.names != program.signature.names:
            raise SignatureError(
                f"the signature's features are {list(signature.names)}, the model's are "
                f"{list(program.signature.names)}."
            )
        unknown = [t.name for t in signature.tasks if t.output not in program.signature.outputs]
        if unknown:
            raise SignatureError(
                f"the signature's tasks {unknown} read outputs the model doesn't have; it has "
                f"{list(program.signature.outputs)}."
            )
        program.signature = replace(signature, outputs=program.signature.outputs)
    if outputs is None:
        return program
    have = program.signature.outputs
    if (
        not outputs
        or len(set(outputs)) != len(outputs)
        or set(outputs) & set(program.signature.names)
    ):
        raise SignatureError(
            f"outputs={list(outputs)} must be names, each once, and none that a feature has."
        )
    if set(outputs) <= set(have):
        return _keep_outputs(program, outputs)
    if len(outputs) == len(have):
        names = dict(zip(have, outputs, strict=True))
        program.outputs = program.outputs.rename(names)
        program.signature = replace(
            program.signature,
            outputs=tuple(outputs),
            tasks=tuple(
                replace(t, output=names[t.output], name=t.name.replace(t.output, names[t.output]))
                for t in program.signature.tasks
            ),
        )
        return program
    raise SignatureError(
        f"outputs={list(outputs)} neither names the model's {len(have)} outputs in order nor "
        f"picks from {list(have)}."
    )


def _keep_outputs(program: Program, kept: tuple[str, ...]) -> Program:
    from ..optimizer.ir import Rewriter, sweep

    dropped = [name for name in program.signature.outputs if name not in kept]
    if dropped:
        Rewriter(program, "outputs").drop_outputs(dropped)
        sweep(program)
        program.outputs = Structure.of(
            {name: name for name in program.signature.outputs}, "score", lambda v: v in kept
        )
    return program
