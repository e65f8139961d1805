"""interpolate-windows: heads for many conversion windows as two heads and a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx

from ..optimizer.heads.window_heads import Fit, Head
from ..optimizer.heads.windows import Windows
from ..optimizer.ir import BATCH, Feature, FeatureKind, Program, Rewriter, Side, sweep
from ..optimizer.ir.pattern import dtype_of, is_op, shape_of
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.quality.verdict import Status
from ..optimizer.report.records import Kind, SiteRecord

_aten = torch.ops.aten


@dataclass(frozen=True)
class InterpolateWindows(Pass):
    """Replaces heads for fixed conversion windows by two and a formula for any window in between.

    The window is one more feature of each row, and the score for it one more output; the heads that
    were dropped are computed by the formula at their own window. `rankc.Windows` has the options.

    Method: personalized interpolation (2501.14103), ``p = p_a + α (p_b − p_a)``. α follows from
    exponential delays, or from an empirical distribution; where neither is given it is fitted to
    the heads' scores on calibration rows.
    Loses: the misfit at the windows that were dropped; judged under the budget, and the head that
    fits worst comes back, and splits the range, until it is within.
    Requires: CANONICAL.
    Misses when: there is no data, there are no heads called like windows, or something else than an
    output needs a head.
    """

    name: ClassVar[str] = "interpolate-windows"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    keeps_contract: ClassVar[bool] = False
    heads: tuple[str, ...] = ()
    delays: str = "auto"
    rate: float = 0.0
    cdf: tuple[str, ...] = ()
    rate_feature: str = ""
    default: float = 0.0
    feature: str = "window"
    output: str = "at_window"

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips runs without data, and programs that have been through here."""
        if ctx.judge is None or not ctx.calibration:
            raise Skip("there is no data to fit windows to, and to judge the fit on")
        if self.feature in program.signature.names:
            raise Skip(f"there is a feature {self.feature!r} already")
        if not self.heads and not Windows().found_in(program.signature):
            raise Skip("no heads are called like windows of one thing, as buy_1d and buy_7d")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Fits α, then drops as many heads as the budget allows."""
        assert ctx.judge is not None
        windows = self._windows().of(program.signature)
        try:
            heads = [Head.of(program, task, at) for task, at in windows.pairs]
        except ValueError as error:
            raise Skip(str(error)) from error
        if len({head.is_logit for head in heads}) > 1:
            raise Skip("some of the heads give logits, others probabilities")
        rw = ctx.rewriter(program)
        fit = Fit.of(program, windows, heads, ctx.calibration)
        kept = [heads[0], heads[-1]]
        for head in heads[1:-1]:
            if not head.is_free:
                ctx.missed("something else than its output needs the head", head.task.name)
            if not head.is_free or not rw.site(head.value):
                kept.append(head)
        while True:
            kept.sort(key=lambda head: head.window)
            if len(kept) == len(heads):
                break
            trial = program.clone()
            _Formula(Rewriter(trial, "trial"), windows, heads, kept, fit).emit()
            sweep(trial)
            if ctx.judge(trial).status is Status.PASS:
                break
            worst = max((h for h in heads if h not in kept), key=lambda h: fit.misfit(h, kept))
            ctx.missed("computing it by the formula is over budget", worst.task.name)
            kept.append(worst)
        _Formula(rw, windows, heads, kept, fit).emit()
        self._tell(heads, kept, fit, ctx)

    def _windows(self) -> Windows:
        cdf = tuple((float(delay), float(share)) for delay, share in map(_pair, self.cdf))
        return Windows(
            heads=tuple((task, float(at)) for task, at in map(_pair, self.heads)),
            delays=self.delays,
            rate=self.rate or None,
            cdf=cdf,
            rate_feature=self.rate_feature,
            default=self.default or None,
            feature=self.feature,
            output=self.output,
        )

    def _tell(
        self, heads: Sequence[Head], kept: Sequence[Head], fit: Fit, ctx: PassContext
    ) -> None:
        dropped = [head for head in heads if head not in kept]
        for head in heads:
            chosen, off, reason = "head", {}, "the others are computed from it"
            if head in dropped:
                chosen = "formula"
                off = {"misfit": fit.misfit(head, kept), "bias": fit.bias(head, kept)}
                reason = (
                    f"computed at {head.window:g}: its probability is off by {off['misfit']:.2%} "
                    f"(rms), on average by {off['bias']:+.2%}"
                )
            record = SiteRecord(head.task.name, "window", (), chosen, (off,), reason)
            ctx.report.sites.append(record)
        ctx.remark(Kind.ANALYSIS, fit.describe())
        low, high = heads[0].window, heads[-1].window
        ctx.applied(
            f"made {self.feature!r} a feature, from {low:g} to {high:g}; dropped "
            f"{len(dropped)} of {len(heads)} heads for fixed windows",
            *(head.task.name for head in dropped),
        )


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.rpartition("=")
    return name, value


class _Formula:
    """Writes the formula into a graph."""

    def __init__(
        self,
        rw: Rewriter,
        windows: Windows,
        heads: Sequence[Head],
        kept: Sequence[Head],
        fit: Fit,
    ) -> None:
        here = {node.name: node for node in rw.program.graph.nodes}
        self.rw, self.windows, self.heads, self.kept, self.fit = rw, windows, heads, kept, fit
        self.values = {head.task.name: here[head.value.name] for head in heads}
        self.joins = {h.task.name: here[h.joined.name] for h in heads if h.joined is not None}
        self.like = [self.values[head.task.name] for head in kept]

    def emit(self) -> None:
        """Adds feature and output, and lets the formula stand for the dropped heads."""
        (output,) = self.rw.program.graph.find_nodes(op="output")
        low, high = self.heads[0].window, self.heads[-1].window
        default = self.windows.default or high
        asked = self._feature(self.windows.feature, default, (low, high))
        joins = list(dict.fromkeys(self.joins.values()))
        with self.rw.before(joins[0] if joins else output):
            given, other = self._scores()
            weights = self._weights(asked)
            dropped = [head for head in self.heads if head not in self.kept]
            fixed = [self.fit.weights(head.window, self.kept) for head in dropped]
            columns = self._mixed(given, other, fixed) if dropped else []
            wanted = self._score(self._dot(weights, given), other and self._dot(weights, other))
        for head, column in zip(dropped, columns, strict=True):
            self._stand_in(head, column)
        self._return(wanted, joins)

    def _feature(self, name: str, default: float, bounds: tuple[float, float]) -> fx.Node:
        feature = Feature(
            name,
            FeatureKind.DENSE,
            "float32",
            (BATCH,),
            Side.CONTEXT,
            default=default,
            bounds=bounds,
        )
        return self.rw.add_feature(feature)

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        return self.rw.emit(target, *args, like=self.like)

    def _constant(self, name: str, values: Any) -> fx.Node:
        return self.rw.parameter(f"window_{name}", torch.tensor(values, dtype=torch.float32))

    def _scores(self) -> tuple[fx.Node, fx.Node | None]:
        """The kept heads' probabilities ``[B, k]``, and of logits those of no conversion."""
        flat = [
            self._emit(_aten.squeeze.dims, value, [1]) if len(shape_of(value)) == 2 else value
            for value in self.like
        ]
        pile = self._emit(_aten.stack.default, flat, 1)
        if not self.kept[0].is_logit:
            return pile, None
        negative = self._emit(_aten.neg.default, pile)
        return self._emit(_aten.sigmoid.default, pile), self._emit(_aten.sigmoid.default, negative)

    def _weights(self, asked: fx.Node) -> fx.Node:
        """What each kept head counts at the window each row asks for, ``[B, k]``."""
        lows = [head.window for head in self.kept[:-1]]
        highs = [head.window for head in self.kept[1:]]
        wide = self._emit(_aten.unsqueeze.default, asked, 1)
        is_exponential = self.fit.form == "exponential"
        alphas = (self._exponential if is_exponential else self._empirical)(wide, lows, highs)
        # One minus the first, the differences of neighbours, the last.
        count = len(lows)
        steps = np.zeros((count + 1, count))
        steps[range(count), range(count)] = -1.0
        steps[range(1, count + 1), range(count)] += 1.0
        first = self._constant("first", [1.0, *[0.0] * count])
        return self._emit(_aten.linear.default, alphas, self._constant("steps", steps), first)

    def _passed(self, wide: fx.Node, name: str, lows: Any, highs: Any) -> fx.Node:
        """How much of each segment has passed by the window of each row, ``[B, n]``."""
        low = self._constant(f"{name}_low", lows)
        capped = self._emit(_aten.minimum.default, wide, self._constant(f"{name}_high", highs))
        return self._emit(_aten.sub.Tensor, self._emit(_aten.maximum.default, capped, low), low)

    def _exponential(self, wide: fx.Node, lows: list[float], highs: list[float]) -> fx.Node:
        passed = self._passed(wide, "segment", lows, highs)
        spans = [high - low for low, high in zip(lows, highs, strict=True)]
        floor = 1e-6 / max(spans)
        rate = max(self.fit.rate, floor)
        if not self.windows.rate_feature:
            part = self._expm1(self._emit(_aten.mul.Tensor, passed, -rate))
            whole = [1.0 / np.expm1(-rate * span) for span in spans]
            return self._emit(_aten.mul.Tensor, part, self._constant("whole", whole))
        own = self._feature(self.windows.rate_feature, rate, (0.0, float(np.finfo(np.float32).max)))
        least = self._emit(_aten.clamp.default, self._emit(_aten.unsqueeze.default, own, 1), floor)
        slope = self._emit(_aten.neg.default, least)
        part = self._expm1(self._emit(_aten.mul.Tensor, passed, slope))
        spread = self._emit(_aten.mul.Tensor, slope, self._constant("span", spans))
        return self._emit(_aten.div.Tensor, part, self._expm1(spread))

    def _expm1(self, value: fx.Node) -> fx.Node:
        """``2 t / (1 − t)`` with ``t = tanh(x / 2)``: ONNX has no expm1, and exp(x) − 1 cancels."""
        half = self._emit(_aten.tanh.default, self._emit(_aten.mul.Tensor, value, 0.5))
        below = self._emit(_aten.add.Tensor, self._emit(_aten.neg.default, half), 1.0)
        return self._emit(_aten.mul.Tensor, self._emit(_aten.div.Tensor, half, below), 2.0)

    def _empirical(self, wide: fx.Node, lows: list[float], highs: list[float]) -> fx.Node:
        """A sum of straight pieces: how much of each has passed, times its slope."""
        low, high = lows[0], highs[-1]
        inner = [delay for delay, _ in self.fit.knots if low < delay < high]
        places = sorted({low, high, *inner, *lows, *highs})
        pieces = list(pairwise(places))
        slopes = np.zeros((len(lows), len(pieces)))
        for row, ends in enumerate(zip(lows, highs, strict=True)):
            for column, (start, stop) in enumerate(pieces):
                if ends[0] <= start and stop <= ends[1]:
                    rise = self.fit.alpha(stop, *ends) - self.fit.alpha(start, *ends)
                    slopes[row, column] = rise / (stop - start)
        passed = self._passed(wide, "piece", *zip(*pieces, strict=True))
        return self._emit(_aten.linear.default, passed, self._constant("slopes", slopes))

    def _dot(self, weights: fx.Node, values: fx.Node) -> fx.Node:
        return self._emit(_aten.sum.dim_IntList, self._emit(_aten.mul.Tensor, weights, values), [1])

    def _mixed(
        self, given: fx.Node, other: fx.Node | None, fixed: list[list[float]]
    ) -> list[fx.Node]:
        """The dropped heads at their own windows, ``[B]`` each."""
        weights = self._constant("fixed", fixed)
        likely = self._emit(_aten.linear.default, given, weights)
        unlikely = None if other is None else self._emit(_aten.linear.default, other, weights)
        scores = self._score(likely, unlikely)
        return [self._emit(_aten.select.int, scores, 1, index) for index in range(len(fixed))]

    def _score(self, likely: fx.Node, unlikely: fx.Node | None) -> fx.Node:
        """A probability, or the logit of one, from the probabilities of both outcomes."""
        if unlikely is None:
            return likely
        # The sigmoid of a score of thousands is 0; the formula's logit stays finite all the same.
        least = torch.finfo(torch.float32).tiny
        sure = [self._emit(_aten.clamp.default, value, least) for value in (likely, unlikely)]
        logs = [self._emit(_aten.log.default, value) for value in sure]
        return self._emit(_aten.sub.Tensor, *logs)

    def _stand_in(self, head: Head, column: fx.Node) -> None:
        """Lets a column ``[B]`` take the place of a dropped head."""
        value = self.values[head.task.name]
        join = self.joins.get(head.task.name)
        (output,) = self.rw.program.graph.find_nodes(op="output")
        with self.rw.before(join or output):
            if len(shape_of(value)) == 2:
                column = self._emit(_aten.unsqueeze.default, column, 1)
        assert dtype_of(column) == dtype_of(value)
        if join is None:
            self.rw.set_output(head.task.output, column)
        else:
            parts: Any = join.args[0]
            self.rw.set_argument(join, 0, [column if part is value else part for part in parts])

    def _return(self, wanted: fx.Node, joins: list[fx.Node]) -> None:
        """Returns the score at the asked window: as a column more of one output, or by itself."""
        if len(joins) != 1 or len(self.joins) < len(self.heads):
            self.rw.add_output(self.windows.output, wanted)
            return
        (join,) = joins
        parts: Any = join.args[0]
        with self.rw.before(join):
            if is_op(join, _aten.cat.default):
                wanted = self._emit(_aten.unsqueeze.default, wanted, 1)
        self.rw.set_argument(join, 0, [*parts, wanted])
