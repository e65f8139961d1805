"""ONNX counts negative places from the end: what is made of a file scores as ONNX Runtime does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rankc
from onnx import TensorProto, helper, numpy_helper
from rankc.optimizer.errors import SignatureError

F32, I64, I32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
RNG = np.random.default_rng(0)
#: Users have 11 rows, items 7, both of one width, so that their tables are grouped; cities a
#: table of another width. Places along x's four columns.
INPUTS = {
    "user": (I64, ["N"]),
    "ids": (I64, ["N", 2]),
    "city": (I32, ["N"]),
    "places": (I64, ["N", 3]),
    "x": (F32, ["N", 4]),
}
LIMITS = {"user": 11, "ids": 7, "city": 5, "places": 4}
WEIGHTS = {
    "users": RNG.normal(size=(11, 4)),
    "items": RNG.normal(size=(7, 4)),
    "others": RNG.normal(size=(7, 4)),
    "cities": RNG.normal(size=(5, 3)),
    "w": RNG.normal(size=(15, 1)),
    "by_place": RNG.normal(size=(1, 4)),
    "two_times": np.array(2.0),
}
NUMBERS = {
    "none": [0],
    "three": [3],
    "one": [1],
    "zero": np.int64(0),
    "first": np.int64(1),
    "last": [-3],
    "end": [-1],
    "far": [-(2**31)],
    "minus": [-1],
}


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


NODES = [
    # Tables: a feature as it is, columns of one, int32.
    node("Gather", "users user", "a"),
    node("Gather", "ids zero", "i", axis=1),
    node("Gather", "ids first", "j", axis=1),
    node("Gather", "items i", "b"),
    node("Gather", "others j", "c"),
    node("Gather", "cities city", "d"),
    node("Concat", "a b c d", "all", axis=1),
    node("MatMul", "all w", "tables"),
    # A computed table, and places along a dimension: read, written, added to.
    node("Mul", "users two_times", "computed"),
    node("Gather", "computed user", "e"),
    node("ReduceSum", "e one", "of_computed", keepdims=1),
    node("GatherElements", "x places", "f", axis=1),
    node("ReduceSum", "f one", "gathered", keepdims=1),
    node("Slice", "x none three one", "v"),
    node("ScatterElements", "x places v", "g", axis=-1, reduction="add"),
    node("Mul", "g by_place", "h"),
    node("ReduceSum", "h one", "scattered", keepdims=1),
    # Slices from the end, forwards and backwards.
    node("Slice", "x last end one", "k"),
    node("Slice", "x end far one minus", "l"),
    node("Mul", "l by_place", "m"),
    node("Concat", "k m", "n", axis=1),
    node("ReduceSum", "n one", "sliced", keepdims=1),
]
OUTPUTS = ("tables", "of_computed", "gathered", "scattered", "sliced")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = {name: np.asarray(value, np.float32) for name, value in WEIGHTS.items()}
    weights |= {name: np.asarray(value, np.int64) for name, value in NUMBERS.items()}
    graph = helper.make_graph(
        NODES,
        "made",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in INPUTS.items()],
        [helper.make_tensor_value_info(name, F32, None) for name in OUTPUTS],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    place = tmp_path_factory.mktemp("places") / "made.onnx"
    onnx.save(made, place)
    return place


@pytest.fixture(scope="module")
def artifact(path: Path) -> rankc.Artifact:
    return rankc.optimize(path, "cpu-fp32")


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Places from the first to the last, from either end."""
    rng = np.random.default_rng(seed)
    made = {
        n: rng.integers(-size, size, [count, 3][: len(INPUTS[n][1])]) for n, size in LIMITS.items()
    }
    made["ids"] = made["ids"][:, :2]
    # Places that a row writes to differ: which of two values stays isn't said.
    made["places"] = np.stack([rng.permutation(4)[:3] for _ in range(count)])
    made["places"] -= 4 * rng.integers(0, 2, made["places"].shape)
    made["city"] = made["city"].astype(np.int32)
    return made | {"x": rng.normal(size=(count, 4)).astype(np.float32)}


@pytest.mark.parametrize("count", [1, 3, 64])
def test_negative_places_score_as_the_file_does(
    count: int, path: Path, artifact: rankc.Artifact, tmp_path: Path
) -> None:
    loaded = rankc.load(artifact.save(tmp_path / "saved"))
    raw = onnxruntime.InferenceSession(str(artifact.onnx_path))
    given = rows(count, seed=count)
    for name, size in LIMITS.items():
        if name != "places":
            given[name].flat[0] = -size
            given[name].flat[-1] = -1
    want = dict(zip(OUTPUTS, onnxruntime.InferenceSession(str(path)).run(None, given), strict=True))
    for got in (
        artifact.run(given),
        loaded.run(given),
        artifact(**given),
        dict(zip(OUTPUTS, raw.run(list(OUTPUTS), given), strict=True)),
    ):
        for name in OUTPUTS:
            assert np.allclose(got[name], want[name], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("name", ["user", "ids", "city"])
@pytest.mark.parametrize("side", [-1, 1])
def test_places_before_the_first_and_behind_the_last_are_refused(
    name: str, side: int, artifact: rankc.Artifact
) -> None:
    given, size = rows(5), LIMITS[name]
    given[name].flat[-1] = size if side > 0 else -size - 1
    with pytest.raises(SignatureError, match=f"{name!r}.* ids beyond {-size} to {size - 1}.*row 4"):
        artifact.run(given)
    with pytest.raises(SignatureError, match=name):
        artifact(**given)


def test_what_is_looked_up_is_in_the_signature(artifact: rankc.Artifact) -> None:
    users, ids = (artifact.signature.feature(name) for name in ("user", "ids"))
    assert (users.cardinalities, users.least, users.tables) == ((11,), (-11,), ("users",))
    assert (ids.cardinalities, ids.least) == ((7, 7), (-7, -7))
