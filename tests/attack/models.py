"""Attacks on model files: ``.onnx`` and ``.pt2`` with fields changed and bytes flipped."""

from __future__ import annotations

import collections
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import rankc
from attack.folders import VALUES, changed, places
from google.protobuf.message import DecodeError

_NUMBERS = (-1, 0, 1, 3, 99, 2**31, 2**62, -(2**62))
_NAMES = ("", "x", "dense", "ids", "\u00e9", "a" * 5000)


def messages(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that is set of a protobuf message, however deep, with its holder."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            inner = value if field.is_repeated else [value]
            for one in list(inner)[:6]:
                yield from messages(one)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """An ONNX file with some fields changed, or some bytes."""
    if rng.random() < 0.3:
        changed_ = bytearray(data)
        for _ in range(int(rng.integers(1, 5))):
            changed_[int(rng.integers(len(changed_)))] ^= 1 << int(rng.integers(8))
        return bytes(
            changed_[: int(rng.integers(len(changed_)))] if rng.random() < 0.3 else changed_
        )
    model = onnx.ModelProto.FromString(data)
    for _ in range(int(rng.integers(1, 3))):
        known = list(messages(model.graph))
        holder, field = known[int(rng.integers(len(known)))]
        _change(holder, field, rng)
    return bytes(model.SerializeToString())


def _change(holder: Any, field: Any, rng: np.random.Generator) -> None:
    """One field gets a hostile value, loses what it has, or has it twice."""
    choice = rng.random()
    if field.is_repeated:
        values = getattr(holder, field.name)
        if choice < 0.4 and len(values):
            del values[int(rng.integers(len(values)))]
        elif choice < 0.6:
            values.extend(list(values)[:1])
        elif field.message_type is None and len(values):
            at = int(rng.integers(len(values)))
            try:
                values[at] = type(values[at])(_hostile(values[at], rng))
            except (OverflowError, ValueError, TypeError):
                del values[at]
        return
    if field.message_type is not None or choice < 0.2:
        holder.ClearField(field.name)
        return
    old = getattr(holder, field.name)
    try:
        setattr(holder, field.name, _hostile(old, rng))
    except (OverflowError, ValueError, TypeError):
        holder.ClearField(field.name)


def _hostile(old: Any, rng: np.random.Generator) -> Any:
    if isinstance(old, str):
        return _NAMES[int(rng.integers(len(_NAMES)))]
    if isinstance(old, bytes):
        return old[: int(rng.integers(len(old) + 1))]
    if isinstance(old, float):
        return float(rng.choice([np.nan, np.inf, -1.0, 1e38]))
    return _NUMBERS[int(rng.integers(len(_NUMBERS)))]


def onnx_files(source: Path, scratch: Path, first: int, last: int) -> Any:
    """Captures changed ONNX files; returns counts of what came of it, and the faults."""
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    data, place = source.read_bytes(), scratch / "hostile.onnx"
    for seed in range(first, last):
        try:
            place.write_bytes(mutated(data, np.random.default_rng(seed)))
        except (DecodeError, ValueError):
            continue
        counts[_captured(place, f"seed {seed}", faults)] += 1
    return counts, faults


def pt2_files(source: Path, scratch: Path, every: int) -> Any:
    """Captures programs whose contract was changed, or whose archive was damaged.

    They are trusted, so that what is tried is the reading; returns counts and the faults.
    """
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (contract,) = (name for name in parts if name.endswith("rankc.json"))
    data, place, number = json.loads(parts[contract]), scratch / "hostile.pt2", 0
    for keys in places(data):
        for value in (None, *VALUES):
            number += 1
            if number % every:
                continue
            with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as archive:
                for name, part in parts.items():
                    text = changed(data, keys, value).encode(errors="surrogatepass")
                    archive.writestr(name, text if name == contract else part)
            what = f"{'.'.join(map(str, keys))} = {str(value)[:40]}"
            counts[_captured(place, what, faults)] += 1
    whole = source.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(max(1, 200 // every)):
        cut = bytearray(whole[: int(rng.integers(len(whole)))] if rng.random() < 0.5 else whole)
        cut[int(rng.integers(len(cut)))] ^= 1 << int(rng.integers(8))
        place.write_bytes(cut)
        counts[_captured(place, "bytes", faults)] += 1
    return counts, faults


def _captured(place: Path, what: str, faults: list[str]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rankc.capture(place, trust_code=place.suffix == ".pt2")
    except rankc.RankcError:
        return "refused"
    except Exception as error:  # what must not reach a user
        faults.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        return "raw"
    return "captured"
