"""How far a call is."""

from __future__ import annotations

from rankc.optimizer.milestones import Milestones


def test_the_share_done_never_goes_back() -> None:
    heard: list[tuple[str, float]] = []
    say = Milestones(lambda message, done: heard.append((message, done)))
    say("one", 0.5)
    say("two", 0.2)
    say.detail("more")
    assert heard == [("one", 0.5), ("two", 0.5), ("more", 0.5)]
    Milestones(None)("nobody listens", 1.0)
