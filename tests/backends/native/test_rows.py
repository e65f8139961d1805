"""The native library: it loads, it computes what numpy does on every path, it fails clearly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from rankc.backends import native
from rankc.backends.native import Library, library, trial

pytestmark = pytest.mark.skipif(library().path is None, reason=library().reason)

RNG = np.random.default_rng(0)
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
}
ABSENT = [-1] * 3
#: Sums of up to 16 float32 terms in another order: 16 half-steps of the largest, with room.
ROUNDING = 32 * np.finfo(np.float32).eps


@pytest.fixture(params=["portable", "avx2", "avx512"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces each set of instructions for the sessions that a test opens."""
    level = ["portable", "avx2", "avx512"].index(request.param)
    if library().limit(level) != level:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    library().limit(2)


def run(
    inputs: list[Any], width: int, codes: bool = False, threads: int = 1, **attributes: Any
) -> Any:
    """Runs one operator on arrays."""
    kind = "FeatureCodes" if codes else "Features"
    names = [f"x{index}" for index in range(len(inputs))]
    node = helper.make_node(kind, names, ["y"], domain="rankc", shape=[width], **attributes)
    values = [
        helper.make_tensor_value_info(name, TYPES[array.dtype], [None] * array.ndim)
        for name, array in zip(names, inputs, strict=True)
    ]
    made = TensorProto.UINT8 if codes else TensorProto.FLOAT
    out = helper.make_tensor_value_info("y", made, [None, width])
    graph = helper.make_graph([node], "one", values, [out])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("rankc", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library().path))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def lookup(
    width: int,
    bags: list[int],
    *,
    places: list[int] | None = None,
    first: int = 0,
    shifts: list[int] | None = None,
    interacts: bool = False,
    coding: int | None = None,
) -> list[int]:
    """A segment of bags; ``places`` are the inputs of table, ids, scales and weights."""
    total, named = sum(bags), places or [0, 1, -1, -1]
    kind = coding if coding is not None else 2 if named[2] >= 0 else 0
    head = [int(interacts), 1, kind, width, *named, -1, -1, first, 0]
    return [*head, len(bags), *bags, total, *(shifts or [0] * total)]


def dense(width: int, place: int, count: int = 1, first: int = 0, interacts: bool = False) -> Any:
    head = [int(interacts), 0, 0, width, place, *ABSENT, -1, -1, first, 0]
    return [*head, count, *[1] * count, 0]


def pooled(rows: np.ndarray, ids: np.ndarray, bags: list[int], weights: Any = 1.0) -> np.ndarray:
    """What bags of neighbouring columns of ids sum to, ``[B, n * width]``, in float64."""
    found = rows.astype(np.float64)[ids] * weights
    ends = np.cumsum(bags)
    parts = [found[:, end - bag : end].sum(1) for end, bag in zip(ends, bags, strict=True)]
    return np.concatenate(parts, 1)


def assert_close(got: np.ndarray, want: np.ndarray, scale: float | None = None) -> None:
    assert got.shape == want.shape
    limit = ROUNDING * (np.abs(want).max(initial=0.0) if scale is None else scale)
    assert np.abs(got - want).max(initial=0.0) <= limit


@pytest.mark.parametrize("width", [1, 3, 8, 10, 16, 64, 70, 128, 200])
@pytest.mark.parametrize("batch", [0, 1, 70])
def test_bags_of_floats(instructions: str, width: int, batch: int) -> None:
    table = RNG.normal(size=(50, width)).astype(np.float32)
    bags = [1, 3, 1, 7]
    ids = RNG.integers(0, 50, (batch, 12))
    got = run([table, ids], 4 * width, plan=lookup(width, bags), factors=[1.0])
    assert_close(got, pooled(table, ids, bags), 7 * np.abs(table).max())
    assert np.array_equal(got[:, :width], table[ids[:, 0]]), "a single row is copied bit by bit"


@pytest.mark.parametrize("width", [1, 3, 8, 10, 16, 64, 70, 128, 200])
def test_bags_of_codes(instructions: str, width: int) -> None:
    codes = RNG.integers(0, 256, (50, width)).astype(np.uint8)
    scales = RNG.normal(size=(50, 2)).astype(np.float32)
    bags = [2, 1, 5]
    ids = RNG.integers(0, 50, (70, 8))
    plan = lookup(width, bags, places=[0, 1, 2, -1])
    got = run([codes, ids, scales], 3 * width, plan=plan, factors=[1.0])
    rows = codes * scales[:, :1].astype(np.float64) + scales[:, 1:]
    assert_close(got, pooled(rows, ids, bags), 5 * np.abs(rows).max())


@pytest.mark.parametrize("width", [1, 3, 8, 10, 16, 64, 70, 128, 200])
def test_bags_of_halves_and_of_nibbles(instructions: str, width: int) -> None:
    halves = RNG.normal(size=(50, width)).astype(np.float16)
    halves[0, 0], halves[1, 0] = 2.0**-24, -(2.0**-15)  # smaller than the exponent goes
    bags, ids = [2, 1, 5], RNG.integers(0, 50, (70, 8))
    ids[0] = [0, 1, 0, 1, 0, 1, 0, 1]
    got = run([halves, ids], 3 * width, plan=lookup(width, bags, coding=1), factors=[1.0])
    assert_close(got, pooled(halves, ids, bags), 5 * np.abs(halves).max())
    assert np.array_equal(got[:, width : 2 * width], halves[ids[:, 2]].astype(np.float32))
    codes = RNG.integers(0, 16, (50, 2 * width)).astype(np.uint8)
    pairs = codes[:, ::2] | codes[:, 1::2] << 4
    scales = RNG.normal(size=(50, 2)).astype(np.float16)
    plan = lookup(2 * width, bags, places=[0, 1, 2, -1], coding=3)
    got = run([pairs, ids, scales], 6 * width, plan=plan, factors=[1.0])
    rows = codes * scales[:, :1].astype(np.float64) + scales[:, 1:].astype(np.float64)
    assert_close(got, pooled(rows, ids, bags), 5 * np.abs(rows).max())


@pytest.mark.parametrize("coded", [False, True])
def test_weights_factors_and_shifts(instructions: str, coded: bool) -> None:
    rows = RNG.normal(size=(40, 20)).astype(np.float32)
    codes = RNG.integers(0, 256, (40, 20)).astype(np.uint8)
    scales = RNG.normal(size=(40, 2)).astype(np.float32)
    ids = RNG.integers(0, 10, (9, 6)).astype(np.int32)
    weights = RNG.normal(size=(9, 6, 1)).astype(np.float32)
    shifts = [0, 10, 10, 30]
    plan = lookup(20, [3, 1], places=[0, 1, 3 if coded else -1, 2], first=1, shifts=shifts)
    plan[11] = 1  # the first weight
    inputs = [codes if coded else rows, ids, weights, *([scales] if coded else [])]
    got = run(inputs, 40, plan=plan, factors=[0.25])
    exact = codes * scales[:, :1].astype(np.float64) + scales[:, 1:] if coded else rows
    want = pooled(exact, ids[:, 1:5] + np.array(shifts), [3, 1], weights[:, 1:5]) * 0.25
    assert_close(got, want, np.abs(exact).max() * np.abs(weights).max())


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("has_end", [False, True])
def test_bags_by_offsets(instructions: str, coded: bool, has_end: bool) -> None:
    lengths = np.array([2, 0, 5, 1, 0, 300])
    bounds = np.concatenate([[0], lengths.cumsum()])
    ids = RNG.integers(0, 30, bounds[-1])
    table = RNG.normal(size=(40, 20)).astype(np.float32)
    codes = RNG.integers(0, 256, (40, 20)).astype(np.uint8)
    scales = RNG.normal(size=(40, 2)).astype(np.float32)
    weights = RNG.normal(size=(len(ids), 1)).astype(np.float32)
    divisor = RNG.uniform(1, 2, (6, 1)).astype(np.float32)
    offsets = bounds if has_end else bounds[:-1]
    plan = [0, 2, 2 * coded, 20, 0, 1, 5 if coded else -1, 3, 4, 2, int(has_end), 0, 1, 1, 1, 10]
    inputs = [codes if coded else table, ids, offsets, weights, divisor]
    got = run([*inputs, *([scales] if coded else [])], 20, plan=plan, factors=[0.5])
    rows = codes * scales[:, :1].astype(np.float64) + scales[:, 1:] if coded else table
    parts = np.split(rows.astype(np.float64)[ids + 10] * weights, bounds[1:-1])
    want = 0.5 * np.stack([part.sum(0) for part in parts]) / divisor
    assert_close(got, want, 30 * np.abs(rows).max())
    assert not got[1].any(), "an empty bag is zero"


@pytest.mark.parametrize("offsets", [[0, 3, 2], [0, -1, 4], [0, 2, 9], [2, 3, 4]])
def test_offsets_that_do_not_cut_a_list_are_told(offsets: list[int]) -> None:
    plan = [0, 2, 0, 3, 0, 1, -1, -1, -1, 2, 0, 0, 1, 1, 1, 0]
    inputs = [np.zeros((7, 3), np.float32), np.zeros(5, np.int64), np.array(offsets)]
    with pytest.raises(Exception, match=r"row \d has the ids from -?\d to -?\d of a list of 5"):
        run(inputs, 3, plan=plan, factors=[1.0])


@pytest.mark.parametrize(("count", "width"), [(3, 4), (9, 16), (14, 10), (27, 64), (33, 17)])
def test_dots_of_pairs_beside_dense_features(instructions: str, count: int, width: int) -> None:
    table = RNG.normal(size=(30, width)).astype(np.float32)
    ids = RNG.integers(0, 30, (5, count - 2))
    two = RNG.normal(size=(5, 3, width)).astype(np.float32)
    other = RNG.normal(size=(5, 7)).astype(np.float32)
    pairs = [(j, i) if (i + j) % 2 else (i, j) for i in range(count) for j in range(i)]
    pairs += [(0, 0), (count - 1, count - 1)]
    segments = [
        dense(7, 3),
        dense(width, 2, count=2, first=1, interacts=True),
        lookup(width, [1] * (count - 2), interacts=True),
        lookup(width, [1]),
    ]
    got = run(
        [table, ids, two, other],
        7 + len(pairs) + width,
        plan=[one for segment in segments for one in segment],
        factors=[1.0] * 4,
        pairs=[one for pair in pairs for one in pair],
    )
    vectors = np.concatenate([two[:, 1:], table[ids]], 1).astype(np.float64)
    products = vectors @ vectors.transpose(0, 2, 1)
    dots = products[:, [i for i, _ in pairs], [j for _, j in pairs]]
    want = np.concatenate([other, dots, table[ids[:, 0]]], 1)
    assert_close(got, want, width * np.abs(vectors).max() ** 2)


@pytest.mark.parametrize("width", [1, 4, 10, 16, 17, 64])
@pytest.mark.parametrize("batch", [0, 1, 70])
def test_products_of_pairs(instructions: str, width: int, batch: int) -> None:
    table = RNG.normal(size=(30, width)).astype(np.float32)
    ids = RNG.integers(0, 30, (batch, 5))
    two = RNG.normal(size=(batch, 2, width)).astype(np.float32)
    pairs = [(0, 1), (6, 2), (3, 3), (5, 6)]
    segments = [
        lookup(width, [1]),
        lookup(width, [1] * 5, interacts=True),
        dense(width, 2, count=2, interacts=True),
    ]
    got = run(
        [table, ids, two],
        5 * width,
        plan=[one for segment in segments for one in segment],
        factors=[1.0] * 3,
        pairs=[one for pair in pairs for one in pair],
        elementwise=1,
    )
    vectors = np.concatenate([table[ids], two], 1)
    products = [vectors[:, i] * vectors[:, j] for i, j in pairs]
    assert np.array_equal(got, np.concatenate([table[ids[:, 0]], *products], 1))


@pytest.mark.parametrize("width", [1, 10, 16, 40])
@pytest.mark.parametrize("alone", [True, False])
def test_rows_are_copied(instructions: str, width: int, alone: bool) -> None:
    table = RNG.normal(size=(300, width)).astype(np.float32)
    ids = RNG.integers(-300, 300, (140, 7))
    other = RNG.normal(size=(140, 3)).astype(np.float32)
    segments = [lookup(width, [1] * 7)] + ([] if alone else [dense(3, 2), lookup(width, [1])])
    got = run(
        [table, ids, other],
        7 * width + (0 if alone else 3 + width),
        plan=[one for segment in segments for one in segment],
        factors=[1.0] * len(segments),
    )
    rows = table[ids].reshape(140, -1)
    want = rows if alone else np.concatenate([rows, other, table[ids[:, 0]]], 1)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("width", [5, 16, 40])
def test_codes_are_what_quantize_linear_gives(instructions: str, width: int) -> None:
    steps = np.arange(-400, 400).repeat(width).reshape(-1, width).astype(np.float32) / 2
    steps[0] = np.inf
    steps[1] = -np.inf
    for scale, zero in ((1.0, 3), (0.37, 0), (2.0, 255)):
        settings = {"scale": scale, "zero_point": zero}
        got = run([steps], width, codes=True, plan=dense(width, 0), factors=[1.0], **settings)
        want = np.clip(np.rint(steps / np.float32(scale)) + zero, 0, 255)
        assert np.array_equal(got, want)


def test_threads_and_negative_ids_change_nothing() -> None:
    table = RNG.normal(size=(100, 24)).astype(np.float32)
    ids = RNG.integers(-100, 100, (1000, 10))
    plan = lookup(24, [10])
    got = [
        run([table, ids], 24, threads=threads, plan=plan, factors=[1.0]) for threads in (1, 2, 4)
    ]
    assert_close(got[0], pooled(table, ids, [10]), 10 * np.abs(table).max())
    assert np.array_equal(got[0], got[1])
    assert np.array_equal(got[0], got[2])


@pytest.mark.parametrize("wrong", [7, -8, 2**40, -(2**62)])
@pytest.mark.parametrize("row", [0, 200])
def test_an_id_beyond_its_table_is_told(wrong: int, row: int) -> None:
    ids = np.zeros((300, 2), np.int64)
    ids[row, 1] = wrong
    message = f"row {row} looks up id {wrong}, beyond a table of 7 rows"
    with pytest.raises(Exception, match=message):
        run([np.zeros((7, 3), np.float32), ids], 6, plan=lookup(3, [1, 1]), factors=[1.0])


TABLE, IDS = np.zeros((7, 3), np.float32), np.zeros((4, 2), np.int64)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ([TABLE, IDS], {"plan": lookup(3, [2])[:-1]}, "cut short"),
        ([TABLE, IDS], {"plan": lookup(3, [2]), "factors": [1.0, 1.0]}, "don't fit"),
        ([TABLE, IDS], {"plan": lookup(4, [2])}, "the shape of an operator"),
        ([TABLE, IDS], {"plan": lookup(3, [3])}, "an input isn't what the plan"),
        ([TABLE.astype(np.uint8), IDS], {"plan": lookup(3, [2])}, "an input isn't what the plan"),
        ([TABLE, IDS.astype(np.float32)], {"plan": lookup(3, [2])}, "an input isn't what the plan"),
        ([TABLE, IDS], {"plan": lookup(3, [2], places=[0, 2, -1, -1])}, "lacks an input"),
        ([TABLE, IDS], {"plan": [*lookup(3, [2]), *dense(3, 0)], "factors": [1.0] * 2}, "of 4 row"),
        ([TABLE, IDS], {"plan": lookup(3, [1, 1], interacts=True), "pairs": [0, 2]}, "no pair"),
    ],
)
def test_what_does_not_fit_the_plan_is_told(
    inputs: list[Any], settings: dict[str, Any], message: str
) -> None:
    settings = {"factors": [1.0], **settings}
    with pytest.raises(Exception, match=message):
        run(inputs, 3 * len(settings["factors"]), **settings)


def test_a_library_that_fails_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    native.library.cache_clear()
    try:
        assert "not built" in library().reason
        native.library.cache_clear()
        (tmp_path / "operators.so").write_bytes(b"nonsense")
        assert library().path is None
        assert "it fails here" in library().reason
        assert "native operators are not used" in caplog.text
    finally:
        native.library.cache_clear()


def test_the_library_is_tried_out_with_the_model_whose_text_is_beside_it() -> None:
    assert onnx.ModelProto.FromString(trial.MODEL) == onnx.parser.parse_model(trial.TEXT)


def test_a_library_that_miscomputes_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.parser.parse_model(trial.TEXT.replace("0.5", "0.25"))
    monkeypatch.setattr(native, "MODEL", model.SerializeToString())
    native.library.cache_clear()
    try:
        assert library() == Library(None, "it fails here: its results differ from numpy's")
    finally:
        native.library.cache_clear()


def test_ids_that_count_from_the_end_of_their_own_rows(instructions: str) -> None:
    """Two tables in one: a limit of less than 0 says of how many rows negative ids count."""
    table = RNG.normal(size=(12, 4)).astype(np.float32)
    ids = np.array([[-1, -7], [4, 6], [-5, 0], [0, -1]])
    plan = lookup(4, [1, 1], places=[0, 1, -1, -1], first=0, shifts=[0, 5])
    options: dict[str, Any] = {"plan": plan, "factors": [1.0], "limits": [-5, -7]}
    want = table[np.stack([ids[:, 0] % 5, ids[:, 1] % 7 + 5], 1)].reshape(4, 8)
    assert np.array_equal(run([table, ids], 8, **options), want)
    for wrong in ([[-6, 0]], [[5, 0]], [[0, -8]], [[0, 7]], [[0, -(2**63)]]):
        with pytest.raises(Exception, match=r"row 0 looks up id .*, beyond a table of [57] rows"):
            run([table, np.array(wrong)], 8, **options)
