"""What a machine that serves does with an artifact, told as text: with torch, or where it fails.

``python opened.py FOLDER...`` prints it as JSON, from a process in which importing torch, scipy or
what builds fails. Beside each folder lies ``FOLDER.npz``, a batch of its features.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rankc
from rankc.optimizer.artifact.artifact import verify
from rankc.optimizer.errors import RankcError

#: Fails to be imported where this runs by itself.
BLOCKED = ("torch", "scipy", "onnx", "onnx_ir", "onnxscript", "networkx", "rich", "pandas")


class Block:
    """Finds no module of those that are blocked."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked", name=name.partition(".")[0])


def uses(folder: Path) -> dict[str, str]:
    """Every way to score a batch and to read the artifact, and what each gives or raises."""
    artifact = rankc.load(folder)
    arrays = dict(np.load(folder.with_suffix(".npz")))
    session = artifact.open(1)
    found: dict[str, str] = {}

    def note(name: str, call: Callable[[], Any]) -> None:
        try:
            found[name] = told(call())
        except RankcError as error:
            found[name] = f"{type(error).__name__}: {error}"

    def scored(given: Mapping[str, Any]) -> Any:
        return artifact(**artifact.manifest.inputs.unflatten(given))

    note("called", lambda: scored(arrays))
    note("copied", lambda: copy.deepcopy(artifact).run(arrays))
    note("pickled", lambda: pickle.loads(pickle.dumps(artifact)).run(arrays))
    note("verified", lambda: verify(folder))
    note("verdict", lambda: str(artifact.verdict))
    note("manifest", lambda: json.dumps(artifact.manifest.to_json(), sort_keys=True))
    note("report", lambda: json.dumps(artifact.report, sort_keys=True))
    note("explained", artifact.explain)
    call = artifact.manifest.inputs.unflatten(arrays)
    note("called in order", lambda: artifact(*call.values()))
    for name in arrays:
        rest = {other: value for other, value in arrays.items() if other != name}
        note(f"without {name}: run", lambda r=rest: artifact.run(r))  # type: ignore[misc]
    for name in call:
        rest = {other: value for other, value in call.items() if other != name}
        note(f"without {name}: called", lambda r=rest: artifact(**r))  # type: ignore[misc]
    note("unexpected", lambda: artifact(nonsense=1))
    note("too many", lambda: artifact(*range(30)))
    for name, given in [("as they are", arrays), *spoilt(artifact.signature, arrays)]:
        note(f"{name}: called", lambda g=given: scored(g))  # type: ignore[misc]
        note(f"{name}: run", lambda g=given: artifact.run(g))  # type: ignore[misc]
        note(f"{name}: session", lambda g=given: session(g))  # type: ignore[misc]
        if artifact.manifest.request is None:
            continue
        shared = artifact.manifest.request.shared
        lists = [
            n for n in shared if isinstance(given[n], (list, np.ndarray)) and np.ndim(given[n])
        ]
        once = {n: v[:1] if n in lists else v for n, v in given.items()}
        for form, request in (("once", once), ("each", given)):
            asked = artifact.manifest.inputs.unflatten(request)
            note(f"{name}: request, {form}", lambda c=asked: artifact.request(**c))  # type: ignore[misc]
        note(f"{name}: run_request", lambda g=once: artifact.run_request(g))  # type: ignore[misc]
        note(f"{name}: precompute", lambda g=given: artifact.precompute(g))  # type: ignore[misc]
    return found


def spoilt(
    signature: rankc.Signature, arrays: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Batches in other forms, and batches that can't be scored."""
    whole = dict(arrays)
    found: list[tuple[str, dict[str, Any]]] = [
        ("lists", {name: value.tolist() for name, value in whole.items()}),
        ("strided", {name: np.repeat(value, 2, 0)[::2] for name, value in whole.items()}),
        ("backwards", {name: value[::-1] for name, value in whole.items()}),
        ("swapped", {n: v.astype(v.dtype.newbyteorder(">")) for n, v in whole.items()}),
        ("read only", {name: value.copy() for name, value in whole.items()}),
    ]
    for value in found[-1][1].values():
        value.setflags(write=False)
    for feature in signature:
        name, value = feature.name, whole[feature.name]
        changed = {
            "deeper": value[..., None],
            "flat": value.reshape(-1),
            "a number": value.flat[0],
            "short": value[:-1],
            "empty": value[:0],
            "text": value.astype(str),
            "objects": value.astype(object),
            "nothing": None,
            "a set": {1, 2},
            "complex": value.astype(complex),
            "half": value.astype(np.float16),
            "double": value.astype(np.float64),
            "int32": value.astype(np.int32),
        }
        for bad in (np.nan, np.inf) if value.dtype.kind == "f" else (-1, 10**9):
            changed[str(bad)] = value.copy()
            changed[str(bad)].flat[-1] = bad
        found += [(f"{name} {what}", {**whole, name: v}) for what, v in changed.items()]
    nothing = {f.name: whole[f.name][: int(f.shape[:1] == (1,))] for f in signature}
    return [*found, ("no rows", nothing)]


def told(value: Any) -> str:
    """A result as text, to the bit."""
    if isinstance(value, np.ndarray):
        bits = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{value.shape} {bits}"
    if isinstance(value, Mapping):
        return str({key: told(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} {[told(item) for item in value]}"
    return repr(value)


if __name__ == "__main__":
    sys.meta_path.insert(0, Block())
    results = {folder: uses(Path(folder)) for folder in sys.argv[1:]}
    came = [name for name in BLOCKED if name in sys.modules]
    print(json.dumps({"results": results, "came": came}))
