"""``docs/operators.md`` is of the operators there are, and of what is known of them."""

from __future__ import annotations

import re
from pathlib import Path

from conformance.comparing import every_case
from conformance.known import DEPENDS_ON_ORDER, DIFFERS, WITHOUT_CASE
from rankc.backends.onnx.translate import own_forms

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()


def test_the_page_has_every_operator_and_how_many_cases() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+) \| (lowered)? ?\|", PAGE, re.MULTILINE)
    cases = every_case()
    counts = {one.operator: sum(o.operator == one.operator for o in cases) for one in cases}
    assert {name: int(count) for name, count, _ in rows} == counts
    lowered = {name for name, _, form in rows if form}
    assert lowered == set(own_forms()) & set(counts)


def test_the_page_has_what_differs_and_what_has_no_case() -> None:
    assert [name for name in (*DIFFERS, *DEPENDS_ON_ORDER) if f"- `{name}`: " not in PAGE] == []
    assert [name for name in WITHOUT_CASE if f"`{name}`" not in PAGE] == []
    assert [name for name in own_forms() if f"`{name}`" not in PAGE] == []
