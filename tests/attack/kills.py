"""Kills at random moments of everything that writes.

A forked process, with everything imported, works until it is killed. Then a process starts in the
same place, as the next one would. It is a fault if what was there, or was said to be written, isn't
whole; if anything hidden or temporary is left; if a signal that ends a process in order left
something at once; and if a signal was swallowed.
"""

from __future__ import annotations

import atexit
import collections
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import rankc
import torch
from rankc.backends.onnxruntime.backend import OnnxRuntime
from rankc.optimizer.artifact.artifact import verify
from rankc.optimizer.artifact.completion import complete
from rankc.optimizer.cli import main
from rankc.optimizer.interrupts import Interrupts
from rankc.optimizer.ir.scratch import Scratch, remove_left, written_whole
from rankc.optimizer.precision.kernel_cache import KernelCache
from rankc.optimizer.precision.probe_cache import Knowledge, Subject
from rankc.optimizer.training.checkpoint import Checkpoint
from rankers import drawn_labels, small, small_inputs

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
#: A process that still runs so long after a signal has swallowed it.
_SWALLOWED_SECONDS = 60.0
_SUBJECT = Subject("model", "rows")

#: The works that are short.
_SHORT = ("save", "build", "kernel times", "probe", "file", "program", "rounds")

#: Says that what has a number is written.
Said = Callable[[int], None]


@dataclass(frozen=True)
class Work:
    """What is killed.

    Attributes:
        name: What it is called.
        run: Does it in a folder, again and again if it is short, and says what it has written.
        faults: What isn't as it must be, after the numbers that were said to be written.
        seconds: It is killed within these.
    """

    name: str
    run: Callable[[Path, Said], None]
    faults: Callable[[Path, Sequence[int]], list[str]]
    seconds: float


def shares(count: int) -> dict[str, int]:
    """How many kills each work gets of so many: `optimize` a quarter, the others as many each."""
    each, more = divmod(count - count // 4, len(_SHORT))
    rest = {name: each + (index < more) for index, name in enumerate(_SHORT)}
    return {"optimize": count // 4, **rest}


def killed(scratch: Path, counts: dict[str, int], seed: int = 0) -> Any:
    """Kills each kind of work so many times.

    Args:
        scratch: A folder to work in.
        counts: ``{name of the work: how many}``.
        seed: Of the moments.

    Returns:
        Counts of how the processes ended, and the faults.
    """
    # A child waits for ever for the threads that OpenMP had in its parent.
    torch.set_num_threads(1)
    before = tempfile.tempdir
    temporary = scratch / "tmp"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    try:
        return _all_killed(scratch, counts, random.Random(seed))
    finally:
        tempfile.tempdir = before


def _all_killed(scratch: Path, kills: dict[str, int], moments: random.Random) -> Any:
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    works = {work.name: work for work in _works(scratch)}
    signals = itertools.cycle(_SIGNALS)
    for name, count in kills.items():
        if not count:
            continue
        work, place = works[name], scratch / name
        place.mkdir()
        for number in range(count):
            sent = next(signals)
            after = moments.uniform(0.0, work.seconds)
            ended, said = _ended(work, place, sent, after)
            what = f"{name} {number}, {sent.name} after {after:.3f} s"
            counts[f"{sent.name}: {ended}"] += 1
            if ended != ("killed" if sent == signal.SIGKILL else "ended in order"):
                faults.append(f"{what}: {ended}")
            if sent != signal.SIGKILL:
                faults += [f"{what}: left {path}" for path in _left(scratch, name)]
            found = _checked(lambda w=work, p=place, s=said: w.faults(p, s))
            faults += [f"{what}: {fault}" for fault in found]
            faults += [f"{what}: left to the next {path}" for path in _left(scratch, name)]
    return counts, faults


def _ended(work: Work, place: Path, sent: signal.Signals, after: float) -> tuple[str, list[int]]:
    """How a process ended, and the numbers that it said were written."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _work(work, place, lambda number: os.write(write, number.to_bytes(4)) and None)
    os.close(write)
    assert os.read(read, 4) == bytes(4), "it doesn't begin"
    time.sleep(after)
    os.kill(child, sent)
    deadline = time.monotonic() + _SWALLOWED_SECONDS
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.002)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    said = [int.from_bytes(told[start : start + 4]) for start in range(0, len(told) - 3, 4)]
    code = os.waitstatus_to_exitcode(status)
    if not done:
        return "swallowed", said
    if code == -signal.SIGKILL:
        return "killed", said
    return ("ended in order" if code == 128 + sent else f"exit status {code}"), said


def _work(work: Work, place: Path, said: Said) -> None:
    """Works in a child until it is killed; as the command line does, an interrupt ends it."""
    os.setsid()
    log = os.open(place.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    interrupts = Interrupts()
    try:
        with interrupts:
            said(0)
            while True:
                work.run(place, said)
                interrupts.check()
    except KeyboardInterrupt:
        code = interrupts.code
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        if interrupts.came:  # a library made another error of it
            code = interrupts.code
        else:
            traceback.print_exc()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _checked(find: Callable[[], list[str]]) -> list[str]:
    """What a new process finds: runtimes that are opened in this one would be forked with it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = find()
        except BaseException as error:
            found = [f"{type(error).__name__}: {str(error)[:300]}"]
        os.write(write, json.dumps(found).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    found = list(json.loads(told)) if told else ["the check died"]
    Scratch().remove()  # a start
    return found


def _left(scratch: Path, name: str) -> list[str]:
    """What is temporary or hidden."""
    paths = [*(scratch / "tmp").iterdir(), *(scratch / name).rglob(".*")]
    paths += [path for path in scratch.rglob("*rankc-*") if path not in paths]
    return [str(path.relative_to(scratch)) for path in paths]


# --- what is killed -------------------------------------------------------------------------------


def _works(scratch: Path) -> list[Work]:
    """What writes; the artifact and the program are made in a process of their own, and opened."""
    source = scratch / "source"
    _write_rows(scratch / "traffic.parquet")
    if _checked(lambda: _made(source)):
        raise RuntimeError("the artifact can't be made")
    artifact = _Saved(source)
    program = rankc.capture(small(), small_inputs(4, seed=0))
    OnnxRuntime.complete = _built  # type: ignore[method-assign]
    return [
        Work("optimize", _optimize, _faults_of_optimize, 6.0),
        Work("save", artifact.save, _faults_of_saves, 0.1),
        Work("build", artifact.complete, _faults_of_builds, 0.1),
        Work("program", lambda p, _: program.save(p / "model.pt2"), _faults_of_program, 1.5),
        Work("kernel times", _kernel_times, _faults_of_kernel_times, 0.1),
        Work("probe", _probe, _faults_of_probe, 0.1),
        Work("rounds", _Rounds(program).save, _faults_of_rounds, 2.0),
        Work("file", lambda place, _: _file(place), _faults_of_file, 0.02),
    ]


def _made(folder: Path) -> list[str]:
    rankc.optimize(small(), "cpu-fp32", inputs=small_inputs(4, 0), pipeline="exact").save(folder)
    return []


def _write_rows(path: Path) -> None:
    model, inputs = small(), small_inputs(3000, seed=1)
    columns = {"dense": list(inputs[0].numpy()), "ids": inputs[1].numpy()}
    labels = drawn_labels(model, inputs).numpy()
    pq.write_table(pa.table({**columns, "score": labels}), path)


def _optimize(place: Path, said: Said) -> None:
    number = max((int(path.name[3:]) for path in place.glob("out*")), default=-1) + 1
    line = ["optimize", "rankers:small_with_example", "--target", "cpu-int8", "--quiet"]
    line += ["--data", str(place.parent / "traffic.parquet"), "--budget", "ne=0.02"]
    line += ["--out", str(place / f"out{number}"), "--checkpoint", str(place / "probe.jsonl")]
    code = main([*line, "--cache", str(place)])
    if code:
        sys.exit(code)
    said(number + 1)


def _faults_of_optimize(place: Path, said: Sequence[int]) -> list[str]:
    found = _faults_of_folders(place, "out", said)
    KernelCache(place).read("any")
    # A run that goes on refuses a checkpoint that it can't read; one that was just begun is empty.
    if (place / "probe.jsonl").exists():
        head = json.loads((place / "probe.jsonl").read_text().splitlines()[0])
        Knowledge.open(place / "probe.jsonl", Subject(head["model"], head["rows"]))
    remove_left(place)
    return found


class _Saved:
    """An artifact without runtimes: what saves and completes folders doesn't run them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, place: Path, said: Said) -> None:
        """Saves another one."""
        number = max((int(path.name[5:]) for path in place.glob("saved*")), default=-1) + 1
        if not hasattr(self, "artifact"):
            self.artifact = rankc.load(self.folder)
        self.artifact.save(place / f"saved{number}")
        said(number + 1)

    def complete(self, place: Path, said: Said) -> None:
        """Completes the one folder."""
        folder = place / "ads"
        if not folder.exists():
            rankc.load(self.folder).save(folder)
        complete(folder)
        said(int((folder / "kernels.bin").read_text().split()[0]))


def _faults_of_saves(place: Path, said: Sequence[int]) -> list[str]:
    remove_left(place)
    return _faults_of_folders(place, "saved", said)


def _faults_of_folders(place: Path, prefix: str, said: Sequence[int]) -> list[str]:
    """Opens the newest folders, and removes the others."""
    numbers = {int(path.name.removeprefix(prefix)): path for path in place.glob(f"{prefix}*")}
    for number in sorted(numbers)[:-4]:
        shutil.rmtree(numbers[number])
    for number in sorted(numbers)[-4:]:
        verify(numbers[number])
    if numbers:
        rankc.load(numbers[max(numbers)])(*small_inputs(3, seed=0))
    return _lost({number + 1 for number in numbers}, said)


def _built(
    self: OnnxRuntime, folder: Path, made: Path, target: Any, batch_sizes: Any
) -> tuple[str, ...]:
    """A build that takes some time, and changes a file."""
    last = folder / "kernels.bin"
    number = int(last.read_text().split()[0]) if last.exists() else 0
    with (made / "kernels.bin").open("w") as file:
        for _ in range(200):
            file.write(f"{number + 1} ")
            file.flush()
    return ("kernels.bin",)


def _faults_of_builds(place: Path, said: Sequence[int]) -> list[str]:
    remove_left(place)
    folder = place / "ads"
    if not folder.exists():
        return ["it is gone"] if said[1:] else []
    verify(folder)
    rankc.load(folder)(*small_inputs(3, seed=0))
    if not (folder / "kernels.bin").exists():
        return ["what was built is gone"] if said[1:] else []
    numbers = (folder / "kernels.bin").read_text().split()
    last = max(said, default=0)
    return [] if set(numbers) == {numbers[0]} and int(numbers[0]) >= last else ["half of a build"]


def _faults_of_program(place: Path, said: Sequence[int]) -> list[str]:
    remove_left(place)
    path = place / "model.pt2"
    if path.exists():
        rankc.Program.load(path, trust_code=True)
    return []


def _file(place: Path) -> None:
    """A file as curves, reports and keys' signatures are written."""
    with written_whole(place / "curve.svg") as half:
        half.write_text("<svg>")
        with half.open("a") as file:
            file.write("</svg>")


def _faults_of_file(place: Path, said: Sequence[int]) -> list[str]:
    remove_left(place)
    path = place / "curve.svg"
    return [] if not path.exists() or path.read_text() == "<svg></svg>" else ["half a file"]


def _kernel_times(place: Path, said: Said) -> None:
    known = len(KernelCache(place).read("m"))
    KernelCache(place).merged("m", {f"kernel {known}": 1e-6})
    said(known + 1)


def _faults_of_kernel_times(place: Path, said: Sequence[int]) -> list[str]:
    known = KernelCache(place).merged("m", {"another": 1e-6})
    numbers = {int(name.split()[1]) + 1 for name in known if name != "another"}
    return _lost(numbers, said)


def _probe(place: Path, said: Said) -> None:
    known = Knowledge.open(place / "probe.jsonl", _SUBJECT)
    number = len(known.damages)
    for later in range(number, number + 50):
        known.learn(f"top.{later}", "int8", {"click": 1e-5})
        said(later + 1)


def _faults_of_probe(place: Path, said: Sequence[int]) -> list[str]:
    remove_left(place)
    known = Knowledge.open(place / "probe.jsonl", _SUBJECT)
    return _lost({int(site.split(".")[1]) + 1 for site, _ in known.damages}, said)


class _Rounds:
    """What finetuning reaches, round by round."""

    def __init__(self, program: rankc.Program) -> None:
        self.program = program

    def save(self, place: Path, said: Said) -> None:
        """Keeps another round."""
        checkpoint = Checkpoint(place, "signature", "stage")
        number = len(list(place.glob("round-*")))
        checkpoint.save(number, self.program, {"seconds": 1.0, "flops": 1.0})
        said(number + 1)


def _faults_of_rounds(place: Path, said: Sequence[int]) -> list[str]:
    checkpoint = Checkpoint(place, "signature", "stage", trust_code=True)
    numbers = {int(path.name.removeprefix("round-")) for path in place.glob("round-*")}
    if numbers:
        checkpoint.load(max(numbers) - 1)
    return _lost(numbers, said)


def _lost(found: set[int], said: Sequence[int]) -> list[str]:
    lost = sorted(set(said) - found - {0})
    return [f"lost {lost[:5]} of those that were said to be written"] if lost else []
