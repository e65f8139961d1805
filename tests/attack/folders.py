"""Attacks on saved artifacts: fields of manifests and reports changed, and files tampered with.

An attack ends well if the folder is refused by an error of rankc's, or scores as before. It is a
fault if anything else is raised, if scores or verdict differ where the author's own hashes don't
say so, or if a command ran.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rankc
from rankc.optimizer.artifact.integrity import checksum, file_facts

Inputs = tuple[np.ndarray[Any, Any], ...]
Keys = tuple[str | int, ...]

_DEEP = "[" * 100_000 + "]" * 100_000
#: What a field becomes. Text is JSON as it stands in the file.
VALUES = (
    *("null", "true", "-1", "0", "1", "9223372036854775808", "1" + "0" * 5000, "1e999", "-0.0"),
    *("NaN", "-Infinity", '""', '"x"', '"../../etc/passwd"', '"\\u0000"', '"\\ud800"'),
    *('"os:system"', '"eager"', "[]", "{}", '["x"]', "[[1]]", '{"x": {"y": []}}', '[1, "a", null]'),
    *('"' + "x" * 100_000 + '"', _DEEP, '{"kind": "os:system", "keys": ["a"], "items": [1]}'),
)
_MARK = "the field that is changed"


def places(data: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The way to every field of a JSON document; of long lists, to the first two items."""
    items: Any = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = list(enumerate(data))[:2]
    for key, value in items:
        yield (*keys, key)
        yield from places(value, (*keys, key))


def changed(data: Any, keys: Keys, value: str | None) -> str:
    """The document with one field replaced, or removed where there is no value."""
    whole = json.loads(json.dumps(data))
    holder = whole
    for key in keys[:-1]:
        holder = holder[key]
    if value is None:
        del holder[keys[-1]]
        return json.dumps(whole)
    holder[keys[-1]] = _MARK
    return json.dumps(whole).replace(json.dumps(_MARK), value, 1)


def forged(folder: Path, name: str, text: str) -> None:
    """Writes a manifest or a report as its author could: with hashes that are right."""
    path = folder / "manifest.json"
    if name != "manifest.json":
        (folder / name).write_text(text)
        data = json.loads(path.read_text())
        data["reports"] = file_facts(folder, ["report.json", "report.txt"])
        text = json.dumps(data)
    try:
        data = json.loads(text)
        text = json.dumps({**data, "checksum": checksum(data)})
    except (RecursionError, TypeError, ValueError, UnicodeEncodeError):
        pass  # no hash fits, and none is needed: it is refused before
    path.write_text(text)


def used(folder: Path, inputs: Inputs, out: Path) -> Any:
    """Everything that is done with an artifact; gives its scores."""
    loaded = rankc.load(folder)
    scores = loaded(*inputs)
    loaded.run(dict(zip(loaded.signature.names, inputs, strict=False)))
    str(loaded.verdict)
    _ = loaded.nbytes, loaded.onnx_path, loaded.verdict.worst_delta_ne
    for use in (loaded.explain, loaded.pareto):
        try:
            str(use())
        except rankc.RankcError:
            continue
    shutil.rmtree(out, ignore_errors=True)
    loaded.save(out)
    return scores


def outcome(use: Callable[[], Any], want: Any, faults: list[str], what: str) -> str:
    """What came of one attack; a fault is added to the list."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = use()
    except rankc.RankcError:
        return "refused"
    except Exception as error:  # what must not reach a user
        faults.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        return "raw"
    if want is None:
        return "opened"
    if isinstance(got, np.ndarray) and np.array_equal(got, want):
        return "equal"
    faults.append(f"{what}: other scores")
    return "silent"


def forgeries(source: Path, inputs: Inputs, scratch: Path, every: int, offset: int = 0) -> Any:
    """Changes each field of the manifest and of the report to every value, or to some of them.

    Args:
        source: A saved artifact.
        inputs: What it is called with.
        scratch: A folder to work in.
        every: Which share of all changes is tried: one in so many.
        offset: Which of them is the first.

    Returns:
        Counts of what came of them, and the faults.
    """
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    number = offset
    for name in ("manifest.json", "report.json"):
        data = json.loads((source / name).read_text())
        for keys in places(data):
            for value in (None, *VALUES):
                number += 1
                if number % every:
                    continue
                folder = scratch / "forged"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(source, folder)
                forged(folder, name, changed(data, keys, value))
                what = f"{name} {'.'.join(map(str, keys))} = {str(value)[:40]}"
                out = scratch / "again"
                counts[outcome(lambda f=folder, o=out: used(f, inputs, o), None, faults, what)] += 1
    return counts, faults


def tampered(source: Path, inputs: Inputs, scratch: Path, count: int, seed: int = 0) -> Any:
    """Flips, truncates, blanks, swaps, links, adds and removes files; the hashes stay.

    Returns:
        Counts of what came of it, and the faults.
    """
    rng = np.random.default_rng(seed)
    want = rankc.load(source)(*inputs)
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    names = sorted(os.listdir(source))
    for number in range(count):
        folder = scratch / "tampered"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        name, way = names[number % len(names)], str(rng.choice(_WAYS))
        _tamper(folder, name, way, rng, scratch)
        counts[
            outcome(
                lambda f=folder: used(f, inputs, scratch / "again"), want, faults, f"{way} {name}"
            )
        ] += 1
    return counts, faults


_WAYS = ("flip", "flip", "flip", "truncate", "blank", "swap", "missing", "link", "more", "extend")


def _tamper(folder: Path, name: str, way: str, rng: np.random.Generator, scratch: Path) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    at, other = int(rng.integers(len(data))), int(rng.integers(len(data)))
    if way == "flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif way == "truncate":
        data = data[:at]
    elif way == "blank":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif way == "swap":
        data[at], data[other] = data[other], data[at]
    elif way == "extend":
        data += b"\0"
    elif way == "more":
        (folder / f"{name}.more").write_bytes(b"")
    if way == "missing":
        path.unlink()
    elif way == "link":
        (scratch / "elsewhere").write_bytes(data)
        path.unlink()
        path.symlink_to(scratch / "elsewhere")
    else:
        path.write_bytes(data)
