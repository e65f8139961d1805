"""What requests and finetuning do to a pipeline."""

from __future__ import annotations

from rankc.optimizer.amendments import with_recovery, with_requests
from rankc.optimizer.pipeline.pipeline import Pipeline


def test_passes_are_added_where_they_belong_and_once() -> None:
    default = Pipeline.parse("default")
    for amend in (with_requests, with_recovery):
        made = amend(default)
        names = [pass_.name for pass_ in made.passes]
        assert len(names) > len(default.passes)
        assert [p for p in made.passes if p in default.passes] == list(default.passes)
