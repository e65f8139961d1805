"""``rankc verify`` of what is no artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
from rankc.optimizer.cli import main


def test_a_folder_without_a_manifest_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
