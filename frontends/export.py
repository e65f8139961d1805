"""Capture by torch.export: from an ``nn.Module`` to a `Program`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..optimizer.data import call_of
from ..optimizer.errors import CaptureError, DataError, SignatureError
from ..optimizer.ir import Facts, Form, Program, Signature, set_facts
from ..optimizer.ir.infer import infer_signature
from ..optimizer.ir.program import flatten_exported
from ..optimizer.ir.structure import Structure
from ..optimizer.ir.torchapi import core_decompositions
from .doctor import diagnose, is_library
from .trace import trace

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
    leaves = _as_rows(structure.flatten(given))
    structure, leaves = _short_names(structure, leaves)
    _check_parameters(model)
    was_training = model.training
    model.eval()
    try:
        program = _capture(model, arguments, structure, leaves)
    finally:
        model.train(was_training)
    return _with_contract(program, signature, outputs)


def _capture(
    model: nn.Module, arguments: tuple[str, ...], structure: Structure, leaves: dict[str, Tensor]
) -> Program:
    wrapper = _Flat(model, structure)
    example = tuple(leaves.values())
    expected = _run(wrapper, example)
    batch = torch.export.Dim("batch", min=0)
    dynamic = tuple({0: batch} if leaf.dim() else {} for leaf in example)
    try:
        with torch.no_grad():
            exported = torch.export.export(
                wrapper, example, dynamic_shapes=(dynamic,), strict=False
            ).run_decompositions(core_decompositions())
        module = flatten_exported(exported, tuple(leaves), prefix="model.")
    except Exception as error:
        module = trace(wrapper, leaves, diagnose(error, model))
    assert wrapper.outputs is not None
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
        self.outputs = Structure.of(result, "score", _is_leaf)
        return tuple(self.outputs.flatten(result).values())


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def forward_arguments(model: nn.Module) -> tuple[str, ...]:
    """The names of what ``forward`` takes.

    Raises:
        CaptureError: It takes unnamed arguments.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    star = [p.name for p in parameters if p.kind not in named]
    if star:
        raise CaptureError(
            f"forward of {type(model).__name__} takes *{star[0]}; its inputs have no names. "
            "Wrap the model in a module whose forward names its arguments."
        )
    return tuple(p.name for p in parameters)


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


def _as_rows(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """Example tensors with a batch that can't be mistaken for another size."""
    leaves = {name: torch.as_tensor(value) for name, value in found.items()}
    if not leaves:
        raise SignatureError("the example holds no tensors.")
    sizes = {len(leaf) for leaf in leaves.values() if leaf.dim()}
    if 0 in sizes:
        raise SignatureError("the example has no rows.")
    if len(sizes) != 1:
        return leaves
    (rows,) = sizes
    picked = torch.arange(_EXAMPLE_ROWS) % rows
    return {n: leaf[picked].contiguous() if leaf.dim() else leaf for n, leaf in leaves.items()}


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
    valid = all(s.isidentifier() for s in short.values())
    if not valid or len(set(short.values())) != len(names):
        return structure, leaves
    return structure.rename(short), {short[name]: leaf for name, leaf in leaves.items()}


def _check_parameters(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise DataError(
                    f"weight {name!r} has {bad:,} NaN or Inf values; the model is broken or was "
                    "not trained to the end. Load a good checkpoint."
                )


def _run(wrapper: _Flat, example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The model's own outputs: also creates lazy parameters, and shows a model that doesn't run."""
    try:
        with torch.no_grad():
            results = wrapper(*example)
    except SignatureError as error:
        raise CaptureError(
            f"{type(wrapper.model).__name__} returns something that holds more than tensors: "
            f"{error}"
        ) from error
    except Exception as error:
        raise CaptureError(
            f"{type(wrapper.model).__name__} doesn't run on the example: "
            f"{type(error).__name__}: {error}. Check inputs= against what its forward takes."
        ) from error
    if not results:
        raise CaptureError(
            f"{type(wrapper.model).__name__} returns no tensor. Return the scores from forward."
        )
    for name, result in zip(wrapper.outputs.names if wrapper.outputs else (), results, strict=True):
        if result.dim() == 0:
            raise CaptureError(
                f"output {name!r} is a single number, such as a loss. Return a score per row."
            )
        if result.is_floating_point() and not bool(torch.isfinite(result).all()):
            row = int((~torch.isfinite(result.reshape(len(result), -1))).any(1).nonzero()[0])
            raise DataError(
                f"output {name!r} is NaN or Inf in row {row} of the example. "
                "Check the weights and the example for values out of range."
            )
    return tuple(results)


def _record_origins(module: torch.fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        stack = node.meta.get("nn_module_stack") or {}
        paths = [str(entry[0]) for entry in stack.values() if isinstance(entry, tuple)]
        path = next((p for p in reversed(paths) if not p.startswith("_empty")), "")
        path = path.replace("L['self'].", "").removeprefix("model").removeprefix(".")
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
    results = tuple(program.run(leaves).values())
    for name, got, want in zip(program.signature.outputs, results, expected, strict=True):
        _compare(name, got, want, "the example")
    for size in (1, 2):
        few = {name: leaf[:size] if leaf.dim() else leaf for name, leaf in leaves.items()}
        try:
            got_few = tuple(program.run(few).values())
        except Exception as error:
            raise CaptureError(
                f"the captured program doesn't run at batch {size}: {error}. "
                "Something in forward depends on the example's batch size."
            ) from error
        for name, got, want in zip(program.signature.outputs, got_few, expected, strict=True):
            if got.dim() and len(want) == len(next(iter(leaves.values()))):
                _compare(name, got, want[:size], f"batch {size}")


def _compare(name: str, got: Tensor, want: Tensor, where: str) -> None:
    scale = max(float(want.abs().max()), 1e-6) if want.numel() else 1.0
    if got.shape != want.shape or float((got.double() - want.double()).abs().max()) > 1e-4 * scale:
        raise CaptureError(
            f"the captured program scores differently from the model at {where}: output {name!r} "
            f"is {got.flatten()[:3].tolist()}, the model gives {want.flatten()[:3].tolist()}. "
            "Something in forward depends on the other rows, on the batch size, on randomness, or "
            "on state; make it depend on its inputs alone."
        )


def _with_contract(
    program: Program, signature: Signature | None, outputs: tuple[str, ...] | None
) -> Program:
    if signature is not None:
        if signature.names != program.signature.names:
            raise SignatureError(
                f"the signature's features are {list(signature.names)}, the model's are "
                f"{list(program.signature.names)}."
            )
        program.signature = replace(signature, outputs=program.signature.outputs)
    if outputs is None:
        return program
    have = program.signature.outputs
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
