"""Tensors that don't fit the signature are refused by name."""

from __future__ import annotations

import pytest
import torch
from rankc.optimizer.data.checks import check_features
from rankc.optimizer.errors import DataError, SignatureError
from rankc.optimizer.ir import Program


def test_what_fits_passes_and_what_does_not_is_named(program: Program) -> None:
    check_features(program.signature, {"dense": torch.zeros(3, 6)})
    for value, said in (
        (torch.zeros(3, 6).double(), "is float64, expected float32"),
        (torch.zeros(3, 5), r"has shape \[3, 5\]"),
    ):
        with pytest.raises(SignatureError, match=said):
            check_features(program.signature, {"dense": value})
    bad = torch.zeros(3, 6)
    bad[1, 2] = float("nan")
    with pytest.raises(DataError, match="first in row 11"):
        check_features(program.signature, {"dense": bad}, first_row=10)
