"""How an artifact goes to another process: as its folder.

A saved one goes as the path of its folder, with the checksum of its manifest, which has the hashes
of all files: what arrives is what was sent. One that isn't saved goes with its files. A pickle can
run code, so whoever reads one trusts who wrote it: files that are programs are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError
from ..ir.scratch import Scratch
from .integrity import MANIFEST, checksum, parsed, read_text

if TYPE_CHECKING:
    from .artifact import Artifact


def packed(artifact: Artifact) -> tuple[Callable[..., Artifact], tuple[Any, ...]]:
    """What `pickle` keeps of an artifact.

    Raises:
        ArtifactError: Its folder was removed, or isn't what it was.
    """
    if artifact.scratch is None:
        return _arrived, (str(artifact.folder.absolute()), _checksum(artifact, artifact.folder))
    if artifact.saved is not None:
        try:
            return _arrived, (str(artifact.saved), _checksum(artifact, artifact.saved))
        except ArtifactError:
            pass  # moved or changed since: it has all its files itself
    try:
        with Scratch() as place:
            artifact.write(place)
            return _unpacked, ({path.name: path.read_bytes() for path in place.iterdir()},)
    except OSError as error:
        raise ArtifactError(f"the artifact can't be copied to be sent: {error}") from error


def _checksum(artifact: Artifact, folder: Path) -> str:
    """That of a folder's manifest, which must be the artifact's."""
    from .artifact import read_manifest

    if read_manifest(folder) != artifact.manifest:
        raise ArtifactError(
            f"{folder} holds another artifact by now. Load it anew, or save this one elsewhere."
        )
    return _found_checksum(folder)


def _found_checksum(folder: Path) -> str:
    path = folder / MANIFEST
    return checksum(parsed(path, read_text(path)))


def _arrived(folder: str, sent: str) -> Artifact:
    """An artifact that was pickled by the path of its folder."""
    from .artifact import Artifact

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
    return Artifact.load(place, trust_code=True)


def _unpacked(files: Mapping[str, bytes]) -> Artifact:
    """An artifact that was pickled with all its files, in a folder for temporary files."""
    from .artifact import Artifact

    scratch = Scratch()
    try:
        for name, content in files.items():
            (scratch.path / Path(name).name).write_bytes(content)
    except OSError as error:
        raise ArtifactError(f"{scratch.path} can't be written: {error}") from error
    artifact = Artifact.load(scratch.path, trust_code=True)
    artifact.scratch = scratch
    return artifact
