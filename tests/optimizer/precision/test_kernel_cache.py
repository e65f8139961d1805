"""Kernel times on disk: what is damaged is measured anew, what is written at once is all kept."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import rankc
import torch
from rankc.optimizer.precision.kernel_cache import KernelCache, default_folder
from rankc.optimizer.precision.kernel_times import Kernel, KernelTimes, Trial

MACHINE = "a processor; onnxruntime: 1"


def on_disk(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "kernels.json").read_text())
    return found


def keep_many(folder: Path, writer: int, count: int) -> None:
    for number in range(count):
        KernelCache(folder).merged(MACHINE, {f"w{writer} k{number}": 1e-6})


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    children = []
    for writer in range(8):
        child = os.fork()
        if child == 0:
            keep_many(tmp_path, writer, 10)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0] * 8
    assert len(on_disk(tmp_path)[MACHINE]) == 80
    assert {path.name for path in tmp_path.iterdir()} <= {"kernels.json", "kernels.lock"}


def test_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            keep_many(tmp_path, writer, 10)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(on_disk(tmp_path)[MACHINE]) == 80


DAMAGED = {
    "empty": b"",
    "cut off": b'{"a processor; onnxruntime: 1": {"64x8x8 fp32": 1e-',
    "not text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "a number": b"7",
    "no times": b'{"a processor; onnxruntime: 1": 3}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_as_if_it_were_not_there(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kernels.json").write_bytes(content)
    cache = KernelCache(tmp_path)
    assert cache.read(MACHINE) == {}
    assert str(tmp_path / "kernels.json") in caplog.text
    assert cache.merged(MACHINE, {"k": 2e-6}) == {"k": 2e-6}
    assert on_disk(tmp_path)[MACHINE] == {"k": 2e-6}


def test_times_that_cannot_be_true_are_measured_anew(tmp_path: Path) -> None:
    text = (
        '{"negative": -1e-6, "zero": 0, "nan": NaN, "inf": Infinity, "true": true, "text": "1e-6",'
        f'"list": [1e-6], "null": null, "years": 1e9, "huge": 1{"0" * 400}, "tiny": 1e-300,'
        '"fine": 3e-6}'
    )
    (tmp_path / "kernels.json").write_text(f'{{"{MACHINE}": {text}, "another": {{"k": 1e-6}}}}')
    cache = KernelCache(tmp_path)
    assert cache.read(MACHINE) == {"fine": 3e-6}
    kept = cache.merged(MACHINE, {"zero": 4e-6, "nan": float("nan")})
    assert kept == {"fine": 3e-6, "zero": 4e-6}
    assert on_disk(tmp_path) == {MACHINE: kept, "another": {"k": 1e-6}}


def test_what_others_measured_meanwhile_is_taken(tmp_path: Path) -> None:
    KernelCache(tmp_path).merged(MACHINE, {"k": 1e-6})
    assert KernelCache(tmp_path).merged(MACHINE, {"k": 9e-6, "l": 2e-6}) == {"k": 1e-6, "l": 2e-6}


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = KernelCache(tmp_path / "file" / "folder")
    assert cache.read(MACHINE) == {}
    assert cache.merged(MACHINE, {"k": 1e-6}) == {"k": 1e-6}
    assert "kernel times aren't remembered" in caplog.text


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert default_folder() is None
    cache = KernelCache(None)
    assert cache.merged(MACHINE, {"k": 1e-6}) == {"k": 1e-6}
    assert cache.read(MACHINE) == {}


def test_kernels_are_timed_anew_where_the_cache_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_text("{")
    generator = torch.Generator().manual_seed(0)
    samples, weight = (torch.randn(32, 16, generator=generator) for _ in range(2))
    kernel = Kernel(16, 32, 32, bias=True, relu=False, format="fp32")
    times = KernelTimes(rankc.Target.of("cpu-int8"), tmp_path)
    times.learn([Trial(kernel, None, samples, weight)])
    (kept,) = on_disk(tmp_path).values()
    assert kept == {kernel.key: times.seconds(kernel)}
    assert KernelTimes(rankc.Target.of("cpu-int8"), tmp_path).seconds(kernel) == kept[kernel.key]
