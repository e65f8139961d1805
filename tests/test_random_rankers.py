"""Every piece of random rankers, optimized without data, scores like eager PyTorch."""

from __future__ import annotations

import dataclasses

import pytest
import rankc
from fuzz_models import wrong
from random_rankers import RandomRanker, every_form

TARGET = dataclasses.replace(rankc.Target.of("cpu-fp32"), backends=("onnxruntime",))


@pytest.mark.parametrize("model", every_form(together=14), ids=lambda model: model.top)
def test_every_piece_is_built_as_it_is(model: RandomRanker) -> None:
    assert wrong(model, TARGET) == ""
