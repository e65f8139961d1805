"""Checks that a program keeps its invariants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..errors import VerifyError
from . import torchapi
from .facts import facts_of
from .forms import violation
from .printer import excerpt
from .program import Program
from .signature import BATCH

_CHECKED = "rankc_checked"
_PRIMES = (7919, 6841, 5413, 4801, 3571, 2801)


def verify(program: Program) -> None:
    """Raises unless the program is well-formed.

    Checked: the graph's own rules; that each parameter exists with the shape and dtype its node
    claims; that each node's shape and dtype are what its operator gives (only for nodes that
    changed since the last check); that facts parse; that the form allows every operator; that
    inputs and outputs match the signature.

    Raises:
        VerifyError: Which node breaks which rule, with the graph around it.
    """
    try:
        program.graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"the graph is malformed: {error}") from error
    _check_contract(program)
    mode = torchapi.fake_mode_of(program.graph)
    sizes = _Sizes()
    for node in program.graph.nodes:
        reason = violation(node, program.form)
        if reason is not None:
            raise VerifyError(f"not {program.form.value}: {reason}\n{excerpt(node)}")
        facts_of(node)
        if node.op == "get_attr":
            _check_attribute(program, node)
        elif node.op == "call_function":
            _check_value(node, mode, sizes)


def _check_contract(program: Program) -> None:
    names = tuple(str(node.target) for node in program.graph.find_nodes(op="placeholder"))
    if names != program.signature.names:
        raise VerifyError(f"inputs {names} don't match the features {program.signature.names}")
    _check_batch(program)
    (output,) = program.graph.find_nodes(op="output")
    values = output.args[0]
    if not isinstance(values, tuple) or len(values) != len(program.signature.outputs):
        raise VerifyError(
            f"the graph returns {values}, the signature says {program.signature.outputs}"
        )
    missing = {task.output for task in program.signature.tasks} - set(program.signature.outputs)
    if missing:
        raise VerifyError(f"tasks read outputs that don't exist: {sorted(missing)}")


def _check_batch(program: Program) -> None:
    """Raises where the batch has become a number, which every later export would take for it."""
    pairs = zip(program.graph.find_nodes(op="placeholder"), program.signature, strict=True)
    for node, feature in pairs:
        value = node.meta.get("val")
        if not feature.shape or feature.shape[0] != BATCH or not isinstance(value, Tensor):
            continue
        fixed = torchapi.fixed_size(value.shape[0])
        if fixed is not None:
            raise VerifyError(
                f"feature {feature.name!r} has {BATCH} rows, the graph fixes them to {fixed}: an "
                "operator's sizes were inferred from plain numbers"
            )


def _check_attribute(program: Program, node: fx.Node) -> None:
    try:
        value = program.tensor(str(node.target))
    except AttributeError as error:
        raise VerifyError(f"parameter {node.target} doesn't exist\n{excerpt(node)}") from error
    claimed = node.meta.get("val")
    if not isinstance(claimed, Tensor) or not _same(claimed, value):
        raise VerifyError(
            f"parameter {node.target} is {_describe(value)}, its node says {_describe(claimed)}"
        )


class _Sizes:
    """A number for each dynamic size, so that an operator can be tried on tensors without data.

    That takes a hundredth of the time of inferring sizes as symbols. The numbers are large primes,
    which no width is likely to be.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def agree(self, node: fx.Node) -> bool:
        """Whether the node's shape and dtype are what its operator gives at these sizes."""
        args: Any = fx.node.map_arg(node.args, lambda n: self._instance(n.meta["val"]))
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: self._instance(n.meta["val"]))
        try:
            with torch.no_grad():
                found = node.target(*args, **kwargs)  # type: ignore[operator]
            return same_value(found, self._instance(node.meta["val"]))
        except Exception:
            return False  # it needs data, or symbols that are equal: the careful way tells

    def _instance(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            sizes, strides = ([self._number(s) for s in of] for of in (value.shape, value.stride()))
            return torch.empty_strided(sizes, strides, dtype=value.dtype, device="meta")
        if isinstance(value, (tuple, list)):
            return type(value)(self._instance(item) for item in value)
        return self._number(value) if isinstance(value, torch.SymInt) else value

    def _number(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression not in self._numbers:
            for symbol in sorted(expression.free_symbols, key=str):
                if symbol not in self._numbers:
                    self._numbers[symbol] = _PRIMES[len(self._numbers) % len(_PRIMES)]
            known = {symbol: self._numbers[symbol] for symbol in expression.free_symbols}
            self._numbers[expression] = int(expression.subs(known))
        return self._numbers[expression]


def _check_value(node: fx.Node, mode: torchapi.FakeTensorMode, sizes: _Sizes) -> None:
    if "val" not in node.meta:
        raise VerifyError(f"{node.name} has no value; make nodes with Rewriter.emit")
    key = _key(node)
    if node.meta.get(_CHECKED) == key:
        return
    assert callable(node.target)
    if sizes.agree(node):
        node.meta[_CHECKED] = key
        return
    try:
        expected = torchapi.fake_call(node.target, node.args, node.kwargs, mode)
    except Exception as error:
        raise VerifyError(f"{node.name} can't be computed: {error}\n{excerpt(node)}") from error
    if not same_value(expected, node.meta["val"]):
        raise VerifyError(
            f"{node.name} says {_describe(node.meta['val'])}, its operator gives "
            f"{_describe(expected)}\n{excerpt(node)}"
        )
    node.meta[_CHECKED] = key


def _key(node: fx.Node) -> str:
    values = [(n.name, _describe(n.meta.get("val"))) for n in node.all_input_nodes]
    return f"{node.target}{node.args}{node.kwargs}{values}{_describe(node.meta['val'])}"


def same_value(left: Any, right: Any) -> bool:
    """Whether two fake values agree in shape and dtype; two different symbols are trusted."""
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(
            same_value(a, b) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return _same(left, right)
    return isinstance(left, Tensor) == isinstance(right, Tensor)


def _same(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.dim() != right.dim():
        return False
    return all(
        a == b if isinstance(a, int) and isinstance(b, int) else type(a) is type(b)
        for a, b in zip(left.shape, right.shape, strict=True)
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{[str(size) for size in value.shape]}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_describe(item) for item in value)})"
    if isinstance(value, (int, float, bool, torch.SymInt)):
        return str(value)
    return type(value).__name__
