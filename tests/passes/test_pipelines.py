"""Named pipelines are made of passes that there are."""

from __future__ import annotations

import pytest
from rankc.optimizer.pipeline.pipeline import Pipeline
from rankc.optimizer.pipeline.registry import named_pipelines


@pytest.mark.parametrize("name", sorted(named_pipelines()))
def test_each_parses_and_reads_back(name: str) -> None:
    made = Pipeline.parse(name)
    assert Pipeline.parse(made.spec()).spec() == made.spec()
