"""Rounds that were reached are kept, or aren't."""

from __future__ import annotations

from pathlib import Path

import pytest
from rankc.optimizer.errors import RecoverError
from rankc.optimizer.training.checkpoint import Checkpoint


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "c", "one", "stage", trust_code=True)
    with pytest.raises(RecoverError):
        Checkpoint(tmp_path / "c", "other", "stage", trust_code=True)


def test_without_a_folder_nothing_is_kept() -> None:
    assert Checkpoint(None, "one", "stage").load(0) is None
