"""What part of its conversions a window sees, and what can be asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import rankc
from hypothesis import given
from hypothesis import strategies as st
from rankc.optimizer.amendments import with_windows
from rankc.optimizer.errors import DataError, SignatureError
from rankc.optimizer.heads.windows import Windows, between, cdf_of, empirical, exponential, fit_rate
from rankc.optimizer.ir import Signature, Task, TaskKind

DAYS = (1.0, 3.0, 7.0, 14.0, 28.0)


def test_alpha_of_exponential_delays_is_the_share_that_has_come() -> None:
    rate, cdf = 0.17, lambda t: 1.0 - np.exp(-0.17 * np.asarray(t))
    expected = (cdf(DAYS) - cdf(1.0)) / (cdf(28.0) - cdf(1.0))
    assert np.allclose(exponential(DAYS, rate, 1.0, 28.0), expected, rtol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 1e-15, 1e-9, 1e-6])
def test_a_vanishing_rate_is_a_straight_line(rate: float) -> None:
    """exp(x) - 1 would have cancelled long before."""
    straight = (np.array(DAYS) - 1.0) / 27.0
    assert np.allclose(exponential(DAYS, rate, 1.0, 28.0), straight, atol=1e-4)


def test_beyond_the_ends_nothing_is_extrapolated() -> None:
    knots = ((1.0, 0.1), (28.0, 0.9))
    for found in (exponential([0.5, 40], 0.2, 1, 28), empirical([0.5, 40], knots, 1, 28)):
        assert found.tolist() == [0.0, 1.0]


def test_an_empirical_alpha_is_straight_between_its_knots() -> None:
    knots = ((0.0, 0.0), (2.0, 0.4), (10.0, 1.0))
    assert empirical([1.0, 2.0, 6.0, 10.0], knots, 1.0, 10.0) == pytest.approx(
        [0.0, 0.25, 0.625, 1.0]
    )


@given(st.floats(0.005, 5.0))
def test_a_rate_is_found_again(rate: float) -> None:
    alphas = exponential(DAYS[1:-1], rate, 1.0, 28.0)
    found = fit_rate(DAYS[1:-1], list(alphas), 1.0, 28.0)
    assert np.allclose(exponential(DAYS, found, 1, 28), exponential(DAYS, rate, 1, 28), atol=1e-3)


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).map(sorted))
def test_what_goes_between_known_shares_rises_and_meets_them(shares: list[float]) -> None:
    known = [0.0, *shares, 1.0]
    knots = between(DAYS, known)
    places, values = zip(*knots, strict=True)
    assert np.all(np.diff(places) > 0)
    assert np.all(np.diff(values) >= -1e-12)
    assert np.allclose(np.interp(DAYS, places, values), known, atol=1e-9)


@pytest.mark.parametrize("law", ["exponential", "lognormal"])
def test_a_distribution_is_read_off_a_log(law: str) -> None:
    rng = np.random.default_rng(0)
    draw = rng.exponential(6.0, 50_000) if law == "exponential" else rng.lognormal(1.1, 1.5, 50_000)
    never = np.full(10_000, np.inf)
    knots = cdf_of(np.concatenate([draw, never]), 1.0, 28.0)
    shares = np.array([(draw <= day).sum() / (draw <= 28.0).sum() for day in DAYS])
    places, values = zip(*knots, strict=True)
    assert (places[0], places[-1], values[-1]) == (1.0, 28.0, 1.0)
    assert np.allclose(np.interp(DAYS, places, values), shares, atol=0.01)


def test_too_few_conversions_are_refused() -> None:
    with pytest.raises(DataError, match="3 conversions between 1 and 28 are too few for 33 knots"):
        cdf_of([2.0, 3.0, 4.0, 0.5, 90.0], 1.0, 28.0)


def signature(*tasks: str) -> Signature:
    return Signature((), tuple(Task(name, name) for name in tasks), tasks)


THREE = signature("buy_28d", "buy_1d", "buy_7d", "click")


def test_heads_are_found_by_their_names_and_ordered() -> None:
    expected = (("buy_1d", 1.0), ("buy_7d", 7.0), ("buy_28d", 28.0))
    assert Windows().of(THREE).pairs == expected
    assert Windows(heads={"buy_7d": 7, "buy_1d": 1, "buy_28d": 28}).pairs == expected
    assert Windows().found_in(signature("a_1d", "a_1day", "b")) == ()
    assert Windows().found_in(signature("a1d", "a_7day", "b_3d")) == (("a1d", 1.0), ("a_7day", 7.0))


def test_the_pass_is_text_that_reads_back() -> None:
    cdf = ((0.5, 0.2), (30.0, 1.0))
    windows = Windows(heads={"buy_1d": 1, "buy_28d": 28}, cdf=cdf, default=7, feature="days")
    pipeline = with_windows(rankc.Pipeline.parse("default"), windows, THREE)
    assert rankc.Pipeline.parse(pipeline.spec()) == pipeline
    names = [p.name for p in pipeline.passes]
    assert names[1:3] == ["canonicalize", "interpolate-windows"]
    assert pipeline.passes[2]._windows() == windows  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {"buy_1d": 1}}, "must be two tasks at least"),
        ({"heads": {"buy_1d": 1, "buy_7d": 1}}, "a positive window of its own"),
        ({"heads": {"buy_1d": 0, "buy_7d": 7}}, "a positive window of its own"),
        ({"heads": {"buy_1d": 1, "buy_7d": 7}, "default": 28}, r"default 28 is outside of 1 to 7"),
        ({"delays": "weibull"}, "'auto', 'exponential' or 'empirical', not 'weibull'"),
        ({"rate": 0.0}, "is positive"),
        ({"rate": math.inf}, "is positive"),
        ({"rate_feature": "beta"}, "needs delays='exponential'"),
        ({"heads": {"a": 1, "b": 7}, "cdf": ((2, 0.1), (9, 1.0))}, "cover 1 to 7.*from 2 to 9"),
        ({"heads": {"a": 1, "b": 7}, "cdf": ((1, 0.5), (9, 0.1))}, "must rise"),
        ({"heads": {"a": 1, "b": 7}, "cdf": ((1, 0.5), (9, 0.5))}, "must rise"),
    ],
)
def test_windows_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        Windows(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {"buy_1d": 1, "sale_7d": 7}}, "no task 'sale_7d'; the model's tasks are"),
        ({"feature": "click"}, "'click' is a feature or an output of the model already"),
        ({"heads": {"buy_1d": 1, "buy_7d": 7}}, "two heads don't tell"),
        ({"heads": {"buy_1d": 1, "buy_7d": 7}, "delays": "empirical", "rate": 1.0}, "give rate="),
    ],
)
def test_windows_that_do_not_fit_the_model_are_refused(options: Any, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        Windows(**options).of(THREE)


def test_heads_without_names_or_probabilities_are_refused() -> None:
    with pytest.raises(SignatureError, match="name the heads, as heads="):
        Windows().of(signature("click", "buy"))
    with pytest.raises(SignatureError, match="'buy_7d' is a regression"):
        Windows().of(THREE.with_task("buy_7d", kind=TaskKind.REGRESSION))
