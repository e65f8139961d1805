"""What commands print with, and what they return."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


#: Exit codes: within budget or unverified, an error, over budget or inconclusive.
OK, ERROR, OVER = 0, 1, 2


def new_console() -> Console:
    """The terminal, or a pipe whose reader may go away."""
    from rich.console import Console

    class Piped(Console):
        """Leaves a reader that went away to `main`, where rich would exit as after an error."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped()


def new_table(title: str, *columns: str) -> Table:
    """An empty table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
