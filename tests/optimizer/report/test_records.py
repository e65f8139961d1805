"""What is recorded reads back."""

from __future__ import annotations

from rankc.optimizer.report.records import Kind, Remark, SiteRecord


def test_a_remark_names_its_first_sites() -> None:
    said = Remark(Kind.MISSED, "p", "left alone", ("a", "b", "c", "d", "e"))
    assert str(said) == "left alone [a, b, c, d, …]"
    assert str(Remark(Kind.APPLIED, "p", "done")) == "done"


def test_a_site_reads_back_from_json() -> None:
    site = SiteRecord("top.0", "linear", (4, 3), "int8", ({"format": "int8"},), "cheapest")
    data = {
        "site": "top.0",
        "kind": "linear",
        "shape": [4, 3],
        "chosen": "int8",
        "candidates": [{"format": "int8"}],
        "reason": "cheapest",
    }
    assert SiteRecord.from_json(data) == site
