"""share-similar: parameters that are nearly the same, stored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from ..optimizer.ir import Program, Rewriter, sweep
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.quality.verdict import Status
from ..optimizer.report.records import SiteRecord
from ..optimizer.report.report import readable_bytes

#: Parameters of fewer elements are compared with those of the same place in another model alone:
#: many a bias or scale is near another by chance.
_SMALL = 1024


@dataclass(frozen=True)
class ShareSimilar(Pass):
    """Replaces parameters that differ by less than ``within`` from an earlier one by that one.

    Models that were trained on from one checkpoint differ little in their tables. What follows from
    sharing (lookups and layers that have become the same) is `eliminate`'s.
    Loses: the difference, of at most ``within`` of the parameter's norm; judged under the budget,
    and when all together are over it, the one that differs most goes back until they are not.
    Requires: CANONICAL.
    Misses when: there is no data to judge on. It is in no pipeline unless it is asked for.
    """

    name: ClassVar[str] = "share-similar"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    within: float = 0.01

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips runs without data."""
        if ctx.judge is None:
            raise Skip("there is no data to judge shared parameters on")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Finds pairs, and backs off while over budget."""
        assert ctx.judge is not None
        rw = ctx.rewriter(program)
        readers = {str(node.target): node for node in program.graph.find_nodes(op="get_attr")}
        pairs = [pair for pair in self._pairs(program) if rw.site(readers[pair.other])]
        pairs.sort(key=lambda pair: pair.distance)
        while pairs and ctx.judge(_shared(program, pairs)).status is not Status.PASS:
            dropped = pairs.pop()
            reason = f"sharing it with {dropped.first} puts the model over budget"
            ctx.missed("sharing it puts the model over budget", dropped.other)
            _record(program, ctx, dropped, "own", reason)
        if not pairs:
            return
        _share(rw, pairs)
        for pair in pairs:
            reason = f"differs from {pair.first} by {pair.distance:.2%}, within budget"
            _record(program, ctx, pair, "shared", reason)
        saved = sum(program.tensor(pair.first).nbytes for pair in pairs)
        ctx.applied(
            f"stored {len(pairs)} similar parameters once, {readable_bytes(saved)} less",
            *(pair.other for pair in pairs),
        )

    def _pairs(self, program: Program) -> list[_Pair]:
        """Each parameter with the nearest earlier one of its shape that is near enough."""
        kept: dict[object, list[tuple[str, Tensor]]] = {}
        pairs = []
        for name, tensor in program.tensors():
            if not tensor.is_floating_point():
                continue
            place = name.partition(".")[2] if tensor.numel() < _SMALL else ""
            others = kept.setdefault((tensor.shape, tensor.dtype, place), [])
            found = [_Pair(first, name, _distance(other, tensor)) for first, other in others]
            nearest = min(found, key=lambda pair: pair.distance, default=None)
            if nearest is not None and nearest.distance <= self.within:
                pairs.append(nearest)
            else:
                others.append((name, tensor))
        return pairs


@dataclass(frozen=True)
class _Pair:
    """A parameter, an earlier one that may stand for it, and their relative distance."""

    first: str
    other: str
    distance: float


def _distance(one: Tensor, other: Tensor) -> float:
    """The L2 norm of the difference over that of the larger."""
    scale = max(float(one.norm()), float(other.norm()))
    return float((one - other).norm()) / scale if scale else 0.0


def _shared(program: Program, pairs: Sequence[_Pair]) -> Program:
    trial = program.clone()
    _share(Rewriter(trial, "trial"), pairs)
    sweep(trial)
    return trial


def _share(rw: Rewriter, pairs: Sequence[_Pair]) -> None:
    stands_for = {pair.other: pair.first for pair in pairs}
    readers: dict[str, fx.Node] = {}
    for node in rw.program.graph.find_nodes(op="get_attr"):
        first = stands_for.get(str(node.target))
        if first is None:
            readers.setdefault(str(node.target), node)
        else:
            rw.replace(node, readers[first])  # an earlier parameter is read earlier


def _record(program: Program, ctx: PassContext, pair: _Pair, chosen: str, why: str) -> None:
    shape = tuple(program.tensor(pair.first).shape)
    candidate = {"with": pair.first, "distance": pair.distance}
    ctx.report.sites.append(SiteRecord(pair.other, "parameter", shape, chosen, (candidate,), why))
