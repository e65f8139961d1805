"""Candidates of sites, and the cheapest of them within limits."""

from __future__ import annotations

from rankc.optimizer.ir.facts import Precision
from rankc.optimizer.precision.probe import Candidate, Probe, SiteProbe, refuse, tighter

HIGH = Candidate(None, {64: 1.0}, 4.0)
LOW = Candidate(Precision("bf16"), {64: 0.5}, 2.0, {"relative": 0.01}, {"t": 1e-3})
PROBE = Probe((SiteProbe("top", "linear", (4, 3), ("linear",), (HIGH, LOW)),), True, 0.0)


def test_the_cheapest_within_the_limits_is_taken() -> None:
    assert PROBE.solve({"t": 1e-2}) == (LOW,)
    assert PROBE.solve({"t": 1e-4}) == (HIGH,)
    assert PROBE.cost(LOW) < PROBE.cost(HIGH)


def test_candidates_read_back_and_are_refused_with_a_reason() -> None:
    assert Candidate.from_json(LOW.to_json()) == LOW
    assert refuse(LOW, "too slow").refused == "too slow"


def test_limits_shrink_by_what_a_plan_did_more() -> None:
    assert tighter({"t": 1e-2}, [LOW], {"t": 2e-3}, 1.0)["t"] == 1e-3 / 2
