"""The commands that say why not are on the command line."""

from __future__ import annotations

import pytest
from rankc.optimizer.cli import main


@pytest.mark.parametrize("command", ["bisect", "debug", "doctor"])
def test_each_says_what_it_takes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--trust-code" in capsys.readouterr().out
