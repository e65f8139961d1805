"""The curve of plans, and the words about a site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rankc.optimizer.errors import ArtifactError
from rankc.optimizer.ir import Precision
from rankc.optimizer.precision.explain import explain
from rankc.optimizer.precision.pareto import Pareto
from rankc.optimizer.precision.probe import Candidate, Probe, SiteProbe, refuse


def candidate(number_format: str | None, seconds: float, damage: float) -> Candidate:
    return Candidate(
        Precision(number_format) if number_format else None,
        {64: seconds, 512: 8 * seconds},
        100.0 if number_format is None else 25.0,
        {"relative": 0.01, "sqnr": 40.0},
        {"score": damage} if number_format else {},
    )


def site(name: str, *candidates: Candidate) -> SiteProbe:
    return SiteProbe(name, "linear", (8, 4), (name,), candidates)


PROBE = Probe(
    (
        site("a", candidate(None, 4e-5, 0.0), candidate("int8", 1e-5, 1.05e-4)),
        site(
            "b",
            candidate(None, 4e-5, 0.0),
            candidate("int8-rows", 2e-5, 1e-6),
            refuse(candidate("int8", 1e-5, 2e-2), "alone it costs too much"),
        ),
    ),
    measured=True,
)
CHOSEN = {"a": "fp32", "b": "int8-rows"}


def test_the_curve_goes_from_fp32_to_the_fastest() -> None:
    curve = Pareto.of(PROBE, CHOSEN)
    assert [dict(point.plan) for point in curve.points] == [
        {},
        {"b": "int8-rows"},
        {"a": "int8", "b": "int8-rows"},
    ]
    assert [point.chosen for point in curve.points] == [False, True, False]
    times = [point.milliseconds[64] for point in curve.points]
    assert times == sorted(times, reverse=True)
    assert curve.points[-1].damage == pytest.approx(1.06e-4)
    assert json.loads(json.dumps(curve.to_json()))["points"][1]["chosen"]
    assert "* " in str(curve)


def test_an_artifact_beside_the_curve_is_on_it() -> None:
    """It gave up more than it had to, so that no budget's best plan is its own."""
    curve = Pareto.of(PROBE, {"a": "int8", "b": "fp32"})
    assert [dict(point.plan) for point in curve.points if point.chosen] == [{"a": "int8"}]


def test_it_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("curve.png", "curve.svg"):
        assert Pareto.of(PROBE, CHOSEN).save(tmp_path / name).stat().st_size > 1000


RECORDS = [
    s.record(c, measured=True)
    for s, c in zip(PROBE.sites, (PROBE.sites[0].candidates[0], PROBE.sites[1].candidates[1]))  # noqa: B905
]


def test_a_site_in_words() -> None:
    text = explain(RECORDS, "b")
    assert text.startswith("b: a linear of 8×4 (outputs×inputs) in int8-rows.")
    assert "* int8-rows: 20 us at batch 64, 160 us at batch 512; 25 B" in text
    assert "ΔNE +0.00010 % alone (score)" in text
    assert "Not int8, though faster: alone it costs too much." in text
    assert "with it the sites together would damage more" in explain(RECORDS, "a")


def test_all_sites_in_a_line_each() -> None:
    assert [line.split(":")[0] for line in explain(RECORDS).splitlines()] == ["a", "b"]


def test_an_unknown_site_is_told() -> None:
    with pytest.raises(ArtifactError, match="no format was decided at 'c'; did you mean"):
        explain(RECORDS, "c")
