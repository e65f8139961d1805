"""Made-up logs of conversions that come late, by a known law of delays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .encoding import first_rows
from .flights import TRAIN_SHARE
from .generated import power_law
from .rows import Floats, RankingData, Rows

ID_NAMES = ("user", "advertiser", "item", "hour")
VALUES = (2000, 200, 600, 24)
DENSE_NAMES = ("price", "age", "clicks", "budget")
#: Days within which conversions are counted.
WINDOWS = (1, 3, 7, 14, 28)
SECONDS_PER_ROW = 60
START_OF_2024 = 1_704_067_200
LAWS = ("exponential", "lognormal")


@dataclass(frozen=True, eq=False)
class ConversionLog:
    """Clicks, and what came of them.

    Attributes:
        data: the clicks; labels are `conversion_<days>d` for every window of `WINDOWS`.
        train_delays: days from click to conversion of the training rows, `[N]` float32; infinite
            where there is none.
        test_delays: the same of the test rows.
    """

    data: RankingData
    train_delays: Floats
    test_delays: Floats


def simulated_conversions(
    rows: int = 60_000, delays: str = "exponential", seed: int = 0
) -> ConversionLog:
    """Draws clicks, conversions and their delays. They are made up and prove nothing.

    Whether a click ever converts depends on its ids and dense features; how long that takes does
    not, so that the law of delays is the same for all rows: exponential with a mean of 6 days, or
    lognormal with a median of 3 days and σ = 1.5, whose tail no exponential has.

    Args:
        rows: training and test rows together, split 80/20 in order of time.
        delays: `exponential` or `lognormal`.
        seed: the same seed gives the same rows.
    """
    if delays not in LAWS:
        raise ValueError(f"delays are {' or '.join(LAWS)}, got {delays!r}")
    if rows < 10:
        raise ValueError(f"rows must be at least 10, got {rows}")
    rng = np.random.default_rng(seed)
    ids = np.stack([power_law(rng, rows, values) for values in VALUES], axis=1)
    dense = rng.standard_normal((rows, len(DENSE_NAMES))).astype(np.float32)
    effects = [rng.normal(0.0, 0.5, values + 1) for values in VALUES]
    log_odds = sum(effect[ids[:, i]] for i, effect in enumerate(effects))
    log_odds = log_odds + dense @ rng.normal(0.0, 0.4, len(DENSE_NAMES)) - 1.5
    converts = rng.random(rows) < 1.0 / (1.0 + np.exp(-log_odds))
    drawn = (
        rng.exponential(6.0, rows)
        if delays == "exponential"
        else 3.0 * np.exp(1.5 * rng.standard_normal(rows))
    )
    days = np.where(converts, drawn, np.inf).astype(np.float32)
    train_rows = first_rows(rows, TRAIN_SHARE)
    whole = Rows(
        dense=dense,
        ids=ids,
        labels={f"conversion_{w}d": (days <= w).astype(np.float32) for w in WINDOWS},
        group=ids[:, 0].copy(),
        cohorts={"hour": np.char.add("hour ", ids[:, 3].astype(np.str_))},
        timestamp=START_OF_2024 + SECONDS_PER_ROW * np.arange(rows, dtype=np.int64),
    )
    data = RankingData(
        name=f"generated, not real: conversions with {delays} delays",
        licence="none needed: generated",
        train=whole.take(train_rows),
        test=whole.take(~train_rows),
        dense_names=DENSE_NAMES,
        id_names=ID_NAMES,
        cardinalities=tuple(values + 1 for values in VALUES),
    )
    return ConversionLog(data, days[train_rows], days[~train_rows])
