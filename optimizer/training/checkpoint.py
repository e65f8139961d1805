"""What finetuning has reached, kept in a folder, so that it can go on after a stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..errors import ArtifactError, CheckpointError, RecoverError
from ..fitting import reading, require
from ..ir.program import Program
from ..ir.scratch import remove_left, write_whole, written_folder

_SIGNATURE, _STATE, _PROGRAM = "signature.json", "state.json", "program.pt2"


class Checkpoint:
    """A folder of rounds; nothing is kept where there is none.

    A round is written beside its place and then moved there, so that a stop in between leaves no
    half of one.
    """

    def __init__(
        self, folder: str | Path | None, signature: str, stage: str, *, trust_code: bool = False
    ) -> None:
        """Opens the folder, or begins it.

        Args:
            folder: Where; None keeps nothing.
            signature: Of the model, the rows and the plan.
            stage: Of what is finetuned.
            trust_code: Whether rounds that are there may be opened: they are ``.pt2`` files.

        Raises:
            RecoverError: It belongs to another model, other rows or another plan.
        """
        self._folder = None if folder is None else Path(folder)
        self._trust_code = trust_code
        if self._folder is None:
            return
        mark = self._folder / _SIGNATURE
        own = json.dumps({"signature": signature, "stage": stage}, indent=1)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_left(self._folder)
            if not mark.exists():
                write_whole(mark, own)
            theirs = mark.read_bytes()
        except OSError as error:
            raise RecoverError(f"the checkpoint {self._folder} can't be used: {error}") from error
        if theirs != own.encode():
            raise RecoverError(
                f"the checkpoint in {self._folder} is of another model, of other rows, or of other "
                "settings of Distill or the budget. Give another folder, or remove this one to "
                "begin anew."
            )

    def load(self, number: int) -> tuple[Program, Mapping[str, float]] | None:
        """A round's program and numbers, or None if it was not reached.

        Raises:
            CheckpointError: It may not be opened, a file of it is damaged, or isn't what was
                written.
        """
        folder = self._place(number)
        if folder is None or not folder.is_dir():
            return None
        state, saved = folder / _STATE, folder / _PROGRAM
        if not self._trust_code:
            raise CheckpointError(
                f"{saved} may hold code: PyTorch unpickles a .pt2, which runs whatever its author "
                "put in. If this folder is your own run's, go on with trust_code=True; else give "
                "another folder to begin anew."
            )
        with reading(state, CheckpointError):
            found = dict(json.loads(state.read_text()))
            digest = found.pop("sha256", None)
            values = {name: float(value) for name, value in found.items()}
            require(all(map(math.isfinite, values.values())), "a value", "is no number")
            require(values.keys() >= {"seconds", "flops"}, "it", "lacks the seconds or the flops")
        # What was cut off or mixed up is told before PyTorch sees it.
        with reading(saved, CheckpointError):
            require(digest == _sha256(saved), "it", "isn't what was written")
        try:
            return Program.load(saved, trust_code=True), values
        except Exception as error:  # whatever PyTorch says of a file that it can't read
            raise CheckpointError(f"{saved} is damaged: {error}") from error

    def save(self, number: int, program: Program, values: Mapping[str, float]) -> None:
        """Keeps a round.

        Raises:
            RecoverError: The folder can't be written.
        """
        folder = self._place(number)
        if folder is None:
            return
        try:
            with written_folder(folder) as half:
                program.save(half / _PROGRAM)
                state = {**values, "sha256": _sha256(half / _PROGRAM)}
                (half / _STATE).write_text(json.dumps(state))
        except (ArtifactError, OSError) as error:
            raise RecoverError(f"the checkpoint {folder} can't be written: {error}") from error

    def _place(self, number: int) -> Path | None:
        return None if self._folder is None else self._folder / f"round-{number + 1:02d}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
