"""A reader that goes away ends the command, not the process."""

from __future__ import annotations

import pytest
from rankc.optimizer.cli_console import new_console, new_table


def test_a_broken_pipe_is_left_to_main() -> None:
    with pytest.raises(BrokenPipeError):
        new_console().on_broken_pipe()


def test_tables_have_the_columns_that_were_named() -> None:
    assert [column.header for column in new_table("t", "a", "b").columns] == ["a", "b"]
