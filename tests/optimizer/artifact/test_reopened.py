"""A runner is opened once a process."""

from __future__ import annotations

from typing import Any

from rankc.optimizer.artifact.reopened import Reopened


def test_it_is_opened_once() -> None:
    opened = []

    def opening() -> Any:
        opened.append(1)
        return lambda features: {"y": features["x"]}

    runner = Reopened(opening)
    assert [runner({"x": 1}), runner({"x": 2})] == [{"y": 1}, {"y": 2}]
    assert len(opened) == 1
