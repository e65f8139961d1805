"""Which dot products of which rows a value holds, however the model wrote them down.

Every element of a value is given a number that says where it comes from, and the model's own views
and selections are run on those numbers: index lists, masks, triangles, loops and joins all come out
as a list of pairs, without a pattern for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..ir.operators import moves
from ..ir.pattern import dtype_of, is_op, shape_of
from ..ir.program import Program
from ..ir.traits import Move

_aten = torch.ops.aten
_SELECTS = Move.PICK | Move.PART | Move.ITEM | Move.SPLIT
_MOVES = _SELECTS | Move.JOIN | Move.VIEW | Move.GATHER | Move.EXPAND | Move.REPEAT
_JOINS = Move.JOIN | Move.UNSQUEEZE | Move.SQUEEZE
#: An element is numbered by its batch, its row and its column; a pair by its batch and two rows.
#: Two batches show whether a view mixes them.
_BATCH, _WIDTH, _ROWS = 2, 1 << 20, 1 << 24
_LARGEST = 1 << 24


class PairTracer:
    """Traces the values of one program.

    Attributes:
        rows: What every row number stands for: a value ``[B, n, d]`` and an index, or a value
            ``[B, d]`` and None.
    """

    def __init__(self, program: Program) -> None:
        self.rows: list[tuple[fx.Node, int | None]] = []
        self._program = program
        self._pairs: dict[fx.Node, Any] = {}
        self._leaves: dict[fx.Node, Tensor | None] = {}

    def pairs(self, node: fx.Node) -> Tensor | None:
        """The pairs of one example, as ``[…, 2]`` row numbers; None if it holds anything else."""
        found = self._traced(node)
        if not isinstance(found, Tensor) or found.dim() == 0 or found.shape[0] != _BATCH:
            return None
        batch, pair = found // _ROWS**2, found % _ROWS**2
        first = torch.equal(
            batch, torch.arange(_BATCH).view(-1, *[1] * (found.dim() - 1)) + 0 * batch
        )
        if not first or not torch.equal(pair[0], pair[1]):
            return None
        return torch.stack([pair[0] // _ROWS, pair[0] % _ROWS], -1)

    def is_product(self, node: fx.Node) -> bool:
        """Whether the node computes products of rows, rather than picking from them."""
        return not _is_moved(node)

    def _traced(self, node: fx.Node) -> Any:
        if node not in self._pairs:
            self._pairs[node] = self._trace(node)
        return self._pairs[node]

    def _trace(self, node: fx.Node) -> Any:
        if is_op(node, _aten.bmm.default, _aten.matmul.default):
            return self._gram(node)
        if is_op(node, _aten.sum.dim_IntList):
            return self._summed_products(node)
        if not _is_moved(node):
            return None
        sources = node.args[0] if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
        if any(not isinstance(s, fx.Node) or self._traced(s) is None for s in sources):
            return None
        return self._run(
            node, lambda n: self._constant(n) if self._traced(n) is None else self._traced(n)
        )

    def _run(self, node: fx.Node, value: Any) -> Any:
        """The node's own operator on numbers; None if it can't be run on them."""
        known = True

        def put(source: fx.Node) -> Any:
            nonlocal known
            found = value(source)
            known = known and found is not None
            return found

        args: Any = fx.node.map_arg(node.args, put)
        kwargs: Any = fx.node.map_arg(node.kwargs, put)
        if not known:
            return None
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, IndexError, TypeError):
            return None

    def _constant(self, node: fx.Node) -> Any:
        """An index or a mask that doesn't depend on the features, as numbers."""
        if node.op == "get_attr":
            constant = self._program.tensor(str(node.target))
            return None if constant.is_floating_point() else constant
        if is_op(node, _aten.sym_size.int):
            return _BATCH if node.args[1] == 0 else None
        return self._run(node, self._constant) if _is_moved(node) else None

    def _leaf(self, node: fx.Node) -> Tensor | None:
        """Numbers for the elements of a value ``[B, n, d]`` or ``[B, d]``, each row a new one."""
        if node not in self._leaves:
            self._leaves[node] = self._number(node)
        return self._leaves[node]

    def _number(self, node: fx.Node) -> Tensor | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not dtype_of(node).is_floating_point:
            return None
        batch, *sizes = shape_of(node) or (1,)
        if isinstance(batch, int) or len(sizes) not in (1, 2):
            return None
        if not all(isinstance(size, int) for size in sizes):
            return None
        *count, width = (int(size) for size in sizes)
        rows = count[0] if count else 1
        if not 2 <= width < _WIDTH or len(self.rows) + rows > _ROWS or rows * width > _LARGEST:
            return None
        start = len(self.rows)
        self.rows += [(node, index if count else None) for index in range(rows)]
        numbers = (torch.arange(start, start + rows) * _WIDTH)[:, None] + torch.arange(width)
        return (
            (torch.arange(_BATCH) * _ROWS * _WIDTH).view(-1, 1, 1) + numbers
            if count
            else ((torch.arange(_BATCH) * _ROWS * _WIDTH)[:, None] + numbers)
        )

    def _elements(self, node: fx.Node, below: bool = False) -> Any:
        """Numbers of a value's elements, back to the tensors that rows are picked from."""
        if node.op != "call_function":
            return self._leaf(node)
        picked = moves(node, _SELECTS)
        joined = moves(node, _JOINS) and not below
        if not picked and not joined:
            return self._leaf(node)

        def back(source: fx.Node) -> Any:
            constant = self._constant(source) if source.op == "get_attr" else None
            return self._elements(source, below or picked) if constant is None else constant

        found = self._run(node, back)
        return self._leaf(node) if found is None else found

    def _gram(self, node: fx.Node) -> Tensor | None:
        """``bmm(x, xᵀ)``, also where einsum has permuted x on the way."""
        left, right = node.args[:2]
        if len(shape_of(node)) != 3:
            return None
        behind = _behind(right)
        source = next((n for n in _behind(left) if n in behind and len(shape_of(n)) == 3), None)
        leaf = self._leaf(source) if source is not None else None
        if leaf is None:
            return None
        assert source is not None
        sides = [self._viewed(side, source, leaf) for side in (left, right)]
        if any(side is None or side.dim() != 3 for side in sides):
            return None
        return _paired(sides[0][:, :, None], sides[1].transpose(1, 2)[:, None])

    def _viewed(self, node: Any, source: fx.Node, leaf: Tensor) -> Any:
        if node is source:
            return leaf
        return self._run(node, lambda n: self._viewed(n, source, leaf))

    def _summed_products(self, node: fx.Node) -> Tensor | None:
        """``(a * b).sum(-1)`` where the rows of a and b are picked from others."""
        product, dims = node.args[0], list(node.args[1])  # type: ignore[arg-type]
        if not is_op(product, _aten.mul.Tensor) or node.kwargs:
            return None
        assert isinstance(product, fx.Node)
        if len(dims) != 1 or dims[0] not in (-1, len(shape_of(product)) - 1):
            return None
        if not all(isinstance(side, fx.Node) and side.op != "get_attr" for side in product.args):
            return None
        sides = [self._elements(side) for side in product.args]  # type: ignore[arg-type]
        if not all(isinstance(side, Tensor) and side.dim() > 1 for side in sides):
            return None
        found = _paired(*sides)
        return found.unsqueeze(-1) if found is not None and node.args[2:] == (True,) else found


def _is_moved(node: fx.Node) -> bool:
    return moves(node, _MOVES) or is_op(node, _aten.masked_select.default)


def _behind(node: Any) -> list[fx.Node]:
    """The node and what it is a view of."""
    chain = [node]
    while moves(chain[-1], Move.VIEW):
        chain.append(chain[-1].args[0])
    return chain


def _paired(left: Tensor, right: Tensor) -> Tensor | None:
    """Numbers of pairs, where both sides hold whole rows of one width and one batch."""
    try:
        left, right = left + 0 * right, right + 0 * left
    except RuntimeError:
        return None
    if left.numel() > _LARGEST:
        return None
    columns = torch.arange(left.shape[-1])
    for side in (left, right):
        rows = side // _WIDTH
        if not torch.equal(side % _WIDTH, columns + 0 * side) or not torch.equal(
            rows, rows[..., :1] + 0 * rows
        ):
            return None
    left, right = left[..., 0] // _WIDTH, right[..., 0] // _WIDTH
    if not torch.equal(left // _ROWS, right // _ROWS):
        return None
    return (left // _ROWS) * _ROWS**2 + (left % _ROWS) * _ROWS + right % _ROWS
