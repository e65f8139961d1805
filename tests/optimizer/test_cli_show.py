"""``rankc passes`` and ``rankc targets``."""

from __future__ import annotations

import pytest
from rankc.optimizer.cli import main


@pytest.mark.parametrize(("command", "name"), [("passes", "fold-affine"), ("targets", "cpu-int8")])
def test_everything_there_is_is_listed(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 0
    assert name in capsys.readouterr().out
