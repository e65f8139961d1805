"""Conversion windows: what part of its conversions a window sees, and `Windows`, how to ask for it.

A model with a head for each of some fixed windows (conversions within 1, 7 and 28 days) needs only
two of them where the delays of conversions follow a law: the probability within ``T`` lies between
those within ``a`` and ``b`` days, ``p(T) = p(a) + α(T) · (p(b) − p(a))``, where ``α`` is the part
of the conversions between ``a`` and ``b`` that have come by ``T`` (2501.14103).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize_scalar

from ..errors import DataError, SignatureError
from ..ir.signature import Signature, TaskKind

FloatArray = NDArray[np.float64]
Knots = tuple[tuple[float, float], ...]
#: ``"conversion_7d"``: the stem, the number and the unit.
_NAMED = re.compile(r"^(?P<stem>.*?)_?(?P<count>\d+(?:\.\d+)?)_?(?:d|day|days)$")


def exponential(windows: ArrayLike, rate: float, low: float, high: float) -> FloatArray:
    """α for exponential delays: ``expm1(−β(T − a)) / expm1(−β(b − a))``, within [0, 1].

    Args:
        windows: ``[…]``, in the unit that ``1 / rate`` has; beyond the ends α is 0 or 1.
        rate: β, at least 0; as it goes to 0, α becomes the straight line.
        low: a.
        high: b.
    """
    passed = np.clip(np.asarray(windows, dtype=np.float64), low, high) - low
    if rate * (high - low) < 1e-9:
        return np.asarray(passed / (high - low))
    return np.asarray(np.expm1(-rate * passed) / math.expm1(-rate * (high - low)))


def empirical(windows: ArrayLike, knots: Knots, low: float, high: float) -> FloatArray:
    """α from a distribution of delays, straight between its knots.

    Args:
        windows: ``[…]``.
        knots: ``(delay, share of the conversions that have come)``, both rising.
        low: a.
        high: b.
    """
    delays, shares = zip(*knots, strict=True)
    clipped = np.clip(np.asarray(windows, dtype=np.float64), low, high)
    first, last, found = (np.interp(at, delays, shares) for at in (low, high, clipped))
    return np.asarray((found - first) / (last - first))


def between(windows: Sequence[float], shares: Sequence[float], points: int = 33) -> Knots:
    """Knots of a distribution of which a few points are known: smooth and rising in log time.

    Args:
        windows: ``[n]`` rising, positive.
        shares: ``[n]`` of the conversions that have come by then, never falling.
        points: How many knots beside the known ones.
    """
    places = np.union1d(np.geomspace(windows[0], windows[-1], points), windows)
    places[0], places[-1] = windows[0], windows[-1]
    with np.errstate(over="ignore"):  # where the shares hardly rise
        curve = PchipInterpolator(np.log(windows), shares)
    found = np.interp(places, windows, shares) if len(windows) < 3 else curve(np.log(places))
    return tuple(zip(map(float, places), map(float, found), strict=True))


def fit_rate(windows: Sequence[float], alphas: Sequence[float], low: float, high: float) -> float:
    """The β whose α fits those measured at some windows best, in the squared error."""

    def error(log_rate: float) -> float:
        fitted = exponential(windows, math.exp(log_rate), low, high)
        return float(np.square(fitted - np.asarray(alphas)).sum())

    span = high - low
    bounds = (math.log(1e-4 / span), math.log(1e3 / span))
    return math.exp(minimize_scalar(error, bounds=bounds, method="bounded").x)


def cdf_of(delays: ArrayLike, low: float, high: float, points: int = 33) -> Knots:
    """The distribution of delays between two windows, as knots.

    Args:
        delays: ``[N]`` of conversions, from logs that are complete: all conversions within
            ``high`` of their click. Histories that are cut off make delays look short.
        low: The shortest window.
        high: The longest.
        points: How many knots, at equal shares of the conversions in between.

    Raises:
        DataError: Too few conversions between the windows.
    """
    times = np.asarray(delays, dtype=np.float64).ravel()
    inside = np.sort(times[(times > low) & (times <= high)])
    if len(inside) < points:
        raise DataError(
            f"{len(inside)} conversions between {low:g} and {high:g} are too few for {points} "
            "knots; give more rows of the log, or fewer points."
        )
    shares = np.linspace(0.0, 1.0, points)
    places = np.quantile(inside, shares)
    places[0], places[-1] = low, high
    before, total = float((times <= low).sum()), float((times <= high).sum())
    kept = [0, *(i for i in range(1, points) if places[i] > places[i - 1])]
    return tuple(
        (float(places[i]), float((before + shares[i] * len(inside)) / total)) for i in kept
    )


@dataclass(frozen=True)
class Windows:
    """Replaces heads for fixed conversion windows by two, and any window between them by a formula.

    The artifact takes one more feature, the window each row is asked for, and returns the score for
    it as one more output. The heads' own outputs stay, those that were dropped by the formula at
    their window; a caller that asks for no window gets ``default``.

    Attributes:
        heads: ``{task: window}``, two at least, in any unit, such as days. When empty, tasks called
            ``stem_1d``, ``stem_7d`` and so on.
        delays: ``"exponential"``, ``"empirical"``, or ``"auto"``: exponential where that fits the
            heads' scores on calibration rows about as well.
        rate: β of exponential delays, per unit; fitted to the heads' scores when None.
        cdf: ``(delay, share of the conversions that have come)`` of empirical delays, as `cdf_of`
            gives; from the heads' scores when empty.
        rate_feature: What to call a further feature: each row's own β, with ``rate`` as default.
        default: The window of callers that ask for none; the longest when None.
        feature: What to call the feature.
        output: What to call the output.
    """

    heads: Mapping[str, float] | tuple[tuple[str, float], ...] = ()
    delays: str = "auto"
    rate: float | None = None
    cdf: Knots = ()
    rate_feature: str = ""
    default: float | None = None
    feature: str = "window"
    output: str = "at_window"

    def __post_init__(self) -> None:
        pairs = self.heads.items() if isinstance(self.heads, Mapping) else self.heads
        ordered = sorted(((str(task), float(at)) for task, at in pairs), key=lambda pair: pair[1])
        object.__setattr__(self, "heads", tuple(ordered))
        knots = tuple((float(delay), float(share)) for delay, share in self.cdf)
        object.__setattr__(self, "cdf", knots)
        if self.delays not in ("auto", "exponential", "empirical"):
            raise SignatureError(
                f"windows: delays are 'auto', 'exponential' or 'empirical', not {self.delays!r}."
            )
        if self.rate is not None and not 0.0 < self.rate < math.inf:
            raise SignatureError(f"windows: rate={self.rate} is no rate; it is positive, per unit.")
        if self.rate_feature and self.delays != "exponential":
            raise SignatureError(
                "windows: a rate of each row's own needs delays='exponential'; a distribution has "
                "no rate."
            )
        if ordered:
            self._check_heads()

    @property
    def pairs(self) -> tuple[tuple[str, float], ...]:
        """``heads`` as pairs of task and window, by window."""
        assert isinstance(self.heads, tuple)
        return self.heads

    def _check_heads(self) -> None:
        at = [window for _, window in self.pairs]
        if len(at) < 2 or len(set(at)) < len(at) or not 0.0 < at[0] <= at[-1] < math.inf:
            raise SignatureError(
                f"windows: heads={dict(self.pairs)} must be two tasks at least, each with a "
                "positive window of its own."
            )
        if self.default is not None and not at[0] <= self.default <= at[-1]:
            raise SignatureError(
                f"windows: the default {self.default:g} is outside of {at[0]:g} to {at[-1]:g}, the "
                "windows of the heads; nothing is known beyond them."
            )
        if self.cdf:
            self._check_cdf(at[0], at[-1])

    def _check_cdf(self, low: float, high: float) -> None:
        delays, shares = (np.array(side) for side in zip(*self.cdf, strict=True))
        rising = bool((np.diff(delays) > 0).all() and (np.diff(shares) >= 0).all())
        covers = rising and delays[0] <= low and high <= delays[-1]
        if not covers or not shares[-1] > np.interp(low, delays, shares):
            raise SignatureError(
                f"windows: cdf must rise and cover {low:g} to {high:g}, the windows of the heads; "
                f"it has {len(delays)} knots from {delays.min():g} to {delays.max():g}."
            )

    def of(self, signature: Signature) -> Windows:
        """These windows for a program: heads found by their names, and checked.

        Raises:
            SignatureError: No such task, a task that is no probability, or a name that is taken.
        """
        heads = self.pairs or self.found_in(signature)
        if not heads:
            raise SignatureError(
                "windows: name the heads, as heads={'buy_1d': 1, 'buy_7d': 7}; no two of the tasks "
                f"{[task.name for task in signature.tasks]} are called stem_1d, stem_7d."
            )
        known = {task.name: task for task in signature.tasks}
        for task, _ in heads:
            if task not in known:
                raise SignatureError(
                    f"windows: there is no task {task!r}; the model's tasks are {list(known)}."
                )
            if known[task].kind is not TaskKind.BINARY:
                raise SignatureError(f"windows: {task!r} is a regression, and has no probability.")
        taken = {*signature.names, *signature.outputs}
        for name in filter(None, (self.feature, self.rate_feature, self.output)):
            if name in taken:
                raise SignatureError(
                    f"windows: {name!r} is a feature or an output of the model already; give "
                    "another feature= or output=."
                )
        told = {"exponential": self.rate, "empirical": self.cdf, "auto": self.rate or self.cdf}
        if len(heads) == 2 and not told[self.delays]:
            raise SignatureError(
                "windows: two heads don't tell how conversions come in between; give rate=, or "
                "cdf=rankc.cdf_of(delays, …)."
            )
        return replace(self, heads=heads)

    def found_in(self, signature: Signature) -> tuple[tuple[str, float], ...]:
        """Tasks called ``stem_1d``, ``stem_7d``, …: those of the stem that has most."""
        stems: dict[str, list[tuple[str, float]]] = {}
        for task in signature.served:
            found = _NAMED.match(task.name)
            if found is not None and float(found["count"]) > 0.0:
                stems.setdefault(found["stem"], []).append((task.name, float(found["count"])))
        most = sorted(stems.values(), key=len)[-1:] or [[]]
        ordered = sorted(most[0], key=lambda pair: pair[1])
        several = len({at for _, at in ordered}) == len(ordered) >= 2
        return tuple(ordered) if several else ()

    def spec(self) -> str:
        """The pass that does it, as pipeline text."""
        options = {
            "heads": tuple(f"{task}={at!r}" for task, at in self.pairs),
            "delays": self.delays,
            "rate": self.rate or 0.0,
            "cdf": tuple(f"{delay!r}={share!r}" for delay, share in self.cdf),
            "rate_feature": self.rate_feature,
            "default": self.default or 0.0,
            "feature": self.feature,
            "output": self.output,
        }
        return f"interpolate-windows{{{','.join(f'{k}={v!r}' for k, v in options.items())}}}"
