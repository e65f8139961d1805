"""Takes units out of a program: smaller parameters, and every view and join put right.

A linear that read what goes is fitted anew on what stays, by least squares on real inputs (as
Optimal Brain Surgeon does for a layer; He et al., 1707.06168): on four trained models that took the
damage to a third and less of what a shift of the bias leaves. A LayerNorm still counts what goes,
at its mean, so that what stays is scaled as before.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, fx

from ..ir.operators import moves
from ..ir.pattern import argument, is_op, parameter_name
from ..ir.program import Program
from ..ir.rewrite import Rewriter, sweep
from ..ir.traits import Move
from .channels import Channels
from .dependence import Scene, whole_lines
from .moments import Moments
from .one_row import picked_dim
from .removal import Removal

_aten = torch.ops.aten

#: Of the mean variance of a linear's inputs, added to each: how sure a few thousand rows are.
_RIDGE = 1e-3


def without(
    program: Program, found: Channels, removal: Removal, moments: Mapping[str, Moments]
) -> Program:
    """A copy of the program without what goes."""
    copy = program.clone()
    remove(Rewriter(copy, "trial"), found, removal, moments)
    return copy


def remove(
    rw: Rewriter, found: Channels, removal: Removal, moments: Mapping[str, Moments]
) -> dict[str, tuple[Tensor, ...]]:
    """Takes what goes out of the rewriter's program.

    Args:
        rw: Of the program that was analysed, or of a copy.
        found: The analysis.
        removal: What goes.
        moments: What `input_moments` found, to make up for what goes; empty to take it as zero.

    Returns:
        Per parameter that got smaller in place, the indices kept of each dimension.
    """
    editor = _Editor(rw, found.scene, removal, moments)
    kept = editor.kept_parameters()
    tensors = {name: _picked(rw.program.tensor(name), dims) for name, dims in kept.items()}
    rw.resize(tensors, editor.fix)
    sweep(rw.program)
    return kept


class _Editor:
    """Puts the nodes of one program right, in graph order."""

    def __init__(
        self, rw: Rewriter, scene: Scene, removal: Removal, moments: Mapping[str, Moments]
    ) -> None:
        self.rw = rw
        self.scene = scene
        self.gone = removal.values
        self.removal = removal
        self.moments = moments
        self._cut: dict[fx.Node, fx.Node] = {}
        self._original = {node.name: node for node in scene.program.graph.nodes}
        self._weights = {
            str(n.target): rw.program.tensor(str(n.target))
            for n in rw.program.graph.find_nodes(op="get_attr")
        }

    # --- what is kept -----------------------------------------------------------------------------

    def _kept(self, name: str) -> list[Tensor] | None:
        """The indices kept of each dimension of a value at one row; None if all are."""
        gone = self.gone.get(name)
        if gone is None:
            return None
        return _left_of(gone)

    def _sizes(self, name: str) -> tuple[int, ...]:
        return self.scene.row.shape(self._original[name])

    def _all_gone(self, name: str) -> bool:
        gone = self.gone.get(name)
        return gone is not None and bool(gone.all())

    def kept_parameters(self) -> dict[str, tuple[Tensor, ...]]:
        """The indices kept of each dimension, of each parameter that gets smaller in place."""
        kept: dict[str, tuple[Tensor, ...]] = {}
        for name in {name for name, _ in self.removal.sides}:
            gone = (self.removal.sides.get((name, d)) for d in range(self._weights[name].dim()))
            sizes = self._weights[name].shape
            kept[name] = tuple(
                torch.arange(size) if mask is None else (~mask).nonzero().flatten()
                for size, mask in zip(sizes, gone, strict=True)
            )
        for name, mask in self.removal.small.items():
            lines = whole_lines(mask[None])
            kept[name] = tuple((~line.flatten()).nonzero().flatten() for line in lines)
        for (name, _), mask in self.removal.vectors.items():
            if len(self.scene.readers[name]) == 1:
                kept[name] = ((~mask).nonzero().flatten(),)
        return {name: dims for name, dims in kept.items() if all(len(d) for d in dims)}

    # --- inputs -----------------------------------------------------------------------------------

    def _cut_inputs(self, reader: fx.Node) -> None:
        """Picks the columns kept of inputs: the contract stays as it is."""
        for node in list(reader.all_input_nodes):
            kept = self._kept(node.name) if node.op == "placeholder" else None
            if kept is None or self._all_gone(node.name):
                continue
            if node not in self._cut:
                self._cut[node] = self._picked_input(node, kept, reader)
            reader.replace_input_with(node, self._cut[node])

    def _picked_input(self, node: fx.Node, kept: Sequence[Tensor], first: fx.Node) -> fx.Node:
        cut = node
        with self.rw.before(first):
            for dim, places in enumerate(kept):
                if len(places) < self._sizes(node.name)[dim]:
                    index = self.rw.parameter(f"{node.name}_kept", places)
                    cut = self.rw.emit(_aten.index_select.default, cut, dim, index, like=node)
        return cut

    # --- nodes ------------------------------------------------------------------------------------

    def fix(self, node: fx.Node) -> bool:
        """Puts a node's arguments right; False where it is dead or replaced."""
        if node.name not in self._original or self._all_gone(node.name):
            return node.name not in self._original
        self._own_vectors(node)
        self._cut_inputs(node)
        if moves(node, Move.JOIN):
            self._join(node)
        elif is_op(node, _aten.add.Tensor, _aten.sub.Tensor):
            self._sum(node)
        elif moves(node, Move.RESHAPE | Move.EXPAND):
            self._resize(node)
        elif is_op(node, _aten.linear.default):
            self._linear(node)
        elif is_op(node, operator.getitem) and moves(node.args[0], Move.SPLIT):
            return self._part(node)
        elif moves(node, Move.SPLIT):
            return not self._touched(node)
        elif moves(node, Move.PART):
            self._select(node)
        elif moves(node, Move.PICK):
            self._index(node)
        elif is_op(node, torch.ops.rankc.dot_interaction.default):
            self._pairs(node)
        elif is_op(node, _aten.mean.dim):
            return self._mean(node)
        elif is_op(node, _aten.layer_norm.default):
            return self._norm(node)
        elif is_op(node, _aten.scaled_dot_product_attention.default):
            self._scale(node)
        return True

    def _touched(self, node: fx.Node) -> bool:
        source = self._source(node)
        return source in self.gone

    def _source(self, node: fx.Node) -> str:
        """The name the first argument had when the program was analysed."""
        first = self._original[node.name].args[0]
        assert isinstance(first, fx.Node)
        return first.name

    def _own_vectors(self, node: fx.Node) -> None:
        """A vector that others read too is cut for this reader alone."""
        for operand in list(node.all_input_nodes):
            name = parameter_name(operand)
            gone = self.removal.vectors.get((str(name), node.name))
            if name is None or gone is None or len(self.scene.readers[name]) == 1:
                continue
            own = self.rw.parameter(name, self._weights[name][~gone])
            node.replace_input_with(operand, own)

    def _join(self, node: fx.Node) -> None:
        before = self._original[node.name].args[0]
        assert isinstance(before, (list, tuple))
        given = node.args[0]
        assert isinstance(given, (list, tuple))
        staying = [
            now for old, now in zip(before, given, strict=True) if not self._all_gone(old.name)
        ]
        left = []
        for old, now in zip(before, given, strict=True):
            if now in staying:
                left.append(now)
                continue
            kept = self._kept_of_join(node, old)
            if all(len(places) for places in kept):
                left.append(self._filled(old, kept, staying[0]))
        node.update_arg(0, left)

    def _kept_of_join(self, join: fx.Node, operand: fx.Node) -> list[Tensor]:
        """Of each of an operand's dimensions, the indices that the join keeps."""
        moved = self.scene.row.moves(self._original[join.name])
        assert moved is not None
        sizes = [self.scene.row.values[source].numel() for source in moved.sources]
        place = moved.sources.index(operand)
        start = sum(sizes[:place])
        mine = (moved.index >= start) & (moved.index < start + sizes[place])
        gone = torch.zeros(sizes[place], dtype=torch.bool)
        out = self.gone.get(join.name)
        if out is not None:
            gone[moved.index[mine] - start] = out[mine]
        return _left_of(gone.view(self.scene.row.shape(operand)))

    def _sum(self, node: fx.Node) -> None:
        """Replaces an operand that goes as a whole by its mean."""
        for place, old in enumerate(self._original[node.name].args[:2]):
            if isinstance(old, fx.Node) and self._all_gone(old.name):
                kept = self._kept(node.name)
                node.update_arg(place, self._mean_of(old, kept))

    def _mean_of(self, operand: fx.Node, kept: Sequence[Tensor] | None) -> fx.Node:
        """What an operand was on average, ``[*shape]`` of what a row keeps of it."""
        shape = self._sizes(operand.name)[1:]
        known = self.moments.get(f"{operand.name} as a branch")
        mean = torch.zeros(shape) if known is None else known.mean.float().view(shape)
        if kept is not None:
            lined_up = [
                places if size > 1 else torch.zeros(1, dtype=torch.int64)
                for places, size in zip(kept[-mean.dim() - 1 :], (1, *shape), strict=True)
            ]
            mean = _picked(mean[None], lined_up)[0]
        return self.rw.parameter(f"{operand.name}_mean", mean)

    def _filled(self, operand: fx.Node, kept: Sequence[Tensor], sibling: fx.Node) -> fx.Node:
        """What an operand was on average, for as many rows as a sibling has."""
        mean, now = self._mean_of(operand, kept), sibling
        with self.rw.before(sibling.next):
            for dim in range(1, now.meta["val"].dim()):
                now = self.rw.emit(_aten.slice.Tensor, now, dim, 0, 1, like=operand)
            while now.meta["val"].dim() > len(self._sizes(operand.name)):
                now = self.rw.emit(_aten.squeeze.dims, now, [1], like=operand)
            none = self.rw.emit(_aten.mul.Tensor, now, 0.0, like=operand)
            return self.rw.emit(_aten.add.Tensor, none, mean, like=operand)

    def _resize(self, node: fx.Node) -> None:
        kept = self._kept(node.name)
        if kept is None:
            return
        sizes = node.args[1]
        assert isinstance(sizes, (list, tuple))
        lead = len(kept) - len(sizes)
        node.update_arg(
            1,
            [
                len(kept[lead + d])
                if isinstance(size, int) and size not in (-1, 1) and size == whole
                else size
                for d, (size, whole) in enumerate(
                    zip(sizes, self._sizes(node.name)[lead:], strict=True)
                )
            ],
        )

    def _linear(self, node: fx.Node) -> None:
        """Lets the columns that stay, and the bias, make up for those that go."""
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return
        name = str(weight.target)
        gone = self.removal.sides.get((name, 1))
        moments = self.moments.get(node.name)
        if gone is None or moments is None or not bool(gone.any()):
            return
        before = self._weights[name]
        columns, constant = _made_up(before.double(), gone, moments)
        rows = self.removal.sides.get((name, 0))
        if rows is not None:
            columns, constant = columns[~rows], constant[~rows]
        if len(self.scene.readers[name]) == 1:
            now = self.rw.program.tensor(name)
            self.rw.set_value(name, (now.double() + columns).to(now.dtype))
        else:  # other readers have other inputs: only the mean is made up for
            constant = before[:, gone].double() @ moments.mean[gone]
            constant = constant if rows is None else constant[~rows]
        share = constant.to(before.dtype)
        bias = argument(node, 2, "bias")
        if bias is None:
            made = self.rw.parameter(f"{name.removesuffix('.weight')}.bias", share)
            node.args = (node.args[0], weight, made)
            return
        moved = self.rw.program.tensor(str(bias.target)) + share
        if len(self.scene.readers.get(str(bias.target), ())) <= 1:
            self.rw.set_value(str(bias.target), moved)
        else:
            node.replace_input_with(bias, self.rw.parameter(str(bias.target), moved))

    def _part(self, node: fx.Node) -> bool:
        """A part of a split, as a slice of what was split."""
        split = self._original[node.name].args[0]
        assert isinstance(split, fx.Node)
        source = self._source(split)
        if source not in self.gone:
            return True
        whole = self._original[source]
        dim = int(argument(split, 1 if is_op(split, _aten.unbind.int) else 2, "dim", 0))
        dim %= len(self.scene.row.shape(whole))
        position = node.args[1]
        assert isinstance(position, int)
        sizes = [
            1 if is_op(split, _aten.unbind.int) else part.shape[dim]
            for part in self.scene.row.values[split]
        ]
        kept = self._kept(source)
        assert kept is not None
        start = sum(sizes[:position])
        first = int((kept[dim] < start).sum())
        last = int((kept[dim] < start + sizes[position]).sum())
        now = node.args[0].args[0]  # type: ignore[union-attr]
        with self.rw.before(node):
            if is_op(split, _aten.unbind.int):
                new = self.rw.emit(_aten.select.int, now, dim, first, like=node)
            else:
                new = self.rw.emit(_aten.slice.Tensor, now, dim, first, last, like=node)
        node.replace_all_uses_with(new)
        return False

    def _select(self, node: fx.Node) -> None:
        source = self._source(node)
        kept = self._kept(source)
        if kept is None:
            return
        sizes = self._sizes(source)
        dim = int(argument(node, 1, "dim", 0)) % len(sizes)
        every = torch.arange(sizes[dim])
        if is_op(node, _aten.select.int):
            place = int(every[node.args[2]])  # type: ignore[index]
            node.update_arg(2, int((kept[dim] < place).sum()))
            return
        start, end = argument(node, 2, "start"), argument(node, 3, "end")
        step = int(argument(node, 4, "step", 1))
        picked = every[start:end:step]
        new = torch.searchsorted(kept[dim], picked[torch.isin(picked, kept[dim])])
        if step == 1 or len(new) < 2:
            bounds = (int(new[0]), int(new[-1]) + 1, 1)
        else:
            bounds = (int(new[0]), int(new[-1]) + 1, int(new[1] - new[0]))
        node.args = (node.args[0], dim, *bounds)

    def _index(self, node: fx.Node) -> None:
        """Picks by new positions what is left of what was picked."""
        source, out = self._kept(self._source(node)), self._kept(node.name)
        if source is None and out is None:
            return
        listed = is_op(node, _aten.index.Tensor)
        given = list(node.args[1]) if listed else [node.args[2]]  # type: ignore[arg-type]
        first = next(d for d, index in enumerate(given) if index is not None)
        at = picked_dim(node)
        for offset, index in enumerate(given[first:]):
            if index is None:
                break
            assert isinstance(index, fx.Node)
            places = self.scene.row.values[self._original_operand(node, index)]
            picked = places if out is None else places[out[at]]
            if source is not None:
                picked = torch.searchsorted(source[at + offset], picked)
            given[first + offset] = self.rw.parameter(str(index.target), picked.to(places.dtype))
        node.update_arg(1 if listed else 2, given if listed else given[0])

    def _pairs(self, node: fx.Node) -> None:
        """A dot interaction of the vectors and pairs that are left."""
        source, out = self._kept(self._source(node)), self._kept(node.name)
        for position in (1, 2):
            index = node.args[position]
            assert isinstance(index, fx.Node)
            places = self.scene.row.values[self._original_operand(node, index)]
            picked = places if out is None else places[out[-1]]
            if source is not None:
                picked = torch.searchsorted(source[-2], picked)
            if not torch.equal(picked, places):
                made = self.rw.parameter(str(index.target), picked.to(places.dtype))
                node.update_arg(position, made)

    def _original_operand(self, node: fx.Node, operand: fx.Node) -> fx.Node:
        inputs: list[fx.Node] = self._original[node.name].all_input_nodes
        return next(n for n in inputs if n.name == operand.name)

    def _mean(self, node: fx.Node) -> bool:
        """A mean of fewer as a sum over as many as before."""
        source = self._source(node)
        kept, sizes = self._kept(source), self._sizes(source)
        dims = [int(d) % len(sizes) for d in node.args[1]]  # type: ignore[union-attr, arg-type]
        if kept is None or all(len(kept[d]) == sizes[d] for d in dims):
            return True
        keepdim = bool(argument(node, 2, "keepdim", False))
        with self.rw.before(node):
            total = self.rw.emit(
                _aten.sum.dim_IntList, node.args[0], node.args[1], keepdim, like=node
            )
            share = 1.0 / prod(sizes[d] for d in dims)
            new = self.rw.emit(_aten.mul.Tensor, total, share, like=node)
        node.replace_all_uses_with(new)
        return False

    def _norm(self, node: fx.Node) -> bool:
        """A LayerNorm that still counts what goes, at its mean (zero where that isn't known)."""
        source = self._source(node)
        kept, size = self._kept(source), self._sizes(source)[-1]
        if kept is None or len(kept[-1]) == size:
            return True
        gone = torch.ones(size, dtype=torch.bool)
        gone[kept[-1]] = False
        zeros = torch.zeros(int(gone.sum()))
        known = self.moments.get(node.name)
        mean = zeros if known is None else known.mean[gone].float()
        with self.rw.before(node):
            one = self.rw.emit(_aten.slice.Tensor, node.args[0], -1, 0, 1, like=node)
            # Zero times a column has the rows of the batch, which a parameter hasn't.
            none = self.rw.emit(_aten.mul.Tensor, one, self.rw.parameter("none", zeros), like=node)
            rest = self.rw.emit(_aten.add.Tensor, none, self.rw.parameter("mean", mean), like=node)
            x = self.rw.emit(_aten.cat.default, [node.args[0], rest], -1, like=node)
            vectors = [
                None if v is None else self._padded(v, int(gone.sum())) for v in node.args[2:4]
            ]
            normed = self.rw.emit(
                _aten.layer_norm.default, x, [size], *vectors, *node.args[4:], like=node
            )
            dim = len(self._sizes(source)) - 1
            new = self.rw.emit(_aten.slice.Tensor, normed, dim, 0, len(kept[-1]), like=node)
        node.replace_all_uses_with(new)
        return False

    def _padded(self, vector: object, count: int) -> fx.Node:
        assert isinstance(vector, fx.Node)
        values = self.rw.program.tensor(str(vector.target))
        return self.rw.parameter(str(vector.target), torch.cat([values, values.new_zeros(count)]))

    def _scale(self, node: fx.Node) -> None:
        """Attention over fewer columns is scaled by as many as before."""
        size = self._sizes(self._source(node))[-1]
        kept = self._kept(self._source(node))
        if kept is not None and len(kept[-1]) < size and node.kwargs.get("scale") is None:
            node.kwargs = {**node.kwargs, "scale": size**-0.5}


def _made_up(weight: Tensor, gone: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """What the columns that stay, and the bias, take over from those that go.

    Args:
        weight: ``[N, K]`` float64.
        gone: ``[K]``.
        moments: Of the input.

    Returns:
        ``[N, kept]`` to add to what stays, and ``[N]`` to add to the bias.
    """
    lost, kept = weight[:, gone], ~gone
    if moments.covariance is None:
        return torch.zeros_like(weight[:, kept]), lost @ moments.mean[gone]
    within = moments.covariance[kept][:, kept]
    ridge = _RIDGE * float(within.diag().mean()) + torch.finfo(torch.float64).tiny
    across = moments.covariance[kept][:, gone] @ lost.T
    columns = torch.linalg.solve(within + ridge * torch.eye(len(within)).double(), across).T
    return columns, lost @ moments.mean[gone] - columns @ moments.mean[kept]


def _left_of(gone: Tensor) -> list[Tensor]:
    """Of each dimension, the indices that are left; nothing of a value that goes as a whole."""
    every = bool(gone.all())
    return [
        (~line[0].flatten()).nonzero().flatten()
        if gone.shape[dim] > 1 or every
        else torch.zeros(1, dtype=torch.int64)
        for dim, line in enumerate(whole_lines(gone[None]))
    ]


def _picked(tensor: Tensor, kept: Sequence[Tensor]) -> Tensor:
    for dim, places in enumerate(kept):
        if len(places) < tensor.shape[dim]:
            tensor = tensor.index_select(dim, places)
    return tensor
