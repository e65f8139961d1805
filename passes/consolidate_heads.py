"""consolidate-heads: the gates and mixtures of a multi-task model at once."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.mixtures import Expert, Mixture, find_mixtures
from ..optimizer.analysis.sites import is_plain_linear
from ..optimizer.ir import Program, Rewriter, facts_of, site_of
from ..optimizer.ir.pattern import argument, dtype_of, is_op, parameter_name, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext

_aten = torch.ops.aten
#: Added to the weight of an expert that a gate doesn't know: its softmax is 0. Finite, since
#: models with infinite constants are taken for broken.
_ABSENT = -1e30


@dataclass(frozen=True)
class ConsolidateHeads(Pass):
    """Replaces mixtures of experts by one batched product of all gates and all experts.

    Mixtures over the same experts become one product ``[B, T, E] · [B, E, D]``, however each was
    written. Where their gates are softmaxes of linears over one value, these become one linear and
    one softmax, and mixtures over overlapping experts (PLE) join too: a gate gives an expert that
    it doesn't know the weight 0.

    Method: multi-gate mixtures (MMoE, doi:10.1145/3219819.3220007; PLE,
    doi:10.1145/3383313.3412236) as one grouped product.
    Exact because: the same products are added up, in another order, and products with 0.
    Pays because: ONNX Runtime passes over all experts once instead of three times a task. One
    thread, 3 tasks of 8 experts of 256 columns, batch 1, 64, 512, 2048: 19, 111, 1543 and 6243 us
    multiplied and summed, 13, 46, 461 and 1919 us as one product; 3 experts of 8 columns 14, 38,
    208, 798 and 12, 22, 85, 301.
    The experts and towers stay linears of their own, which is fastest there: as batched products
    ``[E, B, K] · [E, K, N]`` their weights can't be packed ahead (8 times 845 to 512, batch 1, 4,
    16, 64, 512: 513, 1267, 1751, 4472 and 26747 us, apart 536, 571, 964, 3337 and 24227), and in
    one wide linear their outputs must be split (a whole MMoE of that size at batch 1, 64, 512,
    2048: 0.98, 1.03, 1.09 and 1.11 times the time; `merge-linears` does it where it pays).
    Requires: CANONICAL.
    Misses when: the weighted experts are used elsewhere too, an expert is narrower than
    ``min_width``, or one mixture feeds an expert of the other. Joined mixtures over different
    experts may multiply at most ``max_waste`` times as much.
    """

    name: ClassVar[str] = "consolidate-heads"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    min_width: int = 4
    max_waste: float = 4.0

    def run(self, program: Program, ctx: PassContext) -> None:
        """Groups what is found in graph order, then rewrites group by group."""
        rw = ctx.rewriter(program)
        groups: list[_Group] = []
        for mixture in find_mixtures(program):
            if mixture.width < self.min_width:
                ctx.missed(f"its experts have fewer than {self.min_width} columns", mixture.root)
            elif mixture.is_shared:
                ctx.missed("its weighted experts are used elsewhere too", mixture.root)
            elif rw.site(mixture.root):
                self._add(groups, mixture)
        became: dict[fx.Node, fx.Node] = {}
        for found in groups:
            if len(found.mixtures) == 1 and found.is_done:
                continue
            sites = list(dict.fromkeys(site_of(m.root) for m in found.mixtures))
            group = found.after(became)
            count = len(group.experts)
            became |= group.rewrite(rw)
            ctx.applied(f"computed {_mixtures(group)} of {count} experts by one product", *sites)

    def _add(self, groups: list[_Group], mixture: Mixture) -> None:
        """Joins the first group that takes the mixture, or begins a new one."""
        for index, group in enumerate(groups):
            joined = _Group((*group.mixtures, mixture))
            if self._fits(group, mixture, joined):
                groups[index] = joined
                return
        groups.append(_Group((mixture,)))

    def _fits(self, group: _Group, mixture: Mixture, joined: _Group) -> bool:
        first = group.mixtures[0]
        if mixture.width != first.width or dtype_of(mixture.root) != dtype_of(first.root):
            return False
        if any(mixture.experts != other.experts for other in group.mixtures):
            apart = sum(len(m.experts) for m in joined.mixtures)
            together = len(joined.mixtures) * len(joined.experts)
            shared = len(joined.experts) < len(group.experts) + len(mixture.experts)
            if not (joined.gates_merge and shared and together <= self.max_waste * apart):
                return False
        return not joined.feeds_itself


def _mixtures(group: _Group) -> str:
    count = len(group.mixtures)
    return "a mixture" if count == 1 else f"{count} mixtures"


class _Group:
    """Mixtures that become one product."""

    def __init__(self, mixtures: tuple[Mixture, ...]) -> None:
        self.mixtures = mixtures
        self.experts = tuple(dict.fromkeys(e for m in mixtures for e in m.experts))
        self.width = mixtures[0].width

    def after(self, became: Mapping[fx.Node, fx.Node]) -> _Group:
        """The same where other mixtures, which may be experts of these, have been replaced."""
        return _Group(
            tuple(
                replace(
                    mixture,
                    gate=became.get(mixture.gate, mixture.gate),
                    experts=tuple(
                        replace(expert, value=became.get(expert.value, expert.value))
                        for expert in mixture.experts
                    ),
                )
                for mixture in self.mixtures
            )
        )

    @property
    def gates_merge(self) -> bool:
        """Whether every gate is a softmax, of its own, of a plain linear over one value."""
        linears = [_linear_of(mixture) for mixture in self.mixtures]
        known = [linear for linear in linears if linear is not None]
        sources = {(linear.args[0], dtype_of(linear)) for linear in known}
        return len(known) == len(linears) and len(sources) == 1

    @property
    def is_done(self) -> bool:
        """Whether a single mixture is in its best form already."""
        (mixture,) = self.mixtures
        pile = mixture.root.args[1]
        return is_op(mixture.root, _aten.bmm.default) and (
            is_op(pile, _aten.reshape.default) and not is_op(mixture.root.args[0], *_PERMUTES)
        )

    @property
    def feeds_itself(self) -> bool:
        """Whether a mixture is needed to compute an expert or a gate."""
        inputs = self._inputs()
        roots = {mixture.root for mixture in self.mixtures}
        pending, seen = list(inputs), set(inputs)
        while pending:
            node = pending.pop()
            if node in roots:
                return True
            fresh = [source for source in node.all_input_nodes if source not in seen]
            seen.update(fresh)
            pending += fresh
        return False

    def _inputs(self) -> list[fx.Node]:
        values = [expert.value for expert in self.experts]
        return [*values, *(mixture.gate for mixture in self.mixtures)]

    def rewrite(self, rw: Rewriter) -> dict[fx.Node, fx.Node]:
        """Emits the product behind the last of its inputs; returns what replaces what."""
        order = {node: index for index, node in enumerate(rw.program.graph.nodes)}
        last = max(self._inputs(), key=order.__getitem__)
        for mixture in self.mixtures:
            rw.defer(mixture.root, last)
        order = {node: index for index, node in enumerate(rw.program.graph.nodes)}
        first = min((mixture.root for mixture in self.mixtures), key=order.__getitem__)
        roots = [mixture.root for mixture in self.mixtures]
        count, width = len(roots), self.width
        with rw.before(first):
            merge = count > 1 and self.gates_merge
            gates = self._merged_gates(rw) if merge else self._joined_gates(rw)
            pile = rw.emit(
                _aten.reshape.default, self._pile(rw), [-1, len(self.experts), width], like=roots
            )
            mixed = rw.emit(_aten.bmm.default, gates, pile, like=roots)
            flat = rw.emit(_aten.reshape.default, mixed, [-1, count * width], like=roots)
            parts = [flat]
            if count > 1:
                split = rw.emit(
                    _aten.split_with_sizes.default, flat, [width] * count, 1, like=roots
                )
                parts = [
                    rw.emit(operator.getitem, split, index, like=root)
                    for index, root in enumerate(roots)
                ]
        return {
            old: new
            for mixture, part in zip(self.mixtures, parts, strict=True)
            for old, new in _hand_over(rw, mixture, part)
        }

    def _pile(self, rw: Rewriter) -> fx.Node:
        """All experts side by side: ``[B, E * D]``."""
        pieces = []
        for value, start, stop in _runs(self.experts, self.width):
            if (start, stop) == (0, shape_of(value)[1]):
                pieces.append(value)
            else:
                pieces.append(rw.emit(_aten.slice.Tensor, value, 1, start, stop, like=value))
        return rw.emit(_aten.cat.default, pieces, 1, like=pieces) if len(pieces) > 1 else pieces[0]

    def _joined_gates(self, rw: Rewriter) -> fx.Node:
        """The gates as they are, ``[B, T, E]``."""
        gates = [mixture.gate for mixture in self.mixtures]
        if len(gates) == 1:
            return rw.emit(_aten.unsqueeze.default, gates[0], 1, like=gates)
        row = rw.emit(_aten.cat.default, gates, 1, like=gates)
        shape = [-1, len(gates), len(self.experts)]
        return rw.emit(_aten.reshape.default, row, shape, like=gates)

    def _merged_gates(self, rw: Rewriter) -> fx.Node:
        """The gates by one linear and one softmax, ``[B, T, E]``."""
        linears = [_linear_of(mixture) for mixture in self.mixtures]
        own = [linear for linear in linears if linear is not None]
        place = {expert: index for index, expert in enumerate(self.experts)}
        count, known = len(self.experts), []
        weights, biases = [], []
        for mixture, linear in zip(self.mixtures, own, strict=True):
            rows = torch.tensor([place[expert] for expert in mixture.experts])
            weight, bias = _parameters(rw, linear)
            weights.append(weight.new_zeros(count, weight.shape[1]).index_copy(0, rows, weight))
            biases.append(bias.new_zeros(count).index_copy(0, rows, bias))
            known.append(torch.zeros(count, dtype=torch.bool).index_fill(0, rows, True))
        base = str(own[0].args[1].target).replace(".", "_")  # type: ignore[union-attr]
        arguments = [own[0].args[0], rw.parameter(f"{base}_gates", torch.cat(weights))]
        if any(argument(linear, 2, "bias") is not None for linear in own):
            arguments.append(rw.parameter(f"{base}_gates_bias", torch.cat(biases)))
        row = rw.emit(_aten.linear.default, *arguments, like=own)
        logits = rw.emit(_aten.reshape.default, row, [-1, len(own), count], like=own)
        mask = torch.stack(known)
        if not bool(mask.all()):
            absent = torch.zeros(mask.shape, dtype=dtype_of(row)).masked_fill(~mask, _ABSENT)
            unknown = rw.parameter(f"{base}_gates_absent", absent)
            logits = rw.emit(_aten.add.Tensor, logits, unknown, like=own)
        softmaxes = [mixture.gate for mixture in self.mixtures]
        return rw.emit(_aten.softmax.int, logits, -1, like=softmaxes)


_PERMUTES = (_aten.permute.default, _aten.transpose.int)


def _linear_of(mixture: Mixture) -> fx.Node | None:
    """The plain linear that the gate is the softmax of, where nothing else needs either."""
    gate = mixture.gate
    if not is_op(gate, _aten.softmax.int) or gate.args[1] not in (1, -1) or len(gate.args) > 2:
        return None
    linear = gate.args[0]
    if not is_plain_linear(linear) or gate.kwargs:
        return None
    assert isinstance(linear, fx.Node)
    alone = len(linear.users) == 1 and mixture.owns_gate
    return linear if alone and facts_of(linear).precision is None else None


def _parameters(rw: Rewriter, linear: fx.Node) -> tuple[Tensor, Tensor]:
    """Weight ``[E, K]`` and bias ``[E]``, of zeros where there is none."""
    name, bias = parameter_name(linear.args[1]), argument(linear, 2, "bias")
    assert name is not None
    weight = rw.program.tensor(name)
    known = None if bias is None else parameter_name(bias)
    return weight, weight.new_zeros(len(weight)) if known is None else rw.program.tensor(known)


def _runs(experts: Sequence[Expert], width: int) -> Iterator[tuple[fx.Node, int, int]]:
    """The experts with neighbouring columns of one value joined: value, first and last column."""
    value, start = experts[0].value, experts[0].start
    stop = start
    for expert in experts:
        if (expert.value, expert.start) != (value, stop):
            yield value, start, stop
            value, start = expert.value, expert.start
        stop = expert.start + width
    yield value, start, stop


def _hand_over(rw: Rewriter, mixture: Mixture, part: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Lets ``part`` ``[B, D]`` take the place of what users see of a mixture."""
    for output in mixture.outputs:
        new = part
        shape = shape_of(output)
        if len(shape) > 2:
            with rw.before(output):
                sizes = [-1, *shape[1:]]
                new = rw.emit(_aten.reshape.default, part, sizes, like=mixture.root)
        rw.replace(output, new)
        yield output, new
