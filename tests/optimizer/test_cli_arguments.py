"""Arguments that several commands take."""

from __future__ import annotations

import argparse

import pytest
from rankc.optimizer.cli_arguments import sizes_of
from rankc.optimizer.errors import RankcError


def test_batch_sizes_are_numbers() -> None:
    assert sizes_of("64,512") == (64, 512)
    with pytest.raises((RankcError, argparse.ArgumentTypeError), match="64"):
        sizes_of("64,many")
