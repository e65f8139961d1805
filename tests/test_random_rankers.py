"""A few random rankers, optimized without data, score like eager PyTorch.

`fuzz_models.py` tries every piece, and as many rankers as are wanted.
"""

from __future__ import annotations

import dataclasses

import pytest
import rankc
from fuzz_models import wrong
from hypothesis import given, settings
from random_rankers import RandomRanker, rankers

TARGET = dataclasses.replace(rankc.Target.of("cpu-fp32"), backends=("onnxruntime",))


@pytest.mark.slow
@given(rankers(most=3))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_random_rankers_are_built_as_they_are(model: RandomRanker) -> None:
    assert wrong(model, TARGET) == ""
