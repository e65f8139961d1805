"""Which units go: the most time saved for the damage, layer by layer as it pays.

Layers' sparsities are found, not set. Units go in the steps kernels like, cheapest first: each step
takes, of all groups, the one that adds least damage for the time it saves, with the moves of what
has gone already added in, so that units that stand in for one another aren't both let go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, prod

import torch
from torch import Tensor, fx

from ..analysis.cost import Cost, cost_of, elements_of, nbytes_of
from ..analysis.sites import inputs_of, linear_sites
from ..formats import UNPLACED
from ..ir.facts import site_of
from ..ir.operators import gives
from ..ir.pattern import is_op, parameter_name
from ..ir.program import Program
from ..ir.traits import Values
from ..pipeline.passbase import PassContext
from ..precision.kernel_times import Kernel, KernelTimes, Trial
from ..target import Target
from .channels import Channels, Group
from .dependence import Scene
from .importance import Worth
from .removal import Removal, emptied

_aten = torch.ops.aten
#: Widths of tables go down in quarters, so that tables of one width can still be looked up as one.
_WIDTH_STEPS = 4


@dataclass(frozen=True)
class Step:
    """Units that go at once.

    Attributes:
        group: Of which group.
        units: Which.
        damage: ``{task: rise of NE}`` as predicted, with all steps up to this one.
        seconds: Estimated, after it.
        flops: Per row at the largest batch, after it.
    """

    group: int
    units: tuple[int, ...]
    damage: Mapping[str, float]
    seconds: float
    flops: float


@dataclass(frozen=True)
class Plan:
    """Units that go, in order.

    Attributes:
        seconds: Estimated, before any goes.
        flops: Per row, before any goes.
        steps: Cheapest first.
    """

    seconds: float
    flops: float
    steps: tuple[Step, ...]

    def first(self, count: int) -> Plan:
        """Only the first steps."""
        return Plan(self.seconds, self.flops, self.steps[:count])

    def within(self, damage: Mapping[str, float]) -> int:
        """How many steps there are until a task is predicted to be over its limit."""
        for count, step in enumerate(self.steps):
            if any(step.damage[task] > damage.get(task, inf) for task in step.damage):
                return count
        return len(self.steps)

    def until(self, seconds: float) -> int:
        """How many steps it takes until a share of the estimated time is gone; all if never."""
        for count, step in enumerate(self.steps, start=1):
            if 1.0 - step.seconds / max(self.seconds, 1e-30) >= seconds:
                return count
        return len(self.steps)

    @property
    def units(self) -> dict[int, tuple[int, ...]]:
        """Per group, which go."""
        gone: dict[int, list[int]] = {}
        for step in self.steps:
            gone.setdefault(step.group, []).extend(step.units)
        return {group: tuple(sorted(units)) for group, units in gone.items()}

    @property
    def saved(self) -> tuple[float, float]:
        """The shares of the estimated time and of the FLOPs that go."""
        if not self.steps:
            return 0.0, 0.0
        last = self.steps[-1]
        return 1.0 - last.seconds / max(self.seconds, 1e-30), 1.0 - last.flops / max(
            self.flops, 1.0
        )

    def removal(self, found: Channels) -> Removal:
        """What goes."""
        return Removal.of([(found.groups[i], units) for i, units in self.units.items()])


@dataclass(frozen=True)
class Goal:
    """When to stop.

    Attributes:
        damage: ``{task: largest rise of NE}``; tasks without a limit are free.
        flops: Share of the FLOPs to take away.
        seconds: Share of the estimated seconds to take away.
        evidence: Whether what the model goes by may go too (`Group.is_evidence`).
    """

    damage: Mapping[str, float] = field(default_factory=dict)
    flops: float = inf
    seconds: float = inf
    evidence: bool = True


class Bill:
    """What a program costs with parts of it gone: roofline estimates on the target.

    Linears that were measured whole cost the measured time times the share of work left.
    """

    def __init__(
        self, found: Channels, target: Target, batch: int, rates: Mapping[str, float]
    ) -> None:
        self._target = target
        self._rates = rates
        self._scene = found.scene
        graph = found.scene.program.graph
        self.nodes = [n for n in graph.nodes if cost_of(n, 1).nbytes > 0]
        self._base = {n: cost_of(n, batch) for n in self.nodes}
        self._bytes = {n: nbytes_of(n, batch) for n in graph.nodes}

    def of(self, removal: Removal, nodes: Sequence[fx.Node] | None = None) -> Cost:
        """FLOPs and bytes of some nodes, or of all, with what goes gone."""
        costs = [self._node(n, removal) for n in (self.nodes if nodes is None else nodes)]
        return Cost(sum(c.flops for c in costs), sum(c.nbytes for c in costs))

    def seconds(self, removal: Removal, nodes: Sequence[fx.Node] | None = None) -> float:
        """Estimated seconds of some nodes, or of all."""
        chosen = self.nodes if nodes is None else nodes
        return sum(
            self._node(n, removal).seconds(self._target, self._format(n))
            * self._rates.get(n.name, 1.0)
            for n in chosen
        )

    def _format(self, node: fx.Node) -> str:
        """Linears are taken to get the target's low format: pruning comes first."""
        low = is_op(node, _aten.linear.default) and self._target.formats
        return self._target.formats[0] if low else UNPLACED

    def _node(self, node: fx.Node, removal: Removal) -> Cost:
        base = self._base[node]
        out = _left(removal, node)
        if out == 0.0:
            return Cost(0.0, 0.0)
        inputs = [(self._bytes[n], _left(removal, n)) for n in node.all_input_nodes]
        written = self._bytes[node]
        read = sum(size for size, _ in inputs)
        if is_op(node, _aten.embedding.default) or read == 0.0:
            return Cost(base.flops * out, base.nbytes * out)
        left = sum(size * share for size, share in inputs) / read
        nbytes = written * out + (base.nbytes - written) * left
        return Cost(base.flops * self._work(node, removal, out), nbytes)

    def _work(self, node: fx.Node, removal: Removal, out: float) -> float:
        """The share of a node's FLOPs that is left, kernels filling whole tiles of columns."""
        if gives(node, Values.PRODUCT):
            mask = removal.values.get(node.args[0].name)  # type: ignore[union-attr, arg-type]
            inner = 1.0 if mask is None else 1.0 - float(_along(mask).float().mean())
            return out * inner
        weight = node.args[1] if is_op(node, _aten.linear.default) else None
        name = parameter_name(weight)
        if name is None:
            return out
        rows, columns = (_side_left(removal, name, self._scene, dim) for dim in (0, 1))
        places = out * rows[1] / max(rows[0], 1)
        tile = self._target.tile
        whole = tile * -(-rows[0] // tile) / (tile * -(-rows[1] // tile))
        return places * whole * columns[0] / columns[1]


def _left(removal: Removal, node: fx.Node) -> float:
    """The share of a value, or of a parameter, that is left."""
    name = parameter_name(node)
    if name is not None:
        sides = [mask for (owner, _), mask in removal.sides.items() if owner == name]
        return prod((1.0 - float(mask.float().mean()) for mask in sides), start=1.0)
    mask = removal.values.get(node.name)
    return 1.0 if mask is None else 1.0 - float(mask.float().mean())


def _side_left(removal: Removal, name: str, scene: Scene, dim: int) -> tuple[int, int]:
    mask = removal.sides.get((name, dim))
    size = int(scene.program.tensor(name).shape[dim])
    return (size if mask is None else size - int(mask.sum())), size


def _along(mask: Tensor) -> Tensor:
    return mask.flatten(0, -2).all(0) if mask.dim() > 1 else mask


def measured_rates(program: Program, ctx: PassContext) -> dict[str, float]:
    """Per linear, its measured time over the estimate; empty where the target can't be measured.

    In fp32: where formats go is decided after, and their times go with the work alike.
    """
    if not KernelTimes.of(ctx).measured or ctx.target.formats:
        return {}
    batch = max(ctx.batch_sizes)
    sites = linear_sites(program)
    samples = inputs_of(program, sites, ctx.calibration[:1])
    trials = {}
    for site in sites:
        weight = program.tensor(str(parameter_name(site.args[1])))
        kernel = Kernel.of(site, None, elements_of(site, batch) / len(weight))
        if site in samples:
            trials[site] = Trial(kernel, None, samples[site], weight)
    KernelTimes.of(ctx).learn(tuple(trials.values()))
    return {
        site.name: KernelTimes.of(ctx).seconds(trial.kernel)
        / cost_of(site, batch).seconds(ctx.target, UNPLACED)
        for site, trial in trials.items()
    }


def allocate_uniformly(found: Channels, worth: Worth, flops: float, ctx: PassContext) -> Plan:
    """The baseline: the same share of the outputs of every linear, until a share of FLOPs goes."""
    allocation = _Allocation(found, worth, Goal(flops=flops), ctx)
    widest = max((g.units for g in found.groups if g.line), default=1)
    for step in range(1, widest):
        if allocation.reached():
            break
        allocation.take_share(step / widest)
    return allocation.plan()


def allocate(found: Channels, worth: Worth, goal: Goal, ctx: PassContext) -> Plan:
    """Chooses units until the damage, or the share of FLOPs or seconds, is reached."""
    allocation = _Allocation(found, worth, goal, ctx)
    allocation.take_cheapest()
    return allocation.plan()


def too_little(found: Channels, plan: Plan, flops: float, batch: int) -> str:
    """Why less goes than was asked for, and what stands in the way; empty if enough goes."""
    _, gone = plan.saved
    if gone >= flops:
        return ""
    removal = plan.removal(found)
    kept = {refusal.site: refusal.why for refusal in found.refused}
    left = []
    for node in found.scene.program.graph.find_nodes(
        op="call_function", target=_aten.linear.default
    ):
        share = cost_of(node, batch).flops * _left(removal, node) / max(plan.flops, 1.0)
        why = kept.get(site_of(node), "what is left of it is the least that may stay")
        left.append((share, f"{site_of(node)!r} ({share:.0%} of the FLOPs): {why}"))
    staying = "; ".join(text for _, text in sorted(left, reverse=True)[:4])
    return (
        f"{flops:.0%} of the FLOPs were to go, and {gone:.0%} can go without breaking what depends "
        f"on it. What stays: {staying}. Ask for less, or take that part out of the model."
    )


class _Allocation:
    def __init__(self, found: Channels, worth: Worth, goal: Goal, ctx: PassContext) -> None:
        self.found = found
        self.worth = worth
        self.goal = goal
        self.tile = ctx.target.tile
        rates = measured_rates(found.scene.program, ctx)
        self.bill = Bill(found, ctx.target, max(ctx.batch_sizes), rates)
        self.removal = Removal({}, {}, {}, {})
        self.gone: dict[int, list[int]] = {}
        self.steps: list[Step] = []
        self.moved = {task: torch.zeros(len(m)) for task, m in worth.moves.items()}
        self._squares = {task: m.square().sum(0) for task, m in worth.moves.items()}
        self.closed: set[int] = {
            i
            for i, group in enumerate(found.groups)
            if not worth.measured[i] or (group.is_evidence and not goal.evidence)
        }
        self.before = self.bill.seconds(self.removal)
        self.flops = self.bill.of(self.removal).flops
        self.touched = [self._nodes_of(group) for group in found.groups]

    def take_cheapest(self) -> None:
        """Takes steps until none is left or the goal is reached."""
        while not self.reached():
            step = self._best()
            if step is None:
                return
            group, units, after = step
            if emptied(self.found.scene, after) is not None:
                self.closed.add(group)
                continue
            self._take(group, units)

    def take_share(self, share: float) -> None:
        """Takes the least of every linear's outputs, so that a share of them is gone."""
        marginal = self._marginal()
        for index, group in enumerate(self.found.groups):
            gone = len(self.gone.get(index, ()))
            if not group.line or index in self.closed:
                continue
            while True:
                step, least = self._step(group, group.units - gone)
                if gone + step > share * group.units or group.units - gone - step < least:
                    break
                units = self._next(index, group, marginal)
                after = self.removal | Removal.of([(group, units)])
                if emptied(self.found.scene, after) is not None:
                    break
                self._take(index, units)
                gone += len(units)

    def _take(self, group: int, units: list[int]) -> None:
        self.gone.setdefault(group, []).extend(units)
        self.removal = self.removal | Removal.of([(self.found.groups[group], units)])
        for task, moved in self.moved.items():
            moved += self._moves(task, group, units).sum(1)
        damage = {task: float(moved.square().mean()) for task, moved in self.moved.items()}
        seconds, flops = self.bill.seconds(self.removal), self.bill.of(self.removal).flops
        self.steps.append(Step(group, tuple(units), damage, seconds, flops))

    def plan(self) -> Plan:
        """What has been taken so far."""
        return Plan(self.before, self.flops, tuple(self.steps))

    def reached(self) -> bool:
        """Whether enough has been taken."""
        faster, saved = self.plan().saved
        return saved >= self.goal.flops or faster >= self.goal.seconds

    def _best(self) -> tuple[int, list[int], Removal] | None:
        """The step of least damage for the seconds it saves."""
        best, least = None, inf
        marginal = self._marginal()
        for index, group in enumerate(self.found.groups):
            units = self._next(index, group, marginal)
            if not units:
                continue
            added = self._added(index, units)
            if added is None:
                continue
            after = self.removal | Removal.of([(group, units)])
            nodes = self.touched[index]
            saved = self.bill.seconds(self.removal, nodes) - self.bill.seconds(after, nodes)
            if saved <= 1e-4 * self.before / max(len(self.found.groups), 1):
                continue
            if added / saved < least:
                best, least = (index, units, after), added / saved
        return best

    def _marginal(self) -> dict[str, Tensor]:
        """What each unit would add to each task's damage, ``[units]``."""
        return {
            task: (2.0 * (self.moved[task] @ moves) + self._squares[task]) / len(moves)
            for task, moves in self.worth.moves.items()
        }

    def _next(self, index: int, group: Group, marginal: Mapping[str, Tensor]) -> list[int]:
        """The units of a group that would go next: those that add least."""
        if index in self.closed:
            return []
        gone = set(self.gone.get(index, ()))
        left = group.units - len(gone)
        step, least = self._step(group, left)
        if left - step < least:
            return []
        order = sum(
            marginal[task][self.worth.units(index)] / max(self._limit(task), 1e-30)
            for task in marginal
        )
        assert isinstance(order, Tensor)
        return [u for u in torch.argsort(order, stable=True).tolist() if u not in gone][:step]

    def _step(self, group: Group, left: int) -> tuple[int, int]:
        """How many units go at once, and how many must stay."""
        if group.line and group.units >= 2 * self.tile:
            return (left - 1) % self.tile + 1, self.tile
        if group.what == "columns" and group.units >= 2 * _WIDTH_STEPS:
            step = group.units // _WIDTH_STEPS
            return step, step
        return 1, 1

    def _moves(self, task: str, group: int, units: Sequence[int]) -> Tensor:
        start = self.worth.starts[group]
        return self.worth.moves[task][:, [start + unit for unit in units]]

    def _added(self, group: int, units: Sequence[int]) -> float | None:
        """How much nearer to its limit a step brings the task nearest to it; None if beyond."""
        added = 0.0
        for task, moved in self.moved.items():
            after = float((moved + self._moves(task, group, units).sum(1)).square().mean())
            if after > self.goal.damage.get(task, inf):
                return None
            added += (after - float(moved.square().mean())) / max(self._limit(task), 1e-30)
        return added

    def _limit(self, task: str) -> float:
        limit = self.goal.damage.get(task, inf)
        return 1.0 if limit == inf else limit

    def _nodes_of(self, group: Group) -> list[fx.Node]:
        """The nodes whose cost may change when units of a group go."""
        touched = {key for key in group.masks if isinstance(key, fx.Node)}
        names = {name for name, _ in group.sides}
        return [
            n
            for n in self.bill.nodes
            if n in touched
            or any(i in touched or parameter_name(i) in names for i in n.all_input_nodes)
        ]
