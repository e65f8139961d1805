"""What finetuning has reached, kept in a folder, so that it can go on after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from .errors import RecoverError
from .ir.program import Program

_SIGNATURE = "signature.json"


class Checkpoint:
    """A folder of rounds; nothing is kept where there is none.

    A round is written beside its place and then moved there, so that a stop in between leaves no
    half of one.
    """

    def __init__(self, folder: str | Path | None, signature: str, stage: str) -> None:
        """Opens the folder, or begins it.

        Raises:
            RecoverError: It belongs to another model, other rows or another plan.
        """
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = self._folder / _SIGNATURE
        own = json.dumps({"signature": signature, "stage": stage}, indent=1)
        if not mark.exists():
            mark.write_text(own)
        elif mark.read_text() != own:
            raise RecoverError(
                f"the checkpoint in {self._folder} is of another model, of other rows, or of other "
                "settings of Distill or the budget. Give another folder, or remove this one to "
                "begin anew."
            )

    def load(self, number: int) -> tuple[Program, Mapping[str, float]] | None:
        """A round's program and numbers, or None if it was not reached."""
        folder = self._place(number)
        if folder is None or not folder.is_dir():
            return None
        values: dict[str, float] = json.loads((folder / "state.json").read_text())
        return Program.load(folder / "program.pt2", trust_code=True), values

    def save(self, number: int, program: Program, values: Mapping[str, float]) -> None:
        """Keeps a round."""
        folder = self._place(number)
        if folder is None:
            return
        half = folder.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        program.save(half / "program.pt2")
        (half / "state.json").write_text(json.dumps(dict(values)))
        half.rename(folder)

    def _place(self, number: int) -> Path | None:
        return None if self._folder is None else self._folder / f"round-{number + 1:02d}"
