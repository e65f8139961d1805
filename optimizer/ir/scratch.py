"""Folders to write in that end with their owner, and files that are written whole or not at all.

A scratch folder is locked (``flock``) for as long as the process that made it lives, and the lock
goes with the process however that ends. So what is found unlocked was left by a dead one: it is
removed when the next folder is made in the same place. ``systemd-tmpfiles`` heeds the same lock.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import ArtifactError

_PREFIX = "rankc-scratch-"
#: What `tempfile.mkdtemp` makes of the prefix, alone or behind the name of what will be there.
_NAME = re.compile(rf"(\..+\.)?{_PREFIX}[a-z0-9_]{{8}}")
#: What a folder is called while another takes its place, where the two can't be exchanged at once.
_ASIDE = re.compile(r"\.(?P<name>.+)\.rankc-aside")
#: Of `renameat2`: paths are relative to the working folder, and names are exchanged.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Scratch:
    """A folder of this process; removed when nothing holds it any more, at exit at the latest.

    Attributes:
        path: Where it is.
    """

    def __init__(self, parent: Path | None = None, beside: str = "") -> None:
        """Makes a folder, and removes those that dead processes left in the same place.

        Args:
            parent: Where; the machine's folder for temporary files when None.
            beside: The name of the file or folder that it is to become: it is hidden then.

        Raises:
            ArtifactError: There is no place for temporary files, or it can't be written.
            OSError: ``parent`` was given and can't be written.
        """
        place = parent if parent is not None else _temporary()
        remove_left(place)
        prefix = f".{beside}.{_PREFIX}" if beside else _PREFIX
        with _Undisturbed():
            try:
                self.path, self._lock = _locked_folder(prefix, place)
            except OSError as error:
                if parent is not None:
                    raise
                raise _no_place(place, error) from error
            self._end = weakref.finalize(self, _remove, self.path, self._lock, os.getpid())

    def remove(self) -> None:
        """Removes the folder, if it is still there and this process made it."""
        with _Undisturbed():
            self._end()

    def become(self, destination: Path) -> None:
        """Moves the folder to where nothing is yet; it is nobody's scratch from then on.

        Raises:
            OSError: It can't be moved.
        """
        self.path.rename(destination)
        self._end.detach()
        os.close(self._lock)

    def take_place_of(self, folder: Path) -> None:
        """Exchanges it with a folder that is there, and removes what was.

        Where the system can exchange names, one of the two is there at each moment. Elsewhere the
        old one is set aside first: a kill in between is mended by the next `remove_left`.

        Raises:
            OSError: They can't be moved.
        """
        if not _exchanged(self.path, folder):
            _exchange_slowly(self.path, folder)
        self.remove()  # what is called like the scratch folder is the old one by now

    def failed(self, error: BaseException) -> None:
        """Removes the folder after an error, and tells one of writing to it in our words.

        Raises:
            ArtifactError: It couldn't be written to.
        """
        self.remove()
        if isinstance(error, OSError):
            raise ArtifactError(
                f"{self.path} can't be written to ({error}). Free space there, or set TMPDIR to a "
                "folder that has some."
            ) from error

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        self.remove()


class _Undisturbed:
    """Lets Ctrl-C, and a SIGTERM that somebody handles, wait until what is inside has ended.

    An interrupt that is raised between making a folder and noting it, or half-way through removing
    one, would leave it.
    """

    def __enter__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread is interrupted
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._later)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for number in self._came[:1]:
            signal.raise_signal(number)

    def _later(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place to write a file to, which becomes ``path`` once the block has ended well.

    Until then whatever was at ``path`` stays as it was.

    Raises:
        OSError: The folder of ``path`` can't be written.
    """
    final = Path(os.path.realpath(path))
    with Scratch(final.parent, final.name) as folder:
        place = folder / final.name
        yield place
        place.replace(final)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``path`` once the block has ended well.

    Raises:
        OSError: The folder above can't be written, or ``path`` exists.
    """
    scratch = Scratch(path.parent, path.name)
    with scratch as folder:
        yield folder
        folder.chmod(0o755)
        scratch.become(path)


def write_whole(path: Path, text: str) -> None:
    """Writes a file of text, whole or not at all.

    Raises:
        OSError: It can't be written.
    """
    with written_whole(path) as place:
        place.write_text(text)


def remove_left(place: Path) -> None:
    """Removes the scratch folders that dead processes of this user left in a place.

    A folder that such a process had set aside is put back if nothing has taken its place.
    """
    try:
        names = os.listdir(place)
    except OSError:
        return  # whoever makes a folder there will be told
    for name in names:
        aside = _ASIDE.fullmatch(name)
        if aside is not None:
            _end_if_left(place / name, place / aside["name"])
        elif _NAME.fullmatch(name):
            _end_if_left(place / name)


def _end_if_left(path: Path, was: Path | None = None) -> None:
    """Removes a folder whose owner is dead, or puts it back where it was."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return  # removed meanwhile, a link, or another user's
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if was is not None and not os.path.lexists(was):
                path.rename(was)
            else:
                shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # its owner lives, or the file system can't tell
    finally:
        os.close(lock)


def _locked_folder(prefix: str, place: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process took it for left, before it was locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            return path, lock  # a file system without locks: nobody there can take it for left
        if path.exists():
            return path, lock
        os.close(lock)


def _remove(path: Path, lock: int, owner: int) -> None:
    with _Undisturbed():
        # A forked child holds the same lock, and its parent's folder isn't its own to remove.
        if os.getpid() == owner:
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _exchanged(first: Path, second: Path) -> bool:
    """Whether two names were exchanged at once; not where system or file system can't."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _exchange_slowly(first: Path, second: Path) -> None:
    aside = second.with_name(f".{second.name}.rankc-aside")
    lock = os.open(second, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        second.rename(aside)
        try:
            first.rename(second)
        except OSError:
            aside.rename(second)
            raise
        aside.rename(first)
    finally:
        os.close(lock)


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise ArtifactError(
            f"there is no folder for temporary files ({error}). Set TMPDIR to one that can be "
            "written."
        ) from error


def _no_place(place: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"no temporary folder can be made in {place} ({error.strerror or error}). Free space "
        "there, or set TMPDIR to a folder that can be written."
    )
