"""lower-convolution: a convolution of one channel as matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.ir import Miss, Program, Rewriter, Rule, apply_rules
from ..optimizer.ir.pattern import argument, dtype_of, is_op, parameter_name, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv2d.default, _aten.convolution.default)
#: How the channel is dropped; the sizes say that nothing else is.
_FLATTENED = (_aten.squeeze.dims, _aten.reshape.default)


@dataclass(frozen=True)
class LowerConvolution(Pass):
    """Replaces a 2-d convolution of one channel over ``x [B, T, D]`` by two matrix products.

    With kernel rows k_i it is ``Σ S_i x C_i``: S_i shifts rows, C_i is the band matrix of k_i. One
    product gives all ``S_i x`` side by side, the other applies and sums the C_i. Where the result
    is mixed at once, ``W conv(x)`` is ``Σ (W S_i) x C_i``, which makes the mixed rows alone.

    The convolution block of DHEN (2203.11014).
    Exact because: both are the same sums, and sums with zeros.
    Pays because: convolution kernels compute sixteen channels at a time. One thread of ONNX
    Runtime, 25 rows of width 64, 3 x 3, at batch 1, 64, 512: 15, 662, 11196 us as a convolution and
    15, 425, 4536 as products; mixed to 5 rows 16, 705, 10074 and 11, 103, 833.
    Requires: CANONICAL, a CPU.
    Misses when: there are several channels, the sizes aren't fixed, or products take more than
    ``max_ratio`` multiplications for one of the sixteen-channel convolution.
    """

    name: ClassVar[str] = "lower-convolution"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    max_ratio: float = 3.0

    def check(self, program: Program, ctx: PassContext) -> None:
        """Raises on other devices."""
        if ctx.target.device.kind != "cpu":
            raise Skip("only CPU kernels for convolutions are known to fill channels up")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Applies the rules."""
        rw = ctx.rewriter(program)

        def missed(rule: Rule, node: fx.Node, miss: Miss) -> None:
            ctx.missed(miss.reason, *(miss.nodes or (node,)))

        lowered = apply_rules((_Mixed(self), _Alone(self)), rw, missed)
        if lowered:
            ctx.applied(f"computed {lowered} convolutions by matrix products")


@dataclass(frozen=True)
class _Convolution:
    """A convolution of one channel.

    Attributes:
        node: The convolution.
        kernel: ``[i, j]``.
        padding: Rows and columns of zeros on each side.
        dilation: Steps between the kernel's rows and columns.
        rows: T, of the input and of the result.
        columns: D, of the input and of the result.
    """

    node: fx.Node
    kernel: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    def shifts(self) -> Tensor:
        """``[T', i, T]``: the row of the input under each row of the kernel, zeros for padding."""
        place = torch.arange(self.rows[1])[:, None] - self.padding[0]
        place = place + self.dilation[0] * torch.arange(self.kernel[0])
        return _one_hot(place, self.rows[0])

    def bands(self, kernel: Tensor) -> Tensor:
        """``[i, D, D']``: what each row of the kernel does to columns."""
        place = torch.arange(self.columns[1])[:, None] - self.padding[1]
        place = place + self.dilation[1] * torch.arange(self.kernel[1])
        return torch.einsum("ij,cjd->idc", kernel, _one_hot(place, self.columns[0]))

    def multiplications(self, outputs: int) -> int:
        """Per example, for that many rows of the result, which the first product makes directly."""
        shifted = outputs * self.kernel[0]
        return shifted * self.columns[0] * (self.rows[0] + self.columns[1])

    @property
    def filled(self) -> int:
        """Multiplications per example of a kernel that computes sixteen channels."""
        return 16 * self.rows[1] * self.columns[1] * self.kernel[0] * self.kernel[1]


def _one_hot(place: Tensor, size: int) -> Tensor:
    return (place[..., None] == torch.arange(size)).double()


def _convolution(node: Any) -> _Convolution | Miss | None:
    if not is_op(node, *_CONVOLUTIONS) or parameter_name(node.args[1]) is None:
        return None
    weight, before, after = (shape_of(n) for n in (node.args[1], node.args[0], node))
    if len(weight) != 4:
        return None
    if tuple(weight[:2]) != (1, 1):
        return Miss("the convolution has several channels", (node,))
    groups = argument(node, 8 if is_op(node, _aten.convolution.default) else 6, "groups", 1)
    transposed = is_op(node, _aten.convolution.default) and node.args[6]
    stride = _pair(argument(node, 3, "stride", 1))
    sizes = (*before[2:], *after[2:])
    if transposed or groups != 1 or stride != (1, 1) or len(before) != 4:
        return Miss("the convolution is transposed or takes strides", (node,))
    if not all(isinstance(size, int) for size in sizes) or dtype_of(node) != torch.float32:
        return Miss("the convolution's sizes aren't fixed", (node,))
    rows, columns, rows_after, columns_after = (int(size) for size in sizes)
    return _Convolution(
        node,
        (int(weight[2]), int(weight[3])),
        _pair(argument(node, 4, "padding", 0)),
        _pair(argument(node, 5, "dilation", 1)),
        (rows, rows_after),
        (columns, columns_after),
    )


def _pair(value: Any) -> tuple[int, int]:
    both = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(both[0]), int(both[-1])


def _products(
    rw: Rewriter, found: _Convolution, shifts: Tensor, offset: Tensor | float, like: fx.Node
) -> fx.Node:
    """``Σ shifts_i x C_i + offset``.

    Args:
        rw: Emits.
        found: The convolution.
        shifts: ``[O, i, T]`` fp64: what is made of the rows for each row of the kernel.
        offset: Added to every row ``[O, 1]``, besides.
        like: What the result stands for, ``[B, O, D']``.
    """
    node, dtype = found.node, dtype_of(found.node)
    outputs, steps = shifts.shape[:2]
    name = str(node.args[1].target).replace(".", "_")  # type: ignore[union-attr]
    bands = found.bands(rw.program.tensor(str(node.args[1].target)).double()[0, 0])  # type: ignore[union-attr]
    shift = rw.parameter(f"{name}_rows", shifts.flatten(0, 1).to(dtype).contiguous())
    band = rw.parameter(f"{name}_columns", bands.flatten(0, 1).T.to(dtype).contiguous())
    x = rw.emit(_aten.squeeze.dims, node.args[0], [1], like=node)
    moved = rw.emit(_aten.matmul.default, shift, x, like=node)
    sizes = [-1, outputs, steps * found.columns[0]]
    wide = rw.emit(_aten.reshape.default, moved, sizes, like=node)
    made = rw.emit(_aten.linear.default, wide, band, like=(node, like))
    if isinstance(offset, Tensor):
        column = rw.parameter(f"{name}_offset", offset.to(dtype))
        made = rw.emit(_aten.add.Tensor, made, column, like=(node, like))
    return made


def _bias(rw: Rewriter, found: _Convolution) -> Tensor | None:
    bias = argument(found.node, 2, "bias")
    return None if bias is None else rw.program.tensor(str(bias.target)).double()


class _Mixed(Rule):
    """Replaces W conv(x) by two products."""

    roots = (_aten.matmul.default,)

    def __init__(self, options: LowerConvolution) -> None:
        self.options = options

    def match(self, node: fx.Node) -> Any:
        if not is_op(node, *self.roots):
            return None
        weight, squeezed = node.args
        if parameter_name(weight) is None or not is_op(squeezed, *_FLATTENED):
            return None
        assert isinstance(squeezed, fx.Node)
        found = _convolution(squeezed.args[0])
        if not isinstance(found, _Convolution):
            return None
        if tuple(shape_of(squeezed)[1:]) != (found.rows[1], found.columns[1]):
            return None
        if len(squeezed.users) > 1 or len(found.node.users) > 1 or len(shape_of(weight)) != 2:
            return None
        outputs = int(shape_of(weight)[0])
        pays = found.multiplications(outputs) <= self.options.max_ratio * found.filled
        return found if pays else None

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        weight = rw.program.tensor(str(node.args[0].target)).double()  # type: ignore[union-attr]
        shifts = torch.einsum("ot,tik->oik", weight, found.shifts())
        bias = _bias(rw, found)
        offset = 0.0 if bias is None else bias * weight.sum(1, keepdim=True)
        return _products(rw, found, shifts, offset, node)


class _Alone(Rule):
    """Replaces conv(x) by two products."""

    roots = _CONVOLUTIONS

    def __init__(self, options: LowerConvolution) -> None:
        self.options = options

    def match(self, node: fx.Node) -> Any:
        found = _convolution(node)
        if not isinstance(found, _Convolution):
            return found
        if any(_Mixed(self.options).match(user) for view in node.users for user in view.users):
            return None
        if found.multiplications(found.rows[1]) > self.options.max_ratio * found.filled:
            return Miss("as products it would take more multiplications", (node,))
        return found

    def rewrite(self, rw: Rewriter, node: fx.Node, found: Any) -> fx.Node:
        bias = _bias(rw, found)
        offset = 0.0 if bias is None else bias.reshape(1, 1)
        made = _products(rw, found, found.shifts(), offset, node)
        return rw.emit(_aten.unsqueeze.default, made, 1, like=node)
