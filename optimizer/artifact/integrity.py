"""An artifact's folder is what its manifest says: whole files, all of them listed, and no links.

Files up to 1 GiB are hashed before they are opened. Of larger ones the first and the last block
are, and the rest by a thread beside the first calls, which fail as soon as a block is wrong.
Runtimes map files into memory, so a file that is written to would change the scores of what is
open: each call looks at the files' sizes and times afterwards, and hashes a file whose times have
changed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError

MANIFEST, REPORT_JSON, REPORT_TEXT = "manifest.json", "report.json", "report.txt"
SIGNATURE = "manifest.sig"
REPORTS = (REPORT_JSON, REPORT_TEXT)
#: What a folder holds besides the backend's files.
OWN = frozenset({MANIFEST, *REPORTS, SIGNATURE})
#: Files of more bytes have a hash a block, and are hashed while the artifact already serves.
LAZY_BYTES = 1 << 30
BLOCK_BYTES = 1 << 24
_PIECE = 1 << 20
#: Of text files: a manifest of a model with 10,000 features has 3 MB.
_TEXT_BYTES = 1 << 28

Facts = Mapping[str, Any]
ArrayRunner = Callable[[Mapping[str, Any]], dict[str, Any]]


def file_facts(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of files; of large ones the sha256 of each block as well."""
    return {name: _facts(folder / name) for name in names}


def _facts(path: Path) -> dict[str, Any]:
    whole, blocks = hashlib.sha256(), []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, BLOCK_BYTES):
            block = hashlib.sha256()
            for piece in _pieces(file.fileno(), start, BLOCK_BYTES):
                whole.update(piece)
                if size > LAZY_BYTES:
                    block.update(piece)
            blocks.append(block.hexdigest())
    facts: dict[str, Any] = {"bytes": size, "sha256": whole.hexdigest()}
    if size > LAZY_BYTES:
        facts["blocks"] = {"bytes": BLOCK_BYTES, "sha256": blocks}
    return facts


def _pieces(descriptor: int, start: int, count: int) -> Iterator[bytes]:
    """``count`` bytes from ``start`` on, or what there is of them."""
    while count > 0:
        piece = os.pread(descriptor, min(_PIECE, count), start)
        if not piece:
            return
        start, count = start + len(piece), count - len(piece)
        yield piece


def _sha256(descriptor: int, start: int, count: int) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(descriptor, start, count):
        digest.update(piece)
    return digest.hexdigest()


def checksum(data: Mapping[str, Any]) -> str:
    """The sha256 of a manifest's other fields, by which a damaged manifest is told."""
    rest = {name: value for name, value in data.items() if name != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(data: Mapping[str, Any], reports: Mapping[str, Facts]) -> dict[str, Any]:
    """A manifest with the facts of the reports, and its own checksum."""
    whole = {**data, "reports": dict(reports)}
    return {**whole, "checksum": checksum(whole)}


def json_text(data: Any) -> str:
    """How an artifact's JSON files are written."""
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def open_regular(path: Path) -> int:
    """A descriptor of a file that is no link, for reading.

    Raises:
        ArtifactError: It is missing, a link, or no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path.parent} is incomplete: {path.name} is missing. Copy it again."
        ) from error
    except OSError as error:
        if path.is_symlink():
            raise ArtifactError(
                f"{path.parent} is foreign: {path.name} is a link. An artifact holds files; "
                "copy what the link stands for, as cp -L does."
            ) from error
        raise ArtifactError(f"{path} can't be read: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path.parent} is foreign: {path.name} is no file.")
    return descriptor


def parsed(path: Path, text: str) -> Any:
    """What the text of a JSON file stands for.

    Raises:
        ArtifactError: It is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArtifactError(f"{path} is damaged or foreign: {reason}") from error


def read_text(path: Path) -> str:
    """The text of a file of an artifact.

    Raises:
        ArtifactError: It is missing, a link, no text, or larger than any that rankc writes.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _TEXT_BYTES:
            raise ArtifactError(f"{path} is damaged or foreign: it has {size:,} bytes.")
        data = file.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is damaged or foreign: {error}") from error


def check_listed(folder: Path, files: Collection[str]) -> None:
    """Raises unless a folder holds what its manifest lists, and nothing else.

    Raises:
        ArtifactError: What is missing, what is there besides, or a name that is another's.
    """
    if not files:
        raise ArtifactError(
            f"{folder} is foreign: its manifest lists no files, so there is nothing to run."
        )
    taken = sorted(OWN.intersection(files))
    if taken:
        raise ArtifactError(f"{folder} is foreign: its manifest lists {taken} among its files.")
    try:
        there = set(os.listdir(folder))
    except OSError as error:
        raise ArtifactError(f"{folder} can't be read: {error}") from error
    missing = sorted({*files, *REPORTS} - there)
    if missing:
        raise ArtifactError(f"{folder} is incomplete: {missing[0]} is missing. Copy it again.")
    more = sorted(there - OWN - set(files))
    if more:
        raise ArtifactError(
            f"{folder} holds what its manifest doesn't list: {', '.join(more[:4])}. "
            "Remove it, or copy the artifact again."
        )


@dataclass
class _Open:
    """An open file, and what it must stay.

    Attributes:
        name: In the folder.
        descriptor: By which it is read.
        facts: Of the manifest.
        stamp: Its size and the time it was last written to, in nanoseconds.
        unread: Blocks of a large file that weren't hashed yet.
    """

    name: str
    descriptor: int
    facts: Facts
    stamp: tuple[int, int]
    unread: list[int]


class OpenFiles:
    """The files of an artifact that is open.

    Args:
        folder: The artifact.
        files: Of its manifest: ``{name: {bytes, sha256}}``.
        whole: Whether large files are hashed whole at once.

    Raises:
        ArtifactError: A file is missing, a link, of another size, or has another sha256.
    """

    def __init__(self, folder: Path, files: Mapping[str, Facts], *, whole: bool = False) -> None:
        self._folder = folder
        self._files: list[_Open] = []
        self._damage = ""
        self._reader: tuple[int, threading.Thread] | None = None
        self._starting = threading.Lock()
        descriptors: list[int] = []
        weakref.finalize(self, _close, descriptors)
        for name, facts in files.items():
            descriptor = open_regular(folder / name)
            descriptors.append(descriptor)
            one = _Open(name, descriptor, facts, _stamp(descriptor), [])
            self._check_size(one)
            blocks = None if whole else facts.get("blocks")
            if blocks is None:
                self._check_whole(one)
            else:
                one.unread = list(range(len(blocks["sha256"])))
                for index in {0, one.unread[-1]}:
                    self._check_block(one, index)
                    one.unread.remove(index)
            self._files.append(one)

    def watched(self, run: ArrayRunner) -> ArrayRunner:
        """A runner whose calls fail when a file was written to before they ended."""

        def checked(arrays: Mapping[str, Any]) -> dict[str, Any]:
            found = run(arrays)
            self.check()
            return found

        return checked

    def check(self) -> None:
        """Raises if a file isn't what it was when it was opened.

        Raises:
            ArtifactError: Which.
        """
        self._read_on()
        for one in self._files:
            stamp = _stamp(one.descriptor)
            if stamp != one.stamp:
                try:
                    self._check_size(one)
                    self._check_whole(one)
                except ArtifactError:
                    self._damage = (
                        f"{self._folder / one.name} was changed while the artifact was open, so "
                        "that its scores are no longer those that were judged. Load the folder "
                        "again; write changes to a new folder."
                    )
                    break
                one.stamp = stamp
        if self._damage:
            raise ArtifactError(self._damage)

    def finish(self) -> None:
        """Waits until all of the large files was hashed.

        Raises:
            ArtifactError: A block isn't what it was when the artifact was written.
        """
        self._read_on()
        if self._reader is not None:
            self._reader[1].join()
        self.check()

    def _read_on(self) -> None:
        """Hashes what is left of large files beside the calls, once a process."""
        if not any(one.unread for one in self._files) or not self._starting.acquire(blocking=False):
            return
        try:
            if self._reader is None or self._reader[0] != os.getpid():
                thread = threading.Thread(target=self._read, name="rankc-hashes", daemon=True)
                self._reader = os.getpid(), thread
                thread.start()
        finally:
            self._starting.release()

    def _read(self) -> None:
        try:
            for one in self._files:
                while one.unread:
                    self._check_block(one, one.unread[0])
                    one.unread.pop(0)
        except (ArtifactError, OSError) as error:
            self._damage = self._damage or str(error)

    def _check_size(self, one: _Open) -> None:
        size = os.fstat(one.descriptor).st_size
        if size != one.facts["bytes"]:
            raise ArtifactError(
                f"{self._folder} is damaged: {one.name} has {size:,} bytes, the manifest says "
                f"{one.facts['bytes']:,}. Copy it again."
            )

    def _check_whole(self, one: _Open) -> None:
        if _sha256(one.descriptor, 0, one.facts["bytes"]) != one.facts["sha256"]:
            raise ArtifactError(
                f"{self._folder} is damaged: {one.name} isn't what was written (another sha256). "
                "Copy it again."
            )

    def _check_block(self, one: _Open, index: int) -> None:
        size = one.facts["blocks"]["bytes"]
        found = _sha256(one.descriptor, index * size, size)
        if found != one.facts["blocks"]["sha256"][index]:
            raise ArtifactError(
                f"{self._folder} is damaged: {one.name} isn't what was written from byte "
                f"{index * size:,} on (another sha256). Copy it again."
            )


def check_reports(folder: Path, reports: Mapping[str, Facts]) -> None:
    """Raises unless the reports are what was written.

    Args:
        folder: The artifact.
        reports: Of its manifest; empty where an older rankc wrote it, which didn't list them.

    Raises:
        ArtifactError: Which isn't.
    """
    for name in REPORTS:
        descriptor = open_regular(folder / name)
        try:
            facts = reports.get(name)
            size = os.fstat(descriptor).st_size
            if facts is None:
                continue
            if (size, _sha256(descriptor, 0, size)) != (facts["bytes"], facts["sha256"]):
                raise ArtifactError(
                    f"{folder / name} is damaged: it isn't what was written (another sha256). "
                    "Copy it again."
                )
        finally:
            os.close(descriptor)


def _stamp(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
