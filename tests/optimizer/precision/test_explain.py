"""Why a site has its format."""

from __future__ import annotations

from rankc.optimizer.precision.explain import explain
from rankc.optimizer.report.records import SiteRecord


def test_a_site_is_explained_by_its_reason() -> None:
    site = SiteRecord("top.0", "linear", (4, 3), "fp32", (), "nothing is faster here")
    assert "nothing is faster here" in explain([site], "top.0")
