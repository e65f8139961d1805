"""A program that can be trained: its parameters as leaves, rounding passed straight through.

A captured program runs with gradients as it is. What can't be differentiated are codes: quantized
weights and tables are trained as real numbers in units of their steps and rounded on the way
forward, and the gradient takes the rounding for the identity (Bengio et al., 1308.3432), within the
range that codes have. What is written back is what the forward pass saw, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import RecoverError
from ..ir.facts import site_of
from ..ir.operators import of_node, traits_of
from ..ir.ops import (
    CODED_LINEAR,
    DEQUANTIZE,
    HALF_LINEAR,
    QUANTIZE,
    ROWWISE_EMBEDDING,
    ROWWISE_LINEAR,
    along,
    decoded_weight,
)
from ..ir.pattern import is_op, parameter_name
from ..ir.program import Program
from ..ir.rewrite import Rewriter
from ..ir.traits import Coded

_aten = torch.ops.aten
_LOOK_UP = _aten.embedding.default


class Trainable:
    """A program with leaves that gradients reach.

    Attributes:
        program: A copy whose vectors each have one reader: equal ones were stored once, which
            doesn't mean that they are to stay equal.
        leaves: By parameter name; codes as real numbers.
    """

    def __init__(self, program: Program, *, tables: bool = False) -> None:
        self.program = program.clone()
        _part_vectors(self.program)
        self.leaves: dict[str, Tensor] = {}
        for node in self.program.graph.nodes:
            for index in _learned(node, tables=tables):
                name = parameter_name(node.args[index]) if index < len(node.args) else None
                if name is not None and name not in self.leaves:
                    value = self.program.tensor(name)
                    if value.is_floating_point() or _holds_codes(node):
                        self.leaves[name] = value.detach().float().clone().requires_grad_()
        #: By a node's name: how much of the gradient goes on into its first argument.
        self.dampened: dict[str, float] = {}

    def __call__(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, with gradients to the leaves."""
        with torch.enable_grad():
            results = _Training(self).run(*self.program.ordered(features))
        return dict(zip(self.program.signature.outputs, results, strict=True))

    def state(self) -> dict[str, Tensor]:
        """A copy of every leaf's value."""
        return {name: leaf.detach().clone() for name, leaf in self.leaves.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts values of `state` back."""
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(state[name])

    def trained(self) -> Program:
        """A copy of the program with the leaves' values, codes rounded."""
        made = self.program.clone()
        rw = Rewriter(made, "distill")
        largest = _largest_codes(made)
        for name, leaf in self.leaves.items():
            value = leaf.detach()
            if name in largest:
                value = value.clamp(-largest[name], largest[name])
            rw.set_value(name, _as_stored(value, made.tensor(name).dtype))
        return made

    def check_learns(self, features: Mapping[str, Tensor]) -> None:
        """Raises unless a gradient of the scores reaches a leaf.

        Raises:
            RecoverError: Nothing can be learned; which operator passes no gradient.
        """
        total = torch.stack([value.float().sum() for value in self(features).values()]).sum()
        if self.leaves and total.requires_grad:
            leaves = list(self.leaves.values())
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
            if any(grad is not None and bool((grad != 0).any()) for grad in grads):
                return
        if not self.leaves:
            why = "it has no weights that a gradient could reach"
        else:
            culprits = [
                f"{site_of(node)!r} ({node.target})"
                for node in self.program.graph.nodes
                if _is_flat(node) or (_is_float(node) and _blocks(node))
            ]
            why = "no gradient reaches its weights"
            why += f" through {', '.join(culprits[:3])}" if culprits else ""
        raise RecoverError(
            f"the model can't be finetuned: {why}. It is in a form for evaluation only; hand in "
            "the model as it was trained, or leave recover= out."
        )


def _learned(node: fx.Node, *, tables: bool = False) -> tuple[int, ...]:
    """The places of arguments that may be learned parameters."""
    traits = of_node(node)
    if traits is None:
        return ()
    return (*traits.learned, *traits.tables) if tables else traits.learned


def _holds_codes(node: fx.Node) -> bool:
    return traits_of(node.target).coded is Coded.IS


def _is_flat(node: fx.Node) -> bool:
    traits = of_node(node)
    return traits is not None and traits.flat


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _blocks(node: fx.Node) -> bool:
    """Whether a float comes from integers or bools that were computed from floats."""
    operands = node.all_input_nodes
    return bool(operands) and all(
        not _is_float(n) and any(_is_float(m) for m in n.all_input_nodes) for n in operands
    )


def _largest_codes(program: Program) -> dict[str, float]:
    """How far codes of weights alone go, by name: those of 4 bits are stored as bytes as well."""
    found = {}
    for node in program.graph.find_nodes(op="call_function", target=CODED_LINEAR.op):
        codes, scale = (str(parameter_name(node.args[index])) for index in (1, 2))
        found[codes] = _largest_code(program.tensor(scale))
    return found


def _largest_code(scale: Tensor) -> float:
    return 127.0 if scale.dim() == 1 else 7.0


def _part_vectors(program: Program) -> None:
    rw = Rewriter(program, "distill")
    taken: set[str] = set()
    for node in list(program.graph.nodes):
        for index in _learned(node):
            operand = node.args[index] if index < len(node.args) else None
            name = parameter_name(operand)
            if name is None or program.tensor(name).dim() != 1:
                continue
            if name in taken:
                assert isinstance(operand, fx.Node)
                node.update_arg(index, rw.parameter(name, program.tensor(name).clone()))
            taken.add(name)


def _as_stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return value.to(dtype).clone()
    bounds = torch.iinfo(dtype)
    return value.round().clamp(bounds.min, bounds.max).to(dtype)


class _Straight(torch.autograd.Function):
    """The second argument's value with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:
        """Gives what was rounded."""
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Passes the gradient straight through."""
        return grads[0], None


def _codes(value: Tensor, zero: Tensor | int, dtype: torch.dtype) -> Tensor:
    """Codes as floats, as `QUANTIZE` rounds; the gradient is zero out of the codes' range."""
    if dtype.is_floating_point:
        limit = torch.finfo(dtype).max
        within = value.clamp(-limit, limit)
        return _Straight.apply(within, within.to(dtype).to(value.dtype))  # type: ignore[no-any-return, no-untyped-call]
    bounds = torch.iinfo(dtype)
    rounded = _Straight.apply(value, value.round())  # type: ignore[no-untyped-call]
    return (rounded + zero).clamp(bounds.min, bounds.max)  # type: ignore[no-any-return]


class _Training(fx.Interpreter):
    """Runs a program with gradients; codes are floats between Q and DQ."""

    def __init__(self, trainable: Trainable) -> None:
        super().__init__(trainable.program.module)
        self._leaves = trainable.leaves
        self._program = trainable.program
        self._dampened = trainable.dampened

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A leaf where there is one."""
        found = self._leaves.get(target)
        return super().get_attr(target, args, kwargs) if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node; codes, and where the gradient is dampened, in ways of their own."""
        if is_op(n, QUANTIZE.op):
            x, scale, zero, axis, dtype = self.fetch_args_kwargs_from_env(n)[0]
            rank = x.dim()
            return _codes(x / along(scale, axis, rank), along(zero, axis, rank).to(x.dtype), dtype)
        if is_op(n, DEQUANTIZE.op):
            codes, scale, zero, axis = self.fetch_args_kwargs_from_env(n)[0]
            if parameter_name(n.args[0]) is not None:
                codes = _codes(codes.to(scale.dtype), 0, self._dtype(n))
            shift = along(zero, axis, codes.dim()).to(scale.dtype)
            return (codes - shift) * along(scale, axis, codes.dim())
        if is_op(n, ROWWISE_EMBEDDING.op):
            table, scale, bias, ids = self.fetch_args_kwargs_from_env(n)[0]
            codes = _codes(_LOOK_UP(table, ids).to(scale.dtype), 0, self._dtype(n))
            return codes * _LOOK_UP(scale, ids) + _LOOK_UP(bias, ids)
        if is_op(n, ROWWISE_LINEAR.op):
            x, weight, scale, bias, columns, kept, kept_weight = self.fetch_args_kwargs_from_env(n)[
                0
            ]
            codes = _codes(weight, 0, self._program.tensor(str(parameter_name(n.args[1]))).dtype)
            real = codes * scale[:, None]
            if columns is not None:
                real = real * columns
            smooth = torch.nn.functional.linear(x, real, bias)
            if kept is not None:
                smooth = smooth + torch.nn.functional.linear(x[..., kept], kept_weight)
            with torch.no_grad():
                exact = n.target(x, codes, scale, bias, columns, kept, kept_weight)  # type: ignore[operator]
            return _Straight.apply(smooth, exact)  # type: ignore[no-untyped-call]
        if is_op(n, HALF_LINEAR.op):
            x, weight, bias = self.fetch_args_kwargs_from_env(n)[0]
            stored = self._program.tensor(str(parameter_name(n.args[1]))).dtype
            with torch.no_grad():
                exact = n.target(x, weight.to(stored), bias)  # type: ignore[operator]
            return _Straight.apply(torch.nn.functional.linear(x, weight, bias), exact)  # type: ignore[no-untyped-call]
        if is_op(n, CODED_LINEAR.op):
            x, weight, scale, bias = self.fetch_args_kwargs_from_env(n)[0]
            limit = _largest_code(scale)
            codes = _Straight.apply(weight, weight.round()).clamp(-limit, limit)  # type: ignore[no-untyped-call]
            real = decoded_weight(codes, scale.float())
            with torch.no_grad():
                exact = n.target(x, codes, scale, bias)  # type: ignore[operator]
            return _Straight.apply(torch.nn.functional.linear(x, real, bias), exact)  # type: ignore[no-untyped-call]
        if n.name in self._dampened:
            return self._dampen(n)
        return super().run_node(n)

    def _dtype(self, n: fx.Node) -> torch.dtype:
        return self._program.tensor(str(parameter_name(n.args[0]))).dtype

    def _dampen(self, n: fx.Node) -> Any:
        source = n.args[0]
        assert isinstance(source, fx.Node)
        value, share = self.env[source], self._dampened[n.name]
        self.env[source] = value * share + (value * (1.0 - share)).detach()
        try:
            return super().run_node(n)
        finally:
            self.env[source] = value
