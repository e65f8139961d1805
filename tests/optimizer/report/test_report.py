"""Reports as text and JSON."""

from __future__ import annotations

import json

import pytest
from rankc.optimizer.analysis.cost import Size
from rankc.optimizer.quality.verdict import Verdict
from rankc.optimizer.report.records import Kind, Outcome, PassRecord, Remark, SiteRecord
from rankc.optimizer.report.report import Report, readable_bytes

SMALL, BIG = Size(3, 10, 1536, 20.0), Size(5, 10, 4096, 20.0)


def sample(seconds: float = 0.5) -> Report:
    moved = {"max_abs": 1e-7, "relative": 2e-7, "bit_equal": False}
    return Report(
        title="model [v1] for cpu-int8",
        records=[
            PassRecord(1, "fuse{n=[1]}", "rounding", Outcome.CHANGED, seconds, BIG, SMALL, moved),
            PassRecord(2, "skip", "exact", Outcome.SKIPPED, seconds, SMALL, SMALL, note="no [B]"),
        ],
        remarks=[
            Remark(Kind.APPLIED, "fuse", "fused [B, 4] into one", ("a.0", "a.1"), {"count": 2}),
            Remark(Kind.MISSED, "fuse", "its weight is shared", ("b",)),
            Remark(Kind.MISSED, "fuse", "its weight is shared", ("c",)),
            Remark(Kind.ANALYSIS, "fuse", "not shown", ("d",)),
        ],
        sites=[
            SiteRecord("over[0]", "linear", (8, 4), "int8", ({"format": "fp8"},), "fastest [1]")
        ],
        verdict=Verdict.unverified("no data was given"),
        notes=["rows [apart]"],
    )


def test_the_text_says_everything_literally() -> None:
    shown = str(sample())
    for part in (
        "model [v1] for cpu-int8",
        "UNVERIFIED",
        "note: rows [apart]",
        "fuse{n=[1]}",
        "5 → 3",
        "4.0 KiB → 1.5 KiB",
        "2.0e-07",
        "skipped: no [B]",
        "fused [B, 4] into one",
        "b, c",
        "over[0]",
        "8×4",
        "fastest [1]",
    ):
        assert part in shown, part
    assert "not shown" not in shown
    assert str(Report()) == ""


def test_json_is_the_same_whatever_the_time() -> None:
    one, other = (json.dumps(sample(s).to_json(), sort_keys=True) for s in (0.5, 0.7))
    assert one == other
    data = json.loads(one)
    assert data["passes"][0]["outcome"] == "changed"
    assert data["remarks"][0]["sites"] == ["a.0", "a.1"]
    assert data["verdict"]["status"] == "unverified"


def test_remarks_by_kind_and_pass() -> None:
    report = sample()
    assert len(report.said(Kind.MISSED)) == 2
    assert report.said(Kind.MISSED, "other") == []
    assert report.passes is report.records
    assert str(report.remarks[0]) == "fused [B, 4] into one [a.0, a.1]"
    assert str(Remark(Kind.MISSED, "p", "m")) == "m"
    many = Remark(Kind.MISSED, "p", "m", tuple("abcdef"))
    assert str(many) == "m [a, b, c, d, …]"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**41, "2.0 TiB")],
)
def test_readable_bytes(count: int, text: str) -> None:
    assert readable_bytes(count) == text
