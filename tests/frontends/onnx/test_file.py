"""ONNX files as models: what comes out scores like the file, and what can't is refused by name."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rankc
import torch
from onnx import TensorProto, helper, numpy_helper
from rankc import models
from rankc.frontends.onnx.graph import OPERATORS
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import CaptureError, DataError, SignatureError
from rankc.optimizer.ir import FeatureKind, site_of, verify
from support import operators, run_passes
from torch import nn
from torch.utils._pytree import tree_map

HANDFUL = ("dcnv2", "din", "dlrm", "fibinet", "mmoe")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


def exported(name: str, folder: Path) -> Path:
    """The small preset of a model of the zoo, as ``torch.onnx`` writes it."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        write(models.zoo()[name]().eval(), path)
    return path


def write(model: nn.Module, path: Path, inputs: Any = None) -> None:
    inputs = model.example_inputs() if inputs is None else inputs  # type: ignore[operator]
    batch = torch.export.Dim("batch", min=1)
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            model,
            (*inputs, {}),  # a dict that comes last would be taken for keyword arguments
            dynamo=True,
            dynamic_shapes=tree_map(lambda _: {0: batch}, inputs),
            verbose=False,
        )
    assert made is not None
    made.save(path)


@cache
def captured(path: Path) -> rankc.Program:
    return rankc.capture(path)


def worst(path: Path, program: rankc.Program, size: int) -> float:
    """How far scores are off ONNX Runtime's, as a share of the largest."""
    rows = synthesize(program.signature, size, seed=size + 1).features
    session = onnxruntime.InferenceSession(str(path))
    want = session.run(None, {name: value.numpy() for name, value in rows.items()})
    return max(
        float((score - torch.from_numpy(np.array(w))).abs().max() / np.abs(w).max())
        for score, w in zip(program.run(rows).values(), want, strict=True)
    )


# --- the zoo --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HANDFUL)
def test_a_model_of_the_zoo_comes_back(name: str, store: Path) -> None:
    path = exported(name, store)
    program = captured(path)
    verify(program)
    for size in (1, 3, 64):
        assert worst(path, program, size) <= 1e-5
    rounded = run_passes(program, "rounding").program
    assert worst(path, rounded, 17) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*models.ZOO} - {*HANDFUL}))
def test_every_model_of_the_zoo_comes_back_or_is_refused(
    name: str, store: Path, request: pytest.FixtureRequest
) -> None:
    if "slow" not in request.config.option.markexpr:
        pytest.skip("exporting every model takes a minute: pytest -m slow")
    try:
        path = exported(name, store)
    except Exception as error:
        pytest.skip(f"torch.onnx doesn't export it: {type(error).__name__}")
    if any(node.op_type == "Loop" for node in onnx.load(path).graph.node):
        with pytest.raises(CaptureError, match=r"× Loop.*EmbeddingBag"):
            rankc.capture(path)
        return
    program = rankc.capture(path)
    verify(program)
    for size in (1, 3, 64):
        assert worst(path, program, size) <= 1e-5
    assert worst(path, run_passes(program, "rounding").program, 17) <= 1e-5


@pytest.mark.parametrize("name", ["dlrm", "dcnv2", "mmoe"])
def test_a_file_is_optimized(name: str, store: Path) -> None:
    path = exported(name, store)
    artifact = rankc.optimize(path, "cpu-fp32")
    assert artifact.verdict.status is rankc.Status.UNVERIFIED
    assert worst(path, captured(path), 8) <= 1e-5
    rows = synthesize(captured(path).signature, 8, seed=3).features
    got = artifact(**{name: value.numpy() for name, value in rows.items()})
    want = captured(path).run(rows)
    several = got.values() if isinstance(got, dict) else [got]
    for one, other in zip(several, want.values(), strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5 * float(other.abs().max()))


def test_it_is_what_capturing_the_model_gives(store: Path) -> None:
    """Tables, linears, their names and the features are recognised as in the torch model.

    But for negative ids, which ONNX counts from the end and PyTorch refuses.
    """
    program = captured(exported("dlrm", store))
    torch.manual_seed(0)
    direct = rankc.capture(models.zoo()["dlrm"]())
    ids = program.signature.feature("ids")
    assert ids.least == tuple(-rows for rows in ids.cardinalities)
    features = program.signature.with_feature("ids", lows=()).features
    assert features == direct.signature.features
    names = [
        {n for n, _ in p.tensors() if n.endswith(("weight", "bias"))} for p in (program, direct)
    ]
    assert names[0] == names[1]
    clean = [run_passes(p, "rounding,grouping").program for p in (program, direct)]
    linears = [[site_of(n) for n in p.graph.nodes if "linear" in str(n.target)] for p in clean]
    assert linears[0] == linears[1]
    counted = ["lt", "add", "where"]
    assert sorted(operators(clean[0])) == sorted([*operators(clean[1]), *counted])


# --- operators ------------------------------------------------------------------------------------


def build(
    folder: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, Any] | None = None,
    opset: int = 18,
    outputs: tuple[str, ...] = ("score",),
) -> Path:
    """A small file written by hand."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in (weights or {}).items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "made.onnx"
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=9), path)
    return path


def node(kind: str, inputs: str, output: str = "score", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


X = {"x": (TensorProto.FLOAT, ["batch", 4])}
F32 = np.float32
#: Codes of a weight ``[4, 3]``, and how an activation is quantized.
CODES: dict[str, Any] = {
    "s": F32(0.05),
    "z": np.uint8(120),
    "w": (np.arange(12, dtype=np.int8).reshape(4, 3) * 20 - 110).astype(np.int8),
}
UNARY = [
    *("Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu"),
    *("LogSoftmax", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax"),
    *("Softplus", "Softsign", "Tanh", "Reciprocal", "Celu", "ThresholdedRelu", "Identity"),
]


@pytest.mark.parametrize("kind", UNARY)
def test_functions_of_one_tensor(kind: str, tmp_path: Path) -> None:
    path = build(tmp_path, [node(kind, "x")], X)
    assert worst(path, rankc.capture(path), 9) <= 1e-5


CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "linear": (
        [node("MatMul", "x w", "p"), node("Add", "p b")],
        {"w": np.ones((4, 3), F32), "b": np.arange(3, dtype=F32)},
    ),
    "gemm": (
        [node("Gemm", "x w b", alpha=0.5, beta=2.0)],
        {"w": np.ones((4, 3), F32), "b": np.arange(3, dtype=F32)},
    ),
    "clip": ([node("Clip", "x lo hi")], {"lo": F32(-0.5), "hi": F32(0.25)}),
    "pow": ([node("Pow", "x two")], {"two": F32(2)}),
    "division": ([node("Div", "one x")], {"one": F32(1)}),
    "subtraction": ([node("Sub", "one x")], {"one": F32(1)}),
    "max": ([node("Max", "x zero y"), node("Neg", "x", "y")][::-1], {"zero": F32(0)}),
    "where": (
        [node("Greater", "x zero", "c"), node("Not", "c", "n"), node("Where", "n x zero")],
        {"zero": F32(0)},
    ),
    "legacy reshape": (
        [
            node("Shape", "x", "s"),
            node("Gather", "s first", "b"),
            node("Unsqueeze", "b zero", "u"),
            node("Concat", "u rest", "t", axis=0),
            node("Reshape", "x t", "r"),
            node("ReduceSum", "r one", keepdims=0),
        ],
        {"first": np.int64(0), "zero": np.array([0]), "rest": np.array([2, 2]), "one": [1]},
    ),
    "expand": (
        [
            node("Shape", "x", "s"),
            node("Slice", "s zero one", "b"),
            node("Concat", "b four", "t", axis=0),
            node("Expand", "v t", "e"),
            node("Mul", "x e"),
        ],
        {"zero": [0], "one": [1], "four": [4], "v": np.ones((1, 4), F32) * 3},
    ),
    "made ones": (
        [
            node("Shape", "x", "s"),
            node("ConstantOfShape", "s", "o", value=numpy_helper.from_array(np.ones(1, F32))),
            node("Add", "x o"),
        ],
        {},
    ),
    "split": ([node("Split", "x", "a c", axis=1, num_outputs=2), node("Mul", "a c")], {}),
    "backwards": (
        [node("Slice", "x minus low one minus")],
        {"minus": [-1], "low": [-9], "one": [1]},
    ),
    "reductions": (
        [
            node("ReduceMean", "x one", "a"),
            node("ReduceL2", "x one", "b"),
            node("ReduceMax", "x one", "c"),
            node("ReduceProd", "x one", "d"),
            node("ReduceMin", "x one", "e"),
            node("Concat", "a b c d e", axis=1),
        ],
        {"one": [1]},
    ),
    "layer norm": (
        [node("LayerNormalization", "x g b", epsilon=1e-3)],
        {"g": np.arange(4, dtype=F32), "b": np.ones(4, F32)},
    ),
    "batch norm": (
        [node("BatchNormalization", "x g b m v")],
        {n: np.linspace(0.5, 1, 4).astype(F32) for n in "gbmv"},
    ),
    "einsum": (
        [node("Einsum", "x w", equation="bi,io->bo")],
        {"w": np.arange(12, dtype=F32).reshape(4, 3)},
    ),
    "prelu": ([node("PRelu", "x s")], {"s": np.array([0.1, 0.2, 0.3, 0.4], F32)}),
    "running sum": (
        [node("CumSum", "x one", exclusive=1, reverse=1)],
        {"one": np.int64(1)},
    ),
    "tile": ([node("Tile", "x times")], {"times": [1, 3]}),
    "top k": ([node("TopK", "x two", "score places", axis=1)], {"two": [2]}),
    "quantized": (
        [
            node("QuantizeLinear", "x s z", "q"),
            node("DequantizeLinear", "q s z", "d"),
            node("DequantizeLinear", "w ws wz", "e", axis=0),
            node("Gemm", "d e", transB=1),
        ],
        {
            "s": F32(0.05),
            "z": np.uint8(128),
            "w": np.arange(12, dtype=np.int8).reshape(3, 4),
            "ws": np.array([0.1, 0.2, 0.3], F32),
            "wz": np.zeros(3, np.int8),
        },
    ),
    "integer product": (
        [
            node("QuantizeLinear", "x s z", "q"),
            node("MatMulInteger", "q w z wz", "p"),
            node("Cast", "p", to=onnx.TensorProto.FLOAT),
        ],
        {
            "s": F32(0.05),
            "z": np.uint8(128),
            "w": np.arange(12, dtype=np.int8).reshape(4, 3),
            "wz": np.array([1, 0, -2], np.int8),
        },
    ),
    "halves of bytes": (
        [
            node("QuantizeLinear", "x s z", "q"),
            node("BitwiseAnd", "q low", "a"),
            node("BitShift", "q four", "b", direction="RIGHT"),
            node("Concat", "a b", "c", axis=1),
            node("Cast", "c", to=onnx.TensorProto.FLOAT),
        ],
        {"s": F32(0.05), "z": np.uint8(128), "low": np.uint8(15), "four": np.uint8(4)},
    ),
    "fused product": (
        [node("FusedMatMul", "x w", alpha=0.5, transB=1, domain="com.microsoft")],
        {"w": np.ones((3, 4), F32)},
    ),
    "product of codes": (
        [
            node("QuantizeLinear", "x s z", "a"),
            node("MatMulIntegerToFloat", "a w s t z", domain="com.microsoft"),
        ],
        {**CODES, "t": F32(0.02)},
    ),
    "product of codes, with all": (
        [
            node("QuantizeLinear", "x s z", "a"),
            helper.make_node(
                "MatMulIntegerToFloat",
                ["a", "w", "s", "t", "z", "u", "b"],
                ["score"],
                domain="com.microsoft",
            ),
        ],
        {
            **CODES,
            "t": np.array([0.02, 0.5, 0.001], F32),
            "u": np.array([0, 3, -100], np.int8),
            "b": np.array([1.0, -2.0, 0.5], F32),
        },
    ),
    "product of codes, without zero points": (
        [
            node("QuantizeLinear", "x s zero", "a"),
            helper.make_node(
                "MatMulIntegerToFloat",
                ["a", "w", "s", "t", "", "", "b"],
                ["score"],
                domain="com.microsoft",
            ),
        ],
        {**CODES, "zero": np.uint8(0), "t": F32(0.02), "b": np.array([1.0, -2.0, 0.5], F32)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operators(case: str, tmp_path: Path) -> None:
    nodes, weights = CASES[case]
    path = build(tmp_path, nodes, X, weights)
    program = rankc.capture(path)
    verify(program)
    for size in (1, 9):
        assert worst(path, program, size) <= 1e-5


def test_a_product_and_its_bias_are_one_linear(tmp_path: Path) -> None:
    nodes, weights = CASES["linear"]
    program = rankc.capture(build(tmp_path, nodes, X, weights))
    assert operators(program) == ["linear"]
    assert program.tensor("w").shape == (3, 4)


def test_sizes_cost_no_nodes(tmp_path: Path) -> None:
    nodes, weights = CASES["legacy reshape"]
    program = rankc.capture(build(tmp_path, nodes, X, weights))
    assert [o for o in operators(program) if o != "sym_size"] in (
        ["view", "sum"],
        ["reshape", "sum"],
    )


def test_old_opsets(tmp_path: Path) -> None:
    nodes = [
        node("Unsqueeze", "x", "u", axes=[1]),
        node("Softmax", "u", "p", axis=1),
        node("Squeeze", "p", "q", axes=[1]),
        node("Clip", "q", "c", min=0.1, max=0.4),
        node("ReduceSum", "c", axes=[1], keepdims=0),
    ]
    path = build(tmp_path, nodes, X, opset=10)
    assert worst(path, rankc.capture(path), 9) <= 1e-5


def test_a_table_is_recognised_and_ids_are_hashed(tmp_path: Path) -> None:
    inputs = {
        "user.id": (TensorProto.INT64, ["N"]),
        "hashed": (TensorProto.INT64, ["N"]),
    }
    nodes = [
        node("Gather", "table user.id", "a"),
        node("Mod", "hashed seven", "m"),
        node("Gather", "other m", "b"),
        node("Mul", "a b", "ab"),
        node("ReduceSum", "ab one", keepdims=0),
    ]
    generator = np.random.default_rng(0)
    weights = {
        "table": generator.normal(size=(11, 4)).astype(F32),
        "other": generator.normal(size=(7, 4)).astype(F32),
        "seven": np.int64(7),
        "one": [1],
    }
    program = rankc.capture(build(tmp_path, nodes, inputs, weights))
    first = program.signature.feature("user_id")
    assert (first.kind, first.cardinalities, first.tables) == (FeatureKind.ID, (11,), ("table",))
    assert program.tensor("table").shape == (11, 4)
    assert program(torch.tensor([1, 10]), hashed=torch.tensor([700, 8])).shape == (2,)


# --- refusals -------------------------------------------------------------------------------------


def refusal(path: Path, error: type[Exception] = CaptureError) -> str:
    with pytest.raises(error) as caught:
        rankc.capture(str(path))
    return str(caught.value)


def test_unknown_operators_are_counted_and_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="picks"),
        node("NonZero", "x", "b"),
        helper.make_node("Magic", ["x"], ["score"], domain="com.microsoft"),
    ]
    said = refusal(build(tmp_path, nodes, X))
    assert said.startswith("3 of 3 ONNX nodes can't be captured: 2 × NonZero, 1 × com.microsoft.")
    assert "The first is 'picks' (NonZero)" in said


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    said = refusal(build(tmp_path, [node("Relu", "x")], {"x": (TensorProto.FLOAT, [8, 4])}))
    assert "fixes the batch: input 'x' is [8, 4]" in said
    assert "dynamic_shapes" in said


def test_rows_that_mix_are_told(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", "x zero", "m"), node("Sub", "x m")]
    assert "depends on the other rows" in refusal(build(tmp_path, nodes, X, {"zero": [0]}))


def test_broken_weights_and_files_are_told(tmp_path: Path) -> None:
    weights = {"w": np.full((4, 3), np.nan, F32)}
    assert "'w'" in refusal(build(tmp_path, [node("MatMul", "x w")], X, weights), DataError)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_text("x = 1")
    assert "is no ONNX file" in refusal(damaged)
    text = {"x": (TensorProto.STRING, ["batch"])}
    assert "Turn text into ids" in refusal(build(tmp_path, [node("Identity", "x")], text))


def test_names_of_outputs_can_be_given(store: Path) -> None:
    path = exported("mmoe", store)
    program = rankc.capture(path, outputs=("click", "like", "share"))
    assert program.signature.outputs == ("click", "like", "share")
    with pytest.raises(SignatureError):
        rankc.capture(path, outputs=("click", "like"))


def test_weights_beside_the_file_are_read_once(tmp_path: Path) -> None:
    path = build(tmp_path, *_with_a_table())
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=1024)
    program = rankc.capture(path)
    (tmp_path / "weights").unlink()
    assert program.nbytes < 1.1 * 1000 * 16 * 4
    assert torch.isfinite(program(torch.tensor([1, 2]))).all()


def _with_a_table() -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    nodes = [node("Gather", "table ids", "a"), node("ReduceSum", "a one", keepdims=0)]
    table = np.random.default_rng(0).normal(size=(1000, 16)).astype(F32)
    return nodes, {"ids": (TensorProto.INT64, ["batch"])}, {"table": table, "one": [1]}


def test_every_operator_has_a_name_onnx_knows() -> None:
    schemas = {schema.name for schema in onnx.defs.get_all_schemas()}
    own = {name for name in OPERATORS if "." not in name}
    assert own <= schemas
