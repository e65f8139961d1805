"""What an example tells of a model."""

from __future__ import annotations

import pytest
import torch
from rankc.frontends.example import example_of, example_tensors, forward_arguments, unwrapped
from rankc.optimizer.errors import CaptureError, SignatureError
from torch import Tensor, nn


class Two(nn.Module):
    """Two arguments."""

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x + ids


def test_arguments_are_named_by_forward() -> None:
    assert forward_arguments(Two()) == ("x", "ids")
    model = Two()
    assert unwrapped(model) is model


def test_without_an_example_it_is_asked_for() -> None:
    assert example_of(Two(), (1, 2)) == (1, 2)
    with pytest.raises(CaptureError, match="Two needs an example"):
        example_of(Two(), None)


def test_an_example_holds_tensors() -> None:
    assert example_tensors({"x": [1.0, 2.0]})["x"].tolist() == [1.0, 2.0]
    with pytest.raises(SignatureError, match="no tensors"):
        example_tensors({})
    with pytest.raises(SignatureError, match="sparse"):
        example_tensors({"x": torch.eye(2).to_sparse()})
