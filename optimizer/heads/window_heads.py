"""Heads for fixed conversion windows: where they are, and how conversions come in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from ..ir.heads import JOINS, columns_of, elementwise
from ..ir.pattern import is_op
from ..ir.program import Features, Program
from ..ir.signature import Score, Task
from .windows import Knots, Windows, between, empirical, exponential, fit_rate

_aten = torch.ops.aten
FloatArray = NDArray[np.float64]
#: How much further off (rms) the share that has come may be for delays to pass as exponential.
_OFF = 0.025


@dataclass(frozen=True)
class Head:
    """One of the heads.

    Attributes:
        task: The task.
        window: Its window.
        value: The node of its score, ``[B]`` or ``[B, 1]``: an output, or a part of a joined one.
        joined: The node that joins the parts of an output, or None.
        is_logit: Whether the value is a logit, not a probability.
    """

    task: Task
    window: float
    value: fx.Node
    joined: fx.Node | None
    is_logit: bool

    @classmethod
    def of(cls, program: Program, name: str, window: float) -> Head:
        """The head of a task.

        Raises:
            ValueError: Its score isn't computed by a head of its own.
        """
        task = next(task for task in program.signature.tasks if task.name == name)
        (output,) = program.graph.find_nodes(op="output")
        value: Any = output.args[0][program.signature.outputs.index(task.output)]
        is_logit = task.score is not Score.PROBABILITY
        if task.column is None:
            return cls(task, window, value, None, is_logit)
        steps = elementwise(value)
        join: Any = steps[-1].args[0] if steps else value
        part = columns_of(value)[task.column]
        sigmoids = [step for step in steps if is_op(step, _aten.sigmoid.default)]
        others = [s for s in steps if not is_op(s, _aten.sigmoid.default, _aten.reshape.default)]
        if not is_op(join, *JOINS) or others or len(sigmoids) > 1 or len(join.users) > 1:
            raise ValueError(f"the score of {name!r} isn't computed by a head of its own")
        return cls(task, window, part, join, is_logit or bool(sigmoids))

    @property
    def is_free(self) -> bool:
        """Whether only the output needs the value."""
        return len(self.value.users) == 1

    def probabilities(self, outputs: Mapping[str, Tensor]) -> FloatArray:
        """The task's probabilities ``[N]`` among outputs."""
        value = outputs[self.task.output].double()
        value = value.reshape(len(value), -1)[:, self.task.column or 0]
        if self.task.score is not Score.PROBABILITY:
            value = value.sigmoid()
        return value.numpy()


@dataclass(frozen=True)
class Fit:
    """How conversions come between the shortest and the longest window.

    Attributes:
        form: ``"exponential"`` or ``"empirical"``.
        rate: β of exponential delays.
        knots: The empirical distribution, as far as it matters: 0 and 1 at the ends.
        scores: The heads' probabilities on calibration rows, by task.
        errors: The rms error of α at the heads' windows, by form.
    """

    form: str
    rate: float
    knots: Knots
    scores: dict[str, FloatArray]
    errors: dict[str, float]

    @classmethod
    def of(
        cls, program: Program, windows: Windows, heads: Sequence[Head], batches: Sequence[Features]
    ) -> Fit:
        """Fits what wasn't given to the heads' scores on calibration rows."""
        runs = [program.run(batch) for batch in batches]
        scores = {
            h.task.name: np.concatenate([h.probabilities(run) for run in runs]) for h in heads
        }
        low, high = heads[0].window, heads[-1].window
        first, last = (scores[head.task.name] for head in (heads[0], heads[-1]))
        spread = last - first
        inner = [head.window for head in heads[1:-1]]
        total = float(spread @ spread) or 1.0
        alphas = [float((scores[h.task.name] - first) @ spread) / total for h in heads[1:-1]]
        rising = np.maximum.accumulate(np.clip([0.0, *alphas, 1.0], 0.0, 1.0))
        places = (low, *inner, high)
        knots = windows.cdf or between(places, list(map(float, rising)))
        rate = windows.rate or (fit_rate(inner, alphas, low, high) if inner else 0.0)
        errors = {
            "exponential": exponential(inner, rate, low, high) - np.array(alphas),
            "empirical": empirical(inner, knots, low, high) - np.array(alphas),
        }
        rms = {
            form: float(np.sqrt(np.square(error).mean())) if inner else 0.0
            for form, error in errors.items()
        }
        form = windows.delays
        if form == "auto":
            # Fitted to the heads, a distribution meets them all; the law has the better shape in
            # between wherever it holds.
            holds = rate > 0.0 and rms["exponential"] <= rms["empirical"] + _OFF
            form = "exponential" if holds else "empirical"
        return cls(form, rate, knots, scores, rms)

    def alpha(self, window: float, low: float, high: float) -> float:
        """α at one window of a segment."""
        if self.form == "exponential":
            return float(exponential(window, self.rate, low, high))
        return float(empirical(window, self.knots, low, high))

    def weights(self, window: float, kept: Sequence[Head]) -> list[float]:
        """What each kept head counts at a window; they add up to 1."""
        alphas = [self.alpha(window, a.window, b.window) for a, b in pairwise(kept)]
        return [a - b for a, b in zip([1.0, *alphas], [*alphas, 0.0], strict=True)]

    def _computed(self, head: Head, kept: Sequence[Head]) -> FloatArray:
        kept = sorted(kept, key=lambda other: other.window)
        parts = zip(self.weights(head.window, kept), kept, strict=True)
        return np.asarray(sum(weight * self.scores[other.task.name] for weight, other in parts))

    def misfit(self, head: Head, kept: Sequence[Head]) -> float:
        """Rms error of a dropped head's probability, over the rms of the probability."""
        own = self.scores[head.task.name]
        error = self._computed(head, kept) - own
        return float(np.linalg.norm(error)) / max(float(np.linalg.norm(own)), 1e-30)

    def bias(self, head: Head, kept: Sequence[Head]) -> float:
        """How much larger a dropped head's mean probability has become."""
        own = float(self.scores[head.task.name].mean())
        return float(self._computed(head, kept).mean()) / max(own, 1e-30) - 1.0

    def describe(self) -> str:
        """Both forms, and the one that was taken."""
        law, drawn = self.errors["exponential"], self.errors["empirical"]
        return (
            f"{self.form} delays: at the heads' windows the share that has come is off by "
            f"{law:.4f} (rms) with exponential ones of rate {self.rate:.4g}, by {drawn:.4f} with "
            f"an empirical distribution of {len(self.knots)} knots"
        )
