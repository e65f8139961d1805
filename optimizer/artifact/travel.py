"""How an artifact goes to another process: as its folder.

A saved one goes as the path of its folder, with the checksum of its manifest, which has the hashes
of all files: what arrives is what was sent. One that isn't saved goes with its files. A pickle can
run code, so whoever reads one trusts who wrote it: files that are programs are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..ir.scratch import Scratch
from .integrity import MANIFEST, checksum, parsed, read_text
from .manifest import read_manifest


def packed(artifact: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What `pickle` keeps of an artifact.

    Raises:
        ArtifactError: Its folder was removed, or isn't what it was.
    """
    if artifact.scratch is None:
        sent = _checksum(artifact, artifact.folder)
        return _arrived, (type(artifact), str(artifact.folder.absolute()), sent)
    if artifact.saved is not None:
        try:
            sent = _checksum(artifact, artifact.saved)
            return _arrived, (type(artifact), str(artifact.saved), sent)
        except ArtifactError:
            pass  # moved or changed since: it has all its files itself
    try:
        with Scratch() as place:
            artifact.write(place)
            files = {path.name: path.read_bytes() for path in place.iterdir()}
            return _unpacked, (type(artifact), files)
    except OSError as error:
        raise ArtifactError(f"the artifact can't be copied to be sent: {error}") from error


def _checksum(artifact: Any, folder: Path) -> str:
    """That of a folder's manifest, which must be the artifact's."""
    if read_manifest(folder) != artifact.manifest:
        raise ArtifactError(
            f"{folder} holds another artifact by now. Load it anew, or save this one elsewhere."
        )
    return _found_checksum(folder)


def _found_checksum(folder: Path) -> str:
    path = folder / MANIFEST
    return checksum(parsed(path, read_text(path)))


def _arrived(kind: type[Any], folder: str, sent: str) -> Any:
    """An artifact that was pickled by the path of its folder."""
    place = Path(folder)
    if not place.is_dir():
        raise ArtifactError(
            f"a saved artifact is pickled as the path of its folder, and {folder} isn't on this "
            "machine. Copy it there, or save it where both can read it."
        )
    if _found_checksum(place) != sent:
        raise ArtifactError(
            f"{folder} holds another artifact than when it was pickled. Pickle it anew, or keep "
            "each in a folder of its own."
        )
    return kind.load(place, trust_code=True)


def _unpacked(kind: type[Any], files: Mapping[str, bytes]) -> Any:
    """An artifact that was pickled with all its files, in a folder for temporary files."""
    scratch = Scratch()
    try:
        for name, content in files.items():
            (scratch.path / Path(name).name).write_bytes(content)
    except OSError as error:
        raise ArtifactError(f"{scratch.path} can't be written: {error}") from error
    artifact = kind.load(scratch.path, trust_code=True)
    artifact.scratch = scratch
    return artifact
