"""Fuzzes the native operators: honest plans with hostile data, and plans that were tampered with.

``python tests/attack/plans.py LIBRARY honest|mutated FIRST LAST`` prints counts as JSON; the
library should be built by `sanitized`. The cases run in a child process, so that a crash is counted
and the rest goes on.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

_TYPES = {
    np.dtype("float32"): TensorProto.FLOAT,
    np.dtype("float16"): TensorProto.FLOAT16,
    np.dtype("uint8"): TensorProto.UINT8,
    np.dtype("int8"): TensorProto.INT8,
    np.dtype("int32"): TensorProto.INT32,
    np.dtype("int64"): TensorProto.INT64,
    np.dtype("float64"): TensorProto.DOUBLE,
}
_HOSTILE = (-1, -2, -5, 0, 1, 2, 3, 4, 7, 1000, 2**31, 2**62, -(2**62), 2**63 - 1, -(2**63))
_DENSE, _BAGS, _OFFSETS = 0, 1, 2
#: Seconds a case may take.
_PATIENCE = 8
Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """One operator and what it is fed.

    Attributes:
        op: Its name.
        inputs: Its inputs.
        attributes: Its attributes.
        constants: How many of the last inputs are constants of the model.
        want: What it must give; None where the data are wrong and it must refuse them.
    """

    op: str
    inputs: list[Array]
    attributes: dict[str, Any]
    constants: int = 0
    want: Array | None = None

    def model(self) -> bytes:
        """A model of this one operator."""
        names = [f"input_{index}" for index in range(len(self.inputs))]
        node = helper.make_node(self.op, names, ["y"], domain="rankc", **self.attributes)
        given = len(names) - self.constants
        codes = TensorProto.UINT8 if self.op == "FeatureCodes" else TensorProto.FLOAT
        graph = helper.make_graph(
            [node],
            "attack",
            [
                helper.make_tensor_value_info(name, _TYPES[value.dtype], [None] * value.ndim)
                for name, value in zip(names[:given], self.inputs, strict=False)
            ],
            [helper.make_tensor_value_info("y", codes, None)],
            [
                helper.make_tensor(name, _TYPES[v.dtype], v.shape, v.tobytes(), raw=True)
                for name, v in zip(names[given:], self.inputs[given:], strict=True)
            ],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("rankc", 1)]
        return bytes(
            helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        )

    def run(self, library: str) -> Array:
        """What it gives, by itself in a session."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(
            self.model(), options, providers=["CPUExecutionProvider"]
        )
        given = len(self.inputs) - self.constants
        feeds = {f"input_{i}": value for i, value in enumerate(self.inputs[:given])}
        return np.asarray(session.run(None, feeds)[0])


@dataclass
class _Draft:
    """A plan that is being drawn up."""

    rng: np.random.Generator
    rows: int
    inputs: list[Array] = field(default_factory=list)
    plan: list[int] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    wrong: bool = False

    def add(self, value: Array) -> int:
        self.inputs.append(value)
        return len(self.inputs) - 1

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def upto(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most))


def _table(rng: np.random.Generator, rows: int, width: int, coding: int) -> tuple[Any, Any, Array]:
    """A table as a coding stores it, its scales, and its rows."""
    if coding < 2:
        rows_ = rng.standard_normal((rows, width)).astype((np.float32, np.float16)[coding])
        return rows_, None, rows_.astype(np.float64)
    both = np.stack([rng.random(rows) * 0.05, rng.standard_normal(rows)], 1)
    scales = both.astype(np.float32 if coding == 2 else np.float16)
    across = width if coding == 2 else (width + 1) // 2
    codes = rng.integers(0, 256, (rows, across)).astype(np.uint8)
    values = codes
    if coding == 3:
        values = np.stack([codes & 15, codes >> 4], 2).reshape(rows, -1)[:, :width]
    decoded = values * scales[:, :1].astype(np.float64) + scales[:, 1:].astype(np.float64)
    return codes, scales, decoded


def _dense(draft: _Draft, interacts: int, width: int) -> list[Array]:
    vectors, first = draft.upto(1, 4), draft.upto(0, 3)
    across = width * (first + vectors) + draft.upto(0, 3)
    x = draft.rng.standard_normal((draft.rows, across)).astype(np.float32)
    head = [interacts, _DENSE, 0, width, draft.add(x), -1, -1, -1, -1, -1]
    draft.plan += [*head, first, 0, vectors, *[1] * vectors, 0]
    draft.factors.append(1.0)
    return [x[:, (first + i) * width : (first + i + 1) * width] for i in range(vectors)]


def _bags(draft: _Draft, interacts: int, width: int, hostile: bool) -> list[Array]:
    rng, rows = draft.rng, int(draft.rng.choice([1, 2, 5, 100]))
    coding = draft.upto(0, 4)
    data, scales, table = _table(rng, rows, width, coding)
    kind = np.int64 if draft.chance(0.6) else np.int32
    bags = [draft.upto(0 if draft.chance(0.3) else 1, 4) for _ in range(draft.upto(1, 4))]
    count, first = sum(bags), draft.upto(0, 3)
    cut = draft.upto(0, rows) if draft.chance(0.3) else 0
    limit = rows - cut if draft.chance(0.4) else 0
    ids = rng.integers(0, rows - cut, (draft.rows, first + count + draft.upto(0, 2))).astype(kind)
    if hostile and ids.size and draft.chance(0.7):
        known = [-1, rows, rows + 1, -rows, -rows - 1, 2**31 - 1, -(2**31)]
        if kind is np.int64:
            known += [2**62, -(2**63), 2**63 - 1, 2**63 - 1 - cut]
        ids[draft.upto(0, draft.rows), draft.upto(0, ids.shape[1])] = rng.choice(known)
    source, column = draft.add(data), draft.add(ids)
    beside = -1 if scales is None else draft.add(scales)
    weights, by, skipped = -1, np.ones((draft.rows, count)), 0
    if draft.chance(0.3):
        skipped = draft.upto(0, 2)
        given = rng.standard_normal((draft.rows, skipped + count)).astype(np.float32)
        weights, by = draft.add(given), given[:, skipped:].astype(np.float64)
    divisor, over = -1, np.ones(draft.rows)
    if draft.chance(0.2):
        given = (rng.random((draft.rows, 1)) + 0.5).astype(np.float32)
        divisor, over = draft.add(given), given[:, 0].astype(np.float64)
    factor = float(rng.choice([1.0, 0.5]))
    head = [interacts, _BAGS, coding, width, source, column, beside, weights, divisor, -1]
    draft.plan += [*head, first, skipped, len(bags), *bags, count, *[cut] * count]
    draft.limits += [limit] * count
    draft.factors.append(factor)
    used = ids[:, first : first + count].astype(object)
    place = used + cut
    if limit:
        outside = (used < 0) | (used >= limit)
    else:
        place = np.where(place < 0, place + rows, place)
        outside = (place < 0) | (place >= rows)
    if used.size and outside.any():
        draft.wrong = True
        return [np.zeros((draft.rows, width))] * len(bags)
    place, at, found = place.astype(np.int64), 0, []
    for bag in bags:
        part = table[place[:, at : at + bag]] * by[:, at : at + bag, None]
        found.append(part.sum(1) * factor / over[:, None])
        at += bag
    return found


def _offsets(draft: _Draft, interacts: int, width: int, hostile: bool) -> list[Array]:
    rng, rows = draft.rng, int(draft.rng.choice([1, 2, 5, 100]))
    coding = draft.upto(0, 4)
    data, scales, table = _table(rng, rows, width, coding)
    kind = np.int64 if draft.chance(0.6) else np.int32
    sizes = rng.integers(0, 5, draft.rows)
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(kind)
    count = int(ends[-1])
    ids = rng.integers(0, rows, count).astype(kind)
    if hostile and draft.rows and draft.chance(0.6):
        at = draft.upto(0, draft.rows)
        ends[at] = rng.choice([-1, count + 1, count + 1000, ends[at] + 3, 2**31 - 1, -(2**31)])
    if hostile and count and draft.chance(0.4):
        ids[draft.upto(0, count)] = rng.choice([-rows - 1, rows, 2**31 - 1])
    has_end = int(draft.chance(0.5))
    offsets = np.ascontiguousarray(ends if has_end else ends[:-1])
    source, column = draft.add(data), draft.add(ids)
    beside = -1 if scales is None else draft.add(scales)
    weights, by = -1, np.ones(count)
    if draft.chance(0.3):
        given = rng.standard_normal(count).astype(np.float32)
        weights, by = draft.add(given), given.astype(np.float64)
    factor = float(rng.choice([1.0, 0.5]))
    head = [interacts, _OFFSETS, coding, width, source, column, beside, weights, -1]
    draft.plan += [*head, draft.add(offsets), has_end, 0, 1, 1, 1, 0]
    draft.limits.append(0)
    draft.factors.append(factor)
    found = np.zeros((draft.rows, width))
    for row in range(draft.rows):
        begin = int(offsets[row])
        end = int(offsets[row + 1]) if row + 1 < len(offsets) else count
        place = ids[max(begin, 0) : max(end, 0)].astype(np.int64)
        place = np.where(place < 0, place + rows, place)
        if begin < 0 or end < begin or end > count or ((place < 0) | (place >= rows)).any():
            draft.wrong = True
            return [found]
        found[row] = (table[place] * by[begin:end, None]).sum(0) * factor
    return [found]


def features(rng: np.random.Generator, hostile: bool) -> Case:
    """An honest plan of ``Features`` or ``FeatureCodes``; its data may be wrong."""
    draft = _Draft(rng, int(rng.choice([0, 1, 2, 3, 7, 64, 129, 300])))
    interacting, across = draft.chance(0.5), draft.upto(1, 40)
    elementwise = int(draft.chance(0.4))
    vectors: list[Array] = []
    parts: list[Any] = []
    for _ in range(draft.upto(1, 5)):
        interacts = int(interacting and draft.chance(0.7))
        width, kind = across if interacts else draft.upto(1, 70), draft.upto(0, 3)
        if kind == _DENSE:
            made = _dense(draft, interacts, width)
        else:
            made = (_bags if kind == _BAGS else _offsets)(draft, interacts, width, hostile)
        if interacts and not vectors:
            parts.append(None)  # the products take the place of the first that interacts
        (vectors if interacts else parts).extend(made)
    attributes: dict[str, Any] = {"elementwise": elementwise, "factors": draft.factors}
    if vectors:
        pairs = [draft.upto(0, len(vectors)) for _ in range(2 * draft.upto(1, 9))]
        products = [vectors[a] * vectors[b] for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
        place = next(index for index, part in enumerate(parts) if part is None)
        parts[place] = np.concatenate(
            [p if elementwise else p.sum(1)[:, None] for p in products], 1
        )
        attributes["pairs"] = pairs
    if any(draft.limits):
        attributes["limits"] = draft.limits
    want = np.concatenate(parts, 1)
    attributes |= {"plan": draft.plan, "shape": [want.shape[1]]}
    op = "FeatureCodes" if draft.chance(0.25) else "Features"
    if op == "FeatureCodes":
        attributes |= {"scale": 0.1, "zero_point": 100}
        want = np.clip(np.rint(want / 0.1) + 100, 0, 255)
    return Case(op, draft.inputs, attributes, want=None if draft.wrong else want)


def linear(rng: np.random.Generator) -> Case:
    """An honest ``RowwiseLinear``; its rows may hold NaN and infinity."""
    rows, inputs, outputs = (int(rng.integers(0, 9)), *map(int, rng.integers(1, 80, 2)))
    x = (rng.standard_normal((rows, inputs)) * rng.choice([1e-3, 1.0, 1e3])).astype(np.float32)
    if rows and rng.random() < 0.3:
        place = rng.integers(rows), rng.integers(inputs)
        x[place] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32))
    codes = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scale = (rng.random(outputs) * 0.01).astype(np.float32)
    given, attributes = [x, codes, scale], {"bias": 0, "columns": 0, "kept": 0, "relu": 0}
    scaled = x.astype(np.float64)
    bias = np.zeros(outputs)
    if rng.random() < 0.5:
        attributes["bias"] = 1
        bias = rng.standard_normal(outputs).astype(np.float32)
        given.append(bias)
    if rng.random() < 0.3:
        attributes["columns"] = 1
        columns = (rng.random(inputs) + 0.5).astype(np.float32)
        given.append(columns)
        scaled = scaled * columns
    high = np.zeros((rows, outputs))
    if rng.random() < 0.3:
        attributes["kept"] = 1
        kept = rng.integers(0, inputs, int(rng.integers(1, 4)))
        weight = rng.standard_normal((outputs, len(kept))).astype(np.float32)
        given += [kept, weight]
        high = x[:, kept].astype(np.float64) @ weight.T
    attributes["relu"] = int(rng.random() < 0.5)
    with np.errstate(all="ignore"):
        low = scaled.min(1, keepdims=True)
        step = (scaled.max(1, keepdims=True) - low) / 255
        steps = np.rint((scaled - low) / np.maximum(step, 1.2e-38))
        want = (steps * step + low) @ codes.T.astype(np.float64) * scale + high + bias
        want[~np.isfinite(x).all(1)] = np.nan
        want = np.maximum(want, 0) if attributes["relu"] else want
    return Case("RowwiseLinear", given, attributes, len(given) - 1, want)


def mutated(case: Case, rng: np.random.Generator) -> None:
    """Changes a plan or a tensor as a forger or a broken disk would."""
    for _ in range(int(rng.integers(1, 4))):
        lists = [n for n, v in case.attributes.items() if isinstance(v, list) and v]
        choice = rng.random()
        if choice < 0.6 and lists:
            values = case.attributes[rng.choice(lists)]
            at = int(rng.integers(len(values)))
            hostile = [*_HOSTILE, values[at] + 1, values[at] - 1]
            values[at] = type(values[at])(hostile[int(rng.integers(len(hostile)))])
        elif choice < 0.7:
            names = [n for n, v in case.attributes.items() if not isinstance(v, list)]
            name = str(rng.choice(names))
            kind = type(case.attributes[name])
            case.attributes[name] = kind(_HOSTILE[int(rng.integers(len(_HOSTILE)))])
        elif choice < 0.8 and lists:
            name = str(rng.choice(lists))
            values = case.attributes[name]
            case.attributes[name] = values[: int(rng.integers(len(values)))] or values
        elif choice < 0.85 and len(case.inputs) > 1:
            case.inputs.pop()
            case.constants = min(case.constants, len(case.inputs) - 1)
        else:
            at = int(rng.integers(len(case.inputs)))
            case.inputs[at] = _misshapen(case.inputs[at], rng)


def _misshapen(value: Array, rng: np.random.Generator) -> Array:
    options = [
        value[:-1],
        value.astype(np.float64) if value.dtype == np.float32 else value.astype(np.float32),
        value.reshape(-1),
        value[..., None],
        value[:, :-1] if value.ndim > 1 else value,
        value[:, :0] if value.ndim > 1 else value[:0],
        value[None],
    ]
    return np.ascontiguousarray(options[int(rng.integers(len(options)))])


def one(seed: int, mode: str, library: str, counts: collections.Counter[str]) -> None:
    """Runs one case and counts what came of it."""
    rng = np.random.default_rng(seed)
    ctypes.CDLL(library).rankc_limit(int(rng.integers(0, 3)))
    whole = rng.random() < 0.75
    case = features(rng, mode == "honest" and rng.random() < 0.6) if whole else linear(rng)
    if mode == "mutated":
        mutated(case, rng)
    try:
        got = case.run(library)
    except Exception as error:  # the runtime's own classes
        counts["refused"] += 1
        if mode == "honest" and case.want is not None:
            counts["honest, yet refused"] += 1
            print(f"seed {seed}: {error}", file=sys.stderr)
        return
    counts["ran"] += 1
    if mode != "honest":
        return
    if case.want is None:
        counts["wrong ids, not refused"] += 1
        print(f"seed {seed}: wrong ids were not refused", file=sys.stderr)
    elif not _alike(case, got):
        counts["other results"] += 1
        print(f"seed {seed}: {case.op} gives other results", file=sys.stderr)


def _alike(case: Case, got: Array) -> bool:
    want = case.want
    assert want is not None
    if want.shape != got.shape:
        return False
    if case.op == "FeatureCodes":
        return bool((np.abs(want - got.astype(int)) <= 1).all())
    # A value that lies between two steps may be rounded to either.
    share = 2e-2 if case.op == "RowwiseLinear" else 1e-3
    finite = np.abs(want[np.isfinite(want)])
    tolerance = share * max(1.0, float(finite.max()) if finite.size else 1.0)
    return bool(np.allclose(got, want, rtol=0, atol=tolerance, equal_nan=True))


def fuzz(library: str, mode: str, first: int, last: int) -> dict[str, int]:
    """Runs a range of seeds; a case that crashes is counted, and the next goes on."""
    total: collections.Counter[str] = collections.Counter(crashed=0)
    at = first
    while at < last:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _child(library, mode, at, last, write)
        os.close(write)
        reached = at
        with os.fdopen(read) as lines:
            for line in lines:
                counts = json.loads(line)
                reached = counts.pop("seed")
                total.update(counts)
        if os.waitpid(child, 0)[1] == 0:
            break
        total["crashed"] += 1
        print(f"seed {reached} crashed", file=sys.stderr)
        at = reached + 1
    return dict(total)


def _child(library: str, mode: str, first: int, last: int, write: int) -> None:
    """Tells what each case gave before the next is tried."""
    for seed in range(first, last):
        os.write(write, (json.dumps({"seed": seed}) + "\n").encode())
        signal.alarm(_PATIENCE)
        counts: collections.Counter[str] = collections.Counter()
        one(seed, mode, library, counts)
        os.write(write, (json.dumps({"seed": seed, **counts}) + "\n").encode())
    os._exit(0)


if __name__ == "__main__":
    print(json.dumps(fuzz(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
