"""What is checked of computed ids reads back from JSON."""

from __future__ import annotations

from rankc.optimizer.artifact.refusal import Check


def test_a_check_reads_back() -> None:
    check = Check("ids", "table", 5, ("user",))
    assert Check.from_json(check.to_json()) == check
