"""The units of a program: hidden units, ranks, heads, experts, fields, columns of tables.

A unit is the smallest set of rows and columns that can be removed together and leave a valid
program (`analysis/dependence.py`). Units that are alike, such as the hidden units of one layer,
make a group. Nothing is assumed about the model: every output of a linear, every column of a table,
every part of a view and every input of a join is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from ..ir.facts import site_of
from ..ir.operators import gives, moves
from ..ir.pattern import argument, is_op, parameter_name
from ..ir.program import Program
from ..ir.traits import Move, Values
from .branches import branches
from .dependence import Closure, Key, Scene
from .one_row import picked_dim

_aten = torch.ops.aten
#: How what may read units, and gives something that has them no more, computes.
_ENDS = (
    *(Values.LINEAR, Values.PRODUCT, Values.SUM, Values.MEAN, Values.WEIGHTS, Values.LOG_WEIGHTS),
    *(Values.NORMED, Values.ATTENDED, Values.PAIRS),
)
#: Elements of masks that are worked on at once.
_AT_ONCE = 1 << 24
#: Units of a long line that are tried first: where none of them can go, none can.
_TRIED = 4


@dataclass(frozen=True)
class Exit:
    """Where units end: a product, a sum or a normalization reads them, and gives something else.

    Attributes:
        node: Who reads them.
        source: What it reads them from.
        touched: ``[U, *shape]`` at one row of the batch: each unit's elements.
    """

    node: fx.Node
    source: fx.Node
    touched: Tensor

    @property
    def renormalizes(self) -> bool:
        """Whether what is left is scaled anew, so that removing isn't the same as zeroing."""
        return gives(self.node, Values.WEIGHTS, Values.LOG_WEIGHTS, Values.NORMED)


@dataclass(frozen=True)
class Group:
    """Units that are alike.

    Attributes:
        site: The user's name of where they are.
        what: What they are, in the field's words.
        units: How many.
        masks: Per value, vector or small parameter, ``[U, *shape]``.
        sides: Per weight and dimension, ``[U, size]``.
        exits: Where they end.
        line: Whether they lie along the outputs of a linear, whose number kernels like in tiles.
    """

    site: str
    what: str
    units: int
    masks: Mapping[Key, Tensor]
    sides: Mapping[tuple[str, int], Tensor]
    exits: tuple[Exit, ...]
    line: bool

    @property
    def name(self) -> str:
        """Such as ``outputs of top.0``."""
        return f"{self.what} of {self.site}"

    @property
    def is_evidence(self) -> bool:
        """Whether they are what the model goes by, which finetuning can't get back.

        Columns and fields of the input, and pairs of fields; not what the model made of them.
        """
        if self.what == "pairs":
            return True
        return any(
            isinstance(key, fx.Node)
            and (
                key.op == "placeholder"
                or (is_op(key, _aten.embedding.default) and bool(mask.flatten(1).all(1).any()))
            )
            for key, mask in self.masks.items()
        )


@dataclass(frozen=True)
class Refusal:
    """Units that can't go, and why."""

    site: str
    what: str
    why: str


@dataclass(frozen=True)
class Channels:
    """All units of a program.

    Attributes:
        scene: The program and its values for one row.
        groups: In graph order.
        refused: What can't be removed.
    """

    scene: Scene
    groups: tuple[Group, ...]
    refused: tuple[Refusal, ...] = field(default=())


@dataclass(frozen=True)
class _Seed:
    node: fx.Node
    what: str
    mask: Tensor
    line: bool = False


def channels(program: Program) -> Channels:
    """Finds the groups of a program, and what can't be removed."""
    scene = Scene(program)
    seen: set[int] = set()
    groups, refused = [], []
    numbers = _Numbers(scene)
    for seed in _seeds(scene):
        parts = _closed(scene, seed)
        live = torch.cat([part.live for part in parts])
        if not bool(live.any()):
            why = next(why for part in parts for why in part.why if why)
            refused.append((seed, why))
            continue
        names = [number for part in parts for number in numbers.of(part)]
        fresh = [u for u, alive in enumerate(live.tolist()) if alive and names[u] not in seen]
        fresh = list({names[u]: u for u in reversed(fresh)}.values())[::-1]
        seen |= {names[u] for u in fresh}
        if fresh:
            groups.append(_group(scene, seed, parts, fresh))
    for join, operands, masks in branches(scene):
        gone: dict[Key, Tensor] = dict(masks.items())
        group = Group(site_of(join), "branches", len(operands), gone, {}, (), line=False)
        groups.append(group)
    return Channels(scene, tuple(groups), tuple(_unreached(groups, refused)))


def _unreached(groups: list[Group], refused: list[tuple[_Seed, str]]) -> Iterator[Refusal]:
    """The refusals of linears and tables of which no group takes anything either."""
    reached = {name for group in groups for name, dim in group.sides if dim == 0}
    tables = {name for group in groups for name, dim in group.sides if dim == 1}
    for seed, why in refused:
        node = seed.node
        if is_op(node, _aten.linear.default) and str(node.args[1].target) not in reached:  # type: ignore[union-attr]
            yield Refusal(site_of(node), seed.what, why)
        if is_op(node, _aten.embedding.default) and str(node.args[0].target) not in tables:  # type: ignore[union-attr]
            yield Refusal(site_of(node), seed.what, why)


def _closed(scene: Scene, seed: _Seed) -> list[Closure]:
    """The closures of a seed's units, as many at once as memory allows."""
    values = [n for n in scene.row.values if scene.row.shape(n) and n.op != "get_attr"]
    largest = max(scene.row.values[node].numel() for node in values)
    chunk = max(1, _AT_ONCE // max(largest, 1))
    if len(seed.mask) > 8 * _TRIED:
        few = seed.mask[torch.linspace(0, len(seed.mask) - 1, _TRIED).long()]
        tried = Closure(scene, seed.node, few, whole_columns=seed.line)
        if not bool(tried.live.any()):
            return [tried]
    return [
        Closure(scene, seed.node, seed.mask[start : start + chunk], whole_columns=seed.line)
        for start in range(0, len(seed.mask), chunk)
    ]


def _seeds(scene: Scene) -> Iterator[_Seed]:
    for node in scene.program.graph.nodes:
        shape = scene.row.shape(node)
        if node.op == "placeholder":
            if scene.row.values[node].is_floating_point() and len(shape) > 1:
                yield from _lines(scene, node, len(shape) - 1, "columns")
        elif is_op(node, _aten.linear.default):
            yield from _lines(scene, node, len(shape) - 1, "outputs", line=True)
        elif is_op(node, _aten.embedding.default):
            yield from _lines(scene, node, len(shape) - 1, "columns")
        elif gives(node, Values.PRODUCT) and parameter_name(node.args[1]) in scene.weights:
            yield from _lines(scene, node, len(shape) - 1, "outputs", line=True)
        elif is_op(node, _aten.reshape.default, _aten.view.default):
            for dim in range(len(shape)):
                yield from _lines(scene, node, dim, "parts")
        elif is_op(node, _aten.stack.default):
            joined = int(argument(node, 1, "dim", 0)) % len(shape)
            for dim in range(len(shape)):
                yield from _lines(scene, node, dim, "inputs" if dim == joined else "columns")
        elif is_op(node, torch.ops.rankc.dot_interaction.default):
            yield from _lines(scene, node, len(shape) - 1, "pairs")
        elif moves(node, Move.PICK) and scene.row.moves(node) is not None:
            yield from _lines(scene, node, picked_dim(node), "pairs")
        elif is_op(node, _aten.cat.default) and shape:
            joined = int(argument(node, 1, "dim", 0)) % len(shape)
            yield from _inputs(scene, node)
            for dim in range(len(shape)):
                yield from _lines(scene, node, dim, "columns") if dim != joined else ()


def _lines(
    scene: Scene, node: fx.Node, dim: int, what: str, *, line: bool = False
) -> Iterator[_Seed]:
    """Each index of one dimension."""
    shape = scene.row.shape(node)
    if len(shape) == 0 or shape[dim] < 2 or dim in scene.frozen(node):
        return
    mask = torch.eye(shape[dim], dtype=torch.bool)
    mask = mask.view(shape[dim], *[1] * dim, -1, *[1] * (len(shape) - dim - 1))
    yield _Seed(node, what, mask.expand(shape[dim], *shape).clone(), line)


def _inputs(scene: Scene, node: fx.Node) -> Iterator[_Seed]:
    """Each input of a concatenation, as a whole."""
    moved = scene.row.moves(node)
    if moved is None or len(moved.sources) < 2:
        return
    sizes = torch.tensor([scene.row.values[source].numel() for source in moved.sources])
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)[moved.index]
    count = torch.arange(len(sizes)).view(-1, *[1] * owner.dim())
    yield _Seed(node, "inputs", owner == count)


def _group(scene: Scene, seed: _Seed, parts: list[Closure], units: list[int]) -> Group:
    keys = {key: None for part in parts for key in part.masks}
    sides = {side: None for part in parts for side in part.sides}
    masks = {key: _joined(scene, parts, key)[units] for key in keys}
    masks = {key: mask for key, mask in masks.items() if bool(mask.any())}
    gone = {side: _joined_side(scene, parts, side)[units] for side in sides}
    gone = {side: mask for side, mask in gone.items() if bool(mask.any())}
    exits = tuple(_exits(scene, masks))
    return Group(site_of(seed.node), seed.what, len(units), masks, gone, exits, seed.line)


def _joined(scene: Scene, parts: list[Closure], key: Key) -> Tensor:
    shape = next(part.masks[key].shape[1:] for part in parts if key in part.masks)
    return torch.cat(
        [p.masks.get(key, torch.zeros((p.count, *shape), dtype=torch.bool)) for p in parts]
    )


def _joined_side(scene: Scene, parts: list[Closure], side: tuple[str, int]) -> Tensor:
    size = scene.program.tensor(side[0]).shape[side[1]]
    return torch.cat(
        [p.sides.get(side, torch.zeros((p.count, size), dtype=torch.bool)) for p in parts]
    )


def _exits(scene: Scene, masks: Mapping[Key, Tensor]) -> Iterator[Exit]:
    for key, mask in masks.items():
        for user in key.users if isinstance(key, fx.Node) else ():
            if gives(user, *_ENDS) and _operand(user) is key:
                assert isinstance(key, fx.Node)
                touched = _inner(user, mask)
                if bool(touched.any()):
                    yield Exit(user, key, touched)


def _operand(node: fx.Node) -> object:
    """What units may end in: one of a product's operands, since both lose the same columns."""
    if gives(node, Values.PRODUCT) and parameter_name(node.args[0]) is not None:
        return node.args[1]
    return node.args[0]


def _inner(node: fx.Node, mask: Tensor) -> Tensor:
    """Of what goes of a node's input, what its output doesn't have in the same place.

    Tokens that go from the input of a linear go from its output too: they end further down.
    """
    if gives(node, Values.PRODUCT) and parameter_name(node.args[0]) is not None:
        return mask & ~mask.all(-2, keepdim=True)
    if gives(node, Values.SUM, Values.MEAN):
        dims = [int(d) % (mask.dim() - 1) + 1 for d in node.args[1]]  # type: ignore[union-attr, arg-type]
        passed = mask
        for dim in dims:
            passed = passed.all(dim, keepdim=True)
        return mask & ~passed
    dim = -1
    if gives(node, Values.WEIGHTS, Values.LOG_WEIGHTS):
        dim = int(node.args[1]) % (mask.dim() - 1) + 1  # type: ignore[arg-type]
    return mask & ~mask.all(dim, keepdim=True)


class _Numbers:
    """One number for what a unit takes along, the same for the same."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._generator = torch.Generator().manual_seed(0)
        self._random: dict[object, Tensor] = {}

    def of(self, closure: Closure) -> list[int]:
        """A number for each unit of a closure."""
        total = torch.zeros(closure.count, dtype=torch.int64)
        for key, mask in (*closure.masks.items(), *closure.sides.items()):
            flat = mask.flatten(1)
            if key not in self._random:
                self._random[key] = torch.randint(
                    -(2**62), 2**62, (flat.shape[1],), generator=self._generator
                )
            total += (flat * self._random[key]).sum(1)
        return total.tolist()
