"""Scratch folders end with their owner, however it ends; files are written whole or not at all."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from rankc.optimizer.errors import ArtifactError
from rankc.optimizer.ir.scratch import (
    Scratch,
    remove_left,
    write_whole,
    written_folder,
    written_whole,
)


def left_by_a_killed_process(parent: Path, beside: str = "") -> Path:
    """A scratch folder whose owner was killed while it held it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        scratch = Scratch(parent, beside)
        (scratch.path / "half").write_text("half of it")
        os.write(write, str(scratch.path).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    os.waitpid(child, 0)
    path = Path(os.read(read, 4096).decode())
    os.close(read)
    return path


@pytest.mark.parametrize("beside", ["", "artifact", "model.pt2"])
def test_what_a_killed_process_left_is_removed_at_the_next_start(
    tmp_path: Path, beside: str
) -> None:
    path = left_by_a_killed_process(tmp_path, beside)
    assert (path / "half").exists()
    with Scratch(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert not list(tmp_path.iterdir())


def test_what_a_living_process_holds_is_left_alone(tmp_path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        held = Scratch(tmp_path)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0 if held.path.exists() else 1)
    os.read(ready[0], 1)
    remove_left(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.exists()
    os.write(done[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    remove_left(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_forked_child_neither_removes_nor_releases_its_parents_folder(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    child = os.fork()
    if child == 0:
        scratch.remove()
        os._exit(0)
    os.waitpid(child, 0)
    remove_left(tmp_path)
    assert scratch.path.exists()
    scratch.remove()
    assert not scratch.path.exists()


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    names = (
        "rankc-demo",
        "rankc-scratch",
        "rankc-scratch-mine",
        ".a.rankc-",
        "a.rankc-scratch-abcdefgh",
    )
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rankc-scratch-abcdefgh").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "rankc-scratch-abcdefgi").write_text("a file")
    before = sorted(tmp_path.iterdir())
    remove_left(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_many_processes_make_and_remove_at_once(tmp_path: Path) -> None:
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            lost = 0
            for _ in range(40):
                with Scratch(tmp_path) as own:
                    (own / "mine").write_text("mine")
                    lost += (own / "mine").read_text() != "mine"
            os._exit(lost)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0] * 6
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_once_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("old")

    def half() -> None:
        with written_whole(path) as place:
            place.write_text("ne")
            assert path.read_text() == "old"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half()
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_linked_file_is_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "file", tmp_path / "file"
    real.write_text("old")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "artifact"

    def half() -> None:
        with written_folder(path) as place:
            (place / "one").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not list(tmp_path.iterdir())
    with written_folder(path) as place:
        (place / "one").write_text("1")
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_no_place_for_temporary_files_is_an_error_in_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    place = tmp_path / "tmp"
    if what == "a file":
        place.write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with pytest.raises(ArtifactError, match=r"no temporary folder can be made in .*set TMPDIR"):
        Scratch()
    # The remedy.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Scratch().remove()


def test_no_folder_for_temporary_files_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ArtifactError, match="Set TMPDIR to one that can be written"):
        Scratch()
