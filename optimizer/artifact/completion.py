"""`complete`: what of a saved artifact is built on the machine that serves it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from ..errors import ArtifactError, TargetError
from ..ir.scratch import Scratch, remove_left
from ..registry import backend
from ..target import Target
from .integrity import (
    MANIFEST,
    REPORTS,
    OpenFiles,
    check_reports,
    file_facts,
    json_text,
    open_regular,
    sealed,
)
from .manifest import Manifest, manifest_and_reports


def complete(folder: str | Path) -> tuple[str, ...]:
    """Builds what of a saved artifact has to be built on the machine that serves it.

    It is built into a folder beside, which then takes the artifact's place: whoever has it open
    keeps what it opened, and a kill leaves the one or the other. A signature was of the manifest as
    it was, and isn't kept.

    Returns:
        The files that were added or changed; the manifest lists them afterwards.

    Raises:
        ArtifactError: There is nothing to build, a file isn't what was written, or the folder above
            can't be written.
        TargetError: It can't be built here; what is needed.
    """
    place = Path(folder).resolve()
    remove_left(place.parent)
    manifest, reports = manifest_and_reports(place)
    target = _target(place, manifest)
    try:
        scratch = Scratch(place.parent, place.name)
        with scratch as made:
            files: tuple[str, ...] = backend(manifest.backend).complete(
                place, made, target, manifest.batch_sizes
            )
            if not files:
                raise ArtifactError(
                    f"{place} was built by the {manifest.backend} backend and is complete: "
                    "there is nothing left to build."
                )
            kept = [name for name in manifest.files if name not in files]
            for name in (*kept, *REPORTS):
                _same_file(place / name, made / name)
            known = {**manifest.files, **file_facts(made, files)}
            whole = sealed(replace(manifest, files=known).to_json(), reports)
            (made / MANIFEST).write_text(json_text(whole))
            OpenFiles(made, known)
            check_reports(made, reports)
            made.chmod(place.stat().st_mode & 0o7777)
            scratch.take_place_of(place)
    except OSError as error:
        raise ArtifactError(
            f"{place} can't be completed: {error}. It is as it was. `rankc build` writes a folder "
            "beside it: free space there, or let it be written."
        ) from error
    return files


def _target(folder: Path, manifest: Manifest) -> Target:
    """What an artifact was built for.

    Raises:
        ArtifactError: A target of somebody's own, and an earlier version wrote the folder.
    """
    if manifest.made_for is not None:
        return manifest.made_for
    try:
        return Target.of(manifest.target)
    except TargetError as error:
        raise ArtifactError(
            f"{folder} was made for {manifest.target!r}, no target of rankc's, by a version that "
            "didn't write down what that is. Optimize again: this version does."
        ) from error


def _same_file(source: Path, destination: Path) -> None:
    """A second name of a file, which nobody writes to; a copy where there can be none.

    Raises:
        ArtifactError: It is missing, a link, or no file.
        OSError: It can't be copied.
    """
    os.close(open_regular(source))
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
