"""What each unit is worth: how far each row's scores move when it goes.

First order (Molchanov et al., 1906.10771): taking a unit h away, or leaving it at its mean m, moves
a score z by (m − h)·∂z/∂h. Rows are independent, so one backward pass of the sum of scores gives
this per row and unit. Kept per row, the moves of units that go together add up with their signs,
and half the mean of p(1 − p)·(Σ moves)² is what they cost together in log loss on soft labels: the
damage that `optimizer/precision/knapsack.py` counts formats in. Units of which there are few, such
as heads and experts, are taken out one by one instead, and measured.

What the linears behind lose by a unit, they make up for by its neighbours as far as these tell it
(`optimizer/pruning/surgery.py`), which first order doesn't see: most of a hidden layer, little of a
table's columns. So half of each group is taken out at once, and its units' moves are scaled to what
scores moved by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..data.delimiters import ragged_of, row_count
from ..data.ragged import take
from ..ir.operators import gives
from ..ir.program import Features, Program
from ..ir.signature import Signature, Task, TaskKind
from ..ir.traits import Values
from ..quality.scores import task_logits
from .channels import Channels, Exit, Group
from .moments import Moments
from .removal import Removal, emptied
from .surgery import without

_aten = torch.ops.aten
#: What is large is measured where there are at most this many of it.
_FEW = 32
#: First order is off by so much at most: what is beyond tells of something else.
_SCALES = (1.0 / 64.0, 16.0)
#: Rows a pass over the program holds the gradients of.
_BATCH = 1024


@dataclass(frozen=True)
class Worth:
    """What the units of a program are worth.

    Attributes:
        moves: ``{task: [rows, units]}``: the square of a row of sums over units that go, averaged
            over the rows, is their damage: the rise of the task's NE.
        starts: Where each group's units begin; those of group i are ``starts[i]:starts[i + 1]``.
        measured: Per group, whether its units can be told apart at all.
    """

    moves: Mapping[str, Tensor]
    starts: tuple[int, ...]
    measured: tuple[bool, ...]

    def units(self, group: int) -> slice:
        """The columns of one group."""
        return slice(self.starts[group], self.starts[group + 1])


def by_effect(
    program: Program, found: Channels, batches: Sequence[Features], moments: Mapping[str, Moments]
) -> Worth:
    """Worth by what scores move, on real rows.

    Args:
        program: The program that was analysed.
        found: Its units.
        batches: Rows, by feature name.
        moments: Of `input_moments`.
    """
    starts = _starts(found.groups)
    few = {i for i, group in enumerate(found.groups) if _must_measure(group)}
    measured = [i not in few or group.units <= _FEW for i, group in enumerate(found.groups)]
    parts: dict[str, list[Tensor]] = {task.name: [] for task in program.signature.served}
    scores: dict[str, list[Tensor]] = {task.name: [] for task in program.signature.served}
    exits = [
        (exit_, starts[i]) for i, g in enumerate(found.groups) if i not in few for exit_ in g.exits
    ]
    removed = _one_by_one(program, found, few, measured, moments)
    for batch in _pieces(batches, program.signature):
        tracer = _Edges(program, [exit_ for exit_, _ in exits])
        outputs = tracer.outputs(batch)
        for task in program.signature.served:
            logits = task_logits(task, outputs)
            moved = torch.zeros(len(logits), starts[-1])
            slopes = tracer.slopes(logits)
            for (exit_, start), slope in zip(exits, slopes, strict=True):
                if slope is not None:
                    taken = exit_.touched.flatten(1).float()
                    change = tracer.change(exit_, slope, moments)
                    moved[:, start : start + len(taken)] += change @ taken.T
            for column, smaller in removed.items():
                moved[:, column] = task_logits(task, smaller.run(batch)) - logits.detach()
            parts[task.name].append(moved)
            scores[task.name].append(logits.detach())
    joined = {name: torch.cat(pieces) for name, pieces in scores.items()}
    moves = {name: torch.cat(pieces) for name, pieces in parts.items()}
    estimated = [i for i in range(len(found.groups)) if i not in few]
    _set_right(moves, joined, estimated, program, found, batches, moments)
    for task in program.signature.served:
        moves[task.name] *= _weights(task, joined[task.name])[:, None]
    return Worth(moves, starts, tuple(measured))


def _set_right(
    moves: Mapping[str, Tensor],
    logits: Mapping[str, Tensor],
    groups: Sequence[int],
    program: Program,
    found: Channels,
    batches: Sequence[Features],
    moments: Mapping[str, Moments],
) -> None:
    """Scales the moves of each group's units to what half of them move scores by, together."""
    starts = _starts(found.groups)
    for i in groups:
        columns = slice(starts[i], starts[i + 1])
        worth = sum(_relative(moved[:, columns].square().mean(0)) for moved in moves.values())
        assert isinstance(worth, Tensor)
        half = torch.argsort(worth, stable=True)[: found.groups[i].units // 2]
        removal = Removal.of([(found.groups[i], half.tolist())])
        if len(half) == 0 or emptied(found.scene, removal) is not None:
            continue
        smaller = without(program, found, removal, moments)
        outputs = [smaller.run(batch) for batch in _pieces(batches, program.signature)]
        for task in program.signature.served:
            after = torch.cat([task_logits(task, out) for out in outputs])
            first = moves[task.name][:, columns]
            predicted = first[:, half].sum(1).square().mean().sqrt()
            if predicted > 0.0:
                moved = (after - logits[task.name]).square().mean().sqrt()
                first *= (moved / predicted).clamp(*_SCALES)


def _relative(values: Tensor) -> Tensor:
    return values / values.sum().clamp_min(1e-30)


def by_magnitude(program: Program, found: Channels) -> Worth:
    """The baseline: the mean square of a unit's weights, relative to its group; no data."""
    starts = _starts(found.groups)
    sizes = torch.zeros(starts[-1])
    for i, group in enumerate(found.groups):
        squares = torch.zeros(group.units)
        for (name, dim), mask in group.sides.items():
            weight = program.tensor(name).float().square()
            squares += mask.float() @ weight.movedim(dim, 0).flatten(1).sum(1)
        sizes[starts[i] : starts[i + 1]] = squares / squares.mean().clamp_min(1e-30)
    # Orthogonal rows: what goes together costs the sum of what it costs alone.
    moves = torch.diag((sizes * len(sizes)).sqrt())
    return Worth({"magnitude": moves}, starts, (True,) * len(found.groups))


def _starts(groups: Sequence[Group]) -> tuple[int, ...]:
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.units)
    return tuple(starts)


def _must_measure(group: Group) -> bool:
    """Whether a first-order estimate would be off: large units, or what is left is scaled anew."""
    large = group.what in ("inputs", "parts", "branches") and group.units <= _FEW
    return large or any(
        gives(exit_.node, Values.WEIGHTS, Values.LOG_WEIGHTS) or not _is_by_row(exit_)
        for exit_ in group.exits
    )


def _is_by_row(exit_: Exit) -> bool:
    """Whether one dimension of the value is the batch, and nothing but it."""
    return _batch_dim(exit_.source) is not None


def _batch_dim(node: fx.Node) -> int | None:
    shape = node.meta["val"].shape
    dynamic = [d for d, size in enumerate(shape) if not isinstance(size, int)]
    return dynamic[0] if len(dynamic) == 1 and str(shape[dynamic[0]]).isidentifier() else None


def _one_by_one(
    program: Program,
    found: Channels,
    few: set[int],
    measured: list[bool],
    moments: Mapping[str, Moments],
) -> dict[int, Program]:
    """By column, the program without that unit."""
    starts = _starts(found.groups)
    removed = {}
    for i in sorted(few):
        group = found.groups[i]
        for unit in range(group.units if measured[i] else 0):
            removal = Removal.of([(group, [unit])])
            if emptied(found.scene, removal) is None:
                removed[starts[i] + unit] = without(program, found, removal, moments)
            else:
                measured[i] = False
    return removed


def _pieces(batches: Sequence[Features], signature: Signature) -> Iterator[Features]:
    ragged = ragged_of(signature)
    for batch in batches:
        for start in range(0, row_count(batch, ragged), _BATCH):
            yield take(batch, ragged, slice(start, start + _BATCH))


def _weights(task: Task, logits: Tensor) -> Tensor:
    """Per row, the root of what a squared move of its score costs in NE."""
    if task.kind is TaskKind.REGRESSION:
        return torch.full_like(logits, float(logits.var().clamp_min(1e-12)) ** -0.5)
    p = torch.sigmoid(logits)
    entropy = -(p * p.clamp_min(1e-30).log() + (1 - p) * (1 - p).clamp_min(1e-30).log())
    return (p * (1 - p) / (2.0 * entropy.mean().clamp_min(1e-12))).sqrt()


class _Edges(fx.Interpreter):
    """Runs a program, and keeps what flows into each exit apart from what flows elsewhere."""

    def __init__(self, program: Program, exits: Sequence[Exit]) -> None:
        super().__init__(program.module)
        self._program = program
        self._exits = exits
        self._source = {exit_.node: exit_.source for exit_ in exits}
        self.edges: dict[fx.Node, Tensor] = {}

    def outputs(self, batch: Features) -> dict[str, Tensor]:
        """The outputs by name, with gradients."""
        with torch.enable_grad():
            results = self.run(*self._program.ordered(batch))
        return dict(zip(self._program.signature.outputs, results, strict=True))

    def run_node(self, n: fx.Node) -> object:
        """Gives an exit a copy of its input, to which the gradient is taken."""
        source = self._source.get(n)
        if source is None:
            return super().run_node(n)
        value = self.env[source]
        edge = value.clone() if value.requires_grad else value.clone().requires_grad_()
        self.edges[n] = self.env[source] = edge
        try:
            return super().run_node(n)
        finally:
            self.env[source] = value

    def slopes(self, logits: Tensor) -> list[Tensor | None]:
        """The gradient of every row's logit at each exit, in their order."""
        if not logits.requires_grad:
            return [None] * len(self._exits)
        nodes = list(self.edges)
        found = torch.autograd.grad(
            logits.sum(), [self.edges[n] for n in nodes], retain_graph=True, allow_unused=True
        )
        by_node = dict(zip(nodes, found, strict=True))
        return [by_node[exit_.node] for exit_ in self._exits]

    def change(self, exit_: Exit, slope: Tensor, moments: Mapping[str, Moments]) -> Tensor:
        """``[B, elements]``: how a row's logit moves when an element goes to its mean."""
        value = self.edges[exit_.node].detach()
        known = moments.get(exit_.node.name)
        taken = -value if known is None else known.mean.to(value.dtype) - value
        dim = _batch_dim(exit_.source)
        assert dim is not None
        return (taken * slope).movedim(dim, 0).flatten(1)
