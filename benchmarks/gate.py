"""How often the gate passes what it mustn't, and how often it passes what is sound.

Copies are drawn whose true ΔNE, over the traffic that the rows are drawn from, is exactly at the
limit, or at 1.5 and 2 times it, and judged as `optimize` does: up to four looks at the same rows,
each at another copy and a smaller share of the error rate. A pass of any of them is a false pass.
Power is the share of copies at a tenth of the limit that pass at the first look, and how many rows
it takes until four of five do. No model is run: scores and labels are drawn. Run it with
``make bench-gate``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rankc import Budget
from rankc.optimizer.quality.gate import COHORT_FACTOR, split_confidence, status_of
from rankc.optimizer.quality.verdict import Status
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import expit
from scipy.stats import beta, lognorm

FloatArray = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], "Drawn"]
RESULTS = Path(__file__).parent / "results" / "gate.md"
LOOKS = 4
ALLOWED = 0.025
OVER = (1.0, 1.5, 2.0)
SOUND, ENOUGH = 0.1, 0.8
_MOST_ROWS = 32


@dataclass
class Drawn:
    """Rows of traffic, and one direction of damage.

    Attributes:
        scores: The original's logits (values, of a regression), ``[N]``.
        truth: What labels are drawn with, as scores, ``[N]``.
        shift: What a copy's scores are moved by, times an amplitude, ``[N]``.
        group: ``[N]`` users.
        time: ``[N]`` when rows came.
        cohort: ``[N]`` the cohort of each.
        repeat: ``[M]`` rows that come, some several times; None for each once.
    """

    scores: FloatArray
    truth: FloatArray
    shift: FloatArray
    group: NDArray[np.int64] | None = None
    time: NDArray[Any] | None = None
    cohort: NDArray[np.int64] | None = None
    repeat: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Kind:
    """One way damage and rows can be.

    Attributes:
        name: What it is called.
        draw: Draws rows.
        rows: How many are judged.
        ne: The limit.
        tasks: How many tasks of the same scores, each with labels of its own, are at the limit.
        labelled: Whether labels are given; else the original's scores are soft labels.
        regression: Whether losses are squared errors.
        within: Whether the limit meant is a cohort's, of cohort 1.
        dear: How many times fewer sets are drawn.
        population: Rows that stand for all traffic.
        options: Of the budget.
    """

    name: str
    draw: Draw
    rows: int = 10_000
    ne: float = 1e-3
    tasks: int = 1
    labelled: bool = True
    regression: bool = False
    within: bool = False
    dear: int = 1
    population: int = 400_000
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """The limits: that of ΔNE alone, unless said."""
        return Budget(**{"ne": self.ne, "max_rms_shift": None, "two_sided": True, **self.options})


# --- what is drawn --------------------------------------------------------------------------------


def plain(
    rng: np.random.Generator,
    rows: int,
    *,
    share: float = 1.0,
    sign: float = 0.0,
    beside: float = 0.0,
    base: float = -1.0,
    spread: float = 1.5,
    off: float = 0.0,
    heavy: float = 0.0,
) -> Drawn:
    """Independent rows; some share of them are moved, by noise or one way.

    Args:
        rng: Random numbers.
        rows: How many.
        share: Of the rows that are moved.
        sign: Which way; 0 for noise.
        beside: Noise on all rows, in units of the same amplitude.
        base: Mean logit.
        spread: Standard deviation of the logits.
        off: How far the truth is from the original's logits.
        heavy: Degrees of freedom of the noise, if it is Student's t.
    """
    scores = rng.normal(base, spread, rows)
    shift = rng.standard_t(heavy, rows).clip(-50, 50) if heavy else rng.normal(size=rows)
    shift = np.full(rows, sign) if sign else shift
    shift = shift * (rng.random(rows) < share) + beside * rng.normal(size=rows)
    return Drawn(scores, scores + off, shift)


def by_user(rng: np.random.Generator, rows: int, *, each: int = 20) -> Drawn:
    """Users whose clicks the original misses, and whose scores the copy moves, all one way."""
    users = max(rows // each, 1)
    group = rng.integers(0, users, rows)
    scores = rng.normal(-1.0, 1.5, rows)
    truth = scores + rng.normal(size=users)[group]
    return Drawn(scores, truth, rng.normal(size=users)[group], group=group)


def in_time(
    rng: np.random.Generator, rows: int, *, length: float = 100.0, users: int = 0, days: int = 0
) -> Drawn:
    """What the original misses, and what the copy moves, drift with time.

    Args:
        rng: Random numbers.
        rows: How many.
        length: Rows over which what lasts is forgotten by e.
        users: Rows of each user, whose effects come besides; 0 for no users.
        days: Rows of a day, if days are the times that are given; 0 for none.
    """
    scores = rng.normal(-1.0, 1.5, rows)
    truth = scores + 0.7 * _lasting(rng, rows, length)
    shift = _lasting(rng, rows, length)
    group = None
    if users:
        group = rng.integers(0, max(rows // users, 1), rows)
        truth = truth + rng.normal(size=rows)[group]
        shift = shift + rng.normal(size=rows)[group]
    time = np.arange(rows) // days if days else None
    return Drawn(scores, truth, shift, group=group, time=time)


def _lasting(rng: np.random.Generator, rows: int, length: float) -> FloatArray:
    """An AR(1) process of unit variance; a value holds for ten rows."""
    steps = -(-rows // 10)
    keep = float(np.exp(-10.0 / length))
    noise = rng.normal(size=steps) * (1.0 - keep**2) ** 0.5
    found, _ = lfilter([1.0], [1.0, -keep], noise, zi=[keep * float(rng.normal())])
    return np.repeat(found, 10)[:rows]


def repeated(rng: np.random.Generator, rows: int, *, times: int = 10) -> Drawn:
    """Every row several times."""
    distinct = max(rows // times, 1)
    found = plain(rng, distinct)
    return replace(found, repeat=np.repeat(np.arange(distinct), times))


def in_cohort(rng: np.random.Generator, rows: int, *, share: float = 0.05) -> Drawn:
    """A cohort that was declared carries all the damage."""
    cohort = (rng.random(rows) < share).astype(np.int64)
    scores = rng.normal(-1.0, 1.5, rows)
    return Drawn(scores, scores, rng.normal(size=rows) * cohort, cohort=cohort)


def residuals(rng: np.random.Generator, rows: int, *, share: float = 1.0) -> Drawn:
    """A regression with heavy-tailed residuals."""
    scores = rng.normal(size=rows)
    truth = scores + lognorm.rvs(1.0, size=rows, random_state=rng) - np.exp(0.5)
    return Drawn(scores, truth, rng.normal(size=rows) * (rng.random(rows) < share))


KINDS: tuple[Kind, ...] = (
    Kind("spread over all rows", plain),
    Kind("spread, the original is off by half a logit", partial(plain, off=0.5)),
    Kind("on 1 % of rows", partial(plain, share=0.01)),
    Kind("on 0.3 % of rows", partial(plain, share=0.003)),
    Kind("on 0.1 % of rows", partial(plain, share=0.001)),
    Kind("on 0.1 % of rows, one way", partial(plain, share=0.001, sign=-1.0)),
    Kind("on 0.1 % of rows, and a little on all", partial(plain, share=0.001, beside=0.01)),
    Kind("heavy-tailed (t, 2 degrees)", partial(plain, heavy=2.0)),
    Kind("in one declared cohort of 5 %", in_cohort, within=True),
    Kind("in one declared cohort of 2 %", partial(in_cohort, share=0.02), within=True),
    Kind("by user, 20 rows each", by_user),
    Kind("autocorrelated, over 50 rows", partial(in_time, length=50.0)),
    Kind("autocorrelated, over 100 rows", in_time),
    Kind("autocorrelated, over 300 rows", partial(in_time, length=300.0)),
    Kind("autocorrelated, over 1,000 rows", partial(in_time, length=1000.0), population=1_000_000),
    Kind("autocorrelated, and by user", partial(in_time, users=20)),
    Kind("autocorrelated, days of 200 rows", partial(in_time, days=200)),
    Kind("autocorrelated, 12 days of 833 rows", partial(in_time, days=833)),
    Kind("each row ten times", repeated),
    Kind("three tasks", plain, tasks=3),
    Kind("regression, log-normal residuals", residuals, regression=True),
    Kind("regression, on 1 % of rows", partial(residuals, share=0.01), regression=True),
    Kind("soft labels", plain, labelled=False),
    Kind("soft labels, on 0.1 % of rows", partial(plain, share=0.001), labelled=False),
    Kind("positives 1 in 1,000", partial(plain, base=-7.4, spread=1.0), 60_000, 5e-3, dear=4),
    Kind(
        "positives 1 in 1,000, where sure",
        partial(plain, base=-7.4, spread=1.0, share=0.05, sign=-1.0),
        60_000,
        5e-3,
        dear=4,
    ),
    Kind("positives 1 in 10,000", partial(plain, base=-9.7, spread=1.0), 300_000, 1e-2, dear=20),
)


# --- judging --------------------------------------------------------------------------------------


def loss(scores: FloatArray, label: FloatArray) -> FloatArray:
    """Log loss of logits."""
    return np.asarray(np.logaddexp(0.0, scores) - label * scores)


def amplitude(kind: Kind, over: float) -> float:
    """What times the shift has a true ΔNE of so many times the limit, over all traffic."""
    rng = np.random.default_rng(99)
    drawn = kind.draw(rng, kind.population)
    limit, chosen = kind.ne * over, np.ones(len(drawn.scores), dtype=bool)
    if kind.within:
        assert drawn.cohort is not None
        limit, chosen = limit * COHORT_FACTOR, drawn.cohort == 1
    scores, shift = drawn.scores[chosen], drawn.shift[chosen]
    truth = drawn.truth[chosen] if kind.labelled else scores

    symmetric = not np.array_equal(truth, scores)

    def delta(size: float) -> float:
        # Where the truth is another, a shift either way is as likely: what one of them gains is
        # luck of these rows.
        return (one_way(size) + one_way(-size)) / 2.0 if symmetric else one_way(size)

    def one_way(size: float) -> float:
        if kind.regression:
            residual = truth - scores
            # The shift is drawn apart from the residual: what is left of the cross term is luck.
            return float(np.square(size * shift).mean() / np.square(residual).mean())
        p = expit(truth)
        before = loss(scores, p)
        return float((loss(scores + size * shift, p) - before).mean() / before.mean())

    low, high = 0.0, 1e-3
    while delta(high) < limit:
        low, high = high, 2.0 * high
        if high > 1e6:
            raise ValueError(f"{kind.name}: no copy is that bad")
    return float(brentq(lambda size: delta(size) - limit, low, high, rtol=1e-4))


def passes(kind: Kind, size: float, seed: int, looks: int, rows: int) -> bool:
    """Whether any of some looks at copies passes, on one set of rows."""
    rng = np.random.default_rng([seed, rows])
    drawn = kind.draw(rng, rows)
    names = [f"task {number}" for number in range(kind.tasks)]
    labels = {name: labelled(kind, drawn, rng) for name in names}
    order = drawn.repeat if drawn.repeat is not None else slice(None)
    for look in range(looks):
        if look:  # another copy of the same model, on the same rows
            drawn = replace(drawn, shift=another(kind, drawn, rng, rows))
        given = drawn.scores[order]
        found = status_of(
            dict.fromkeys(names, given),
            dict.fromkeys(names, (drawn.scores + size * drawn.shift)[order]),
            {name: column[order] for name, column in labels.items()} if kind.labelled else None,
            replace(kind.budget, confidence=split_confidence(0.95, look)),
            group=None if drawn.group is None else drawn.group[order],
            time=None if drawn.time is None else drawn.time[order],
            cohorts=None if drawn.cohort is None else {"cohort": drawn.cohort[order]},
            regression=names if kind.regression else (),
        )
        if found is Status.PASS:
            return True
    return False


def labelled(kind: Kind, drawn: Drawn, rng: np.random.Generator) -> FloatArray:
    """Labels, drawn by the truth."""
    if kind.regression:
        return drawn.truth
    return (rng.random(len(drawn.truth)) < expit(drawn.truth)).astype(np.float64)


def another(kind: Kind, drawn: Drawn, rng: np.random.Generator, rows: int) -> FloatArray:
    """The shift of another copy, of the same rows, users and cohorts."""
    fresh = kind.draw(rng, rows)
    if drawn.cohort is not None and fresh.cohort is not None:
        return np.asarray(rng.normal(size=len(drawn.scores)) * drawn.cohort)
    if drawn.group is not None and drawn.time is None:
        users = int(drawn.group.max()) + 1
        own = rng.normal(size=users)[drawn.group]
        return own if kind.draw is by_user else own + _lasting(rng, rows, 100.0)
    return fresh.shift


def bound(count: int, draws: int) -> tuple[float, float]:
    """The 95 % interval of a share (Clopper and Pearson)."""
    low = float(beta.ppf(0.025, count, draws - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, draws - count)) if count < draws else 1.0
    return low, high


def cell(kind: Kind, sets: int, power_sets: int) -> dict[str, Any]:
    """What is told of a kind."""
    false = {}
    for over in OVER:
        size = amplitude(kind, over)
        draws = max((sets if over == 1.0 else sets // 4) // kind.dear, 20)
        count = sum(passes(kind, size, seed, LOOKS, kind.rows) for seed in range(draws))
        false[str(over)] = [count, draws]
    size, power, needed = amplitude(kind, SOUND), {}, None
    draws = max(power_sets // kind.dear, 20)
    times = 1
    while needed is None and times <= (_MOST_ROWS if kind.dear == 1 else 4):
        rows = times * kind.rows
        share = sum(passes(kind, size, seed, 1, rows) for seed in range(draws)) / draws
        power[str(rows)] = share
        needed = rows if share >= ENOUGH else None
        times *= 2
    return {"false": false, "power": power, "needed": needed, "draws": draws}


# --- the page -------------------------------------------------------------------------------------


def page(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# The gate: false passes, and power",
        "",
        "`make bench-gate` writes this page. Each line draws sets of rows and copies of a model "
        "whose true ΔNE, over the traffic that rows are drawn from, is exactly at the limit (1 ×) "
        f"or over it, and judges them as `optimize` does: up to {LOOKS} looks at the same rows, "
        "each at another copy, at 97.5 %, 98.75 % and so on (`split_confidence`). A pass of any "
        f"look is a false pass; {ALLOWED:.1%} are allowed. Brackets hold the 95 % interval "
        "(Clopper and Pearson). Beside it: the share of copies at a tenth of the limit that pass "
        "at the first look, and the rows at which four of five do. Limits on the shift of logits "
        "are lifted, so that ΔNE alone must tell.",
        "",
        "| damage, rows | rows | limit | false passes at 1 × | 1.5 × | 2 × | sound copies pass | "
        "rows for 80 % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    over = []
    for kind in KINDS:
        if kind.name not in cells:
            continue
        found = cells[kind.name]
        told = [_share(*found["false"][str(times)]) for times in OVER]
        for count, draws in found["false"].values():
            if bound(count, draws)[0] > ALLOWED:
                over.append(kind.name)
        first = next(iter(found["power"].values()))
        needed = found["needed"]
        most = max(int(rows) for rows in found["power"])
        lines.append(
            f"| {kind.name} | {kind.rows:,} | {kind.ne:.1%} | {' | '.join(told)} | "
            f"{first:.0%} of {found['draws']} | {f'{needed:,}' if needed else f'> {most:,}'} |"
        )
    left = [kind.name for kind in KINDS if kind.name not in cells]
    lines += ["", "Surely over what is allowed: " + (", ".join(dict.fromkeys(over)) or "none.")]
    if left:
        lines += ["", "Not run: " + ", ".join(left) + "."]
    return "\n".join([*lines, ""])


def _share(count: int, draws: int) -> str:
    low, high = bound(count, draws)
    return f"{count / draws:.1%} [{low:.1%}, {high:.1%}] of {draws:,}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what isn't in the folder of cells yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=1000, help="sets of rows at the limit")
    parser.add_argument("--power", type=int, default=100, help="sets of rows with sound copies")
    parser.add_argument("--cells", type=Path, default=Path("out/gate"), help="what is kept")
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the page")
    asked = parser.parse_args(arguments)
    os.nice(10)
    asked.cells.mkdir(parents=True, exist_ok=True)
    cells: dict[str, Any] = {}
    for number, kind in enumerate(KINDS):
        kept = sorted(asked.cells.glob(f"{number:02d}-*.json"))
        if not kept and asked.only in kind.name:
            kept = [asked.cells / f"{number:02d}-{asked.sets:06d}.json"]
            kept[0].write_text(json.dumps(cell(kind, asked.sets, asked.power)))
            print(kind.name, kept[0].read_text(), flush=True)
        if kept:  # the most sets that were ever drawn
            cells[kind.name] = json.loads(kept[-1].read_text())
    asked.out.write_text(page(cells))
    print(asked.out)


if __name__ == "__main__":
    main()
