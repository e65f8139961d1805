"""Every rewrite against the unoptimized Q/DQ model, which is what the model means."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rankc.backends.onnxruntime.fusions import fuse_for_onnxruntime

K, N, ROWS, WIDTH = 48, 24, 50, 16
BATCHES = (1, 7, 64)
RNG = np.random.default_rng(0)
NOTHING = {
    "shared-scalars": 0,
    "index-to-gather": 0,
    "rowwise-table": 0,
    "rowwise-table4": 0,
    "quantized-gemm": 0,
    "quantized-matmul": 0,
    "quantized-bias": 0,
    "flat-linear": 0,
    "sum-before-norm": 0,
}

LINEAR = {
    "xs": np.float32(0.02),
    "xz": np.uint8(117),
    "w": RNG.integers(-127, 128, (N, K)).astype(np.int8),
    "ws": RNG.uniform(0.001, 0.01, N).astype(np.float32),
    "wz": np.zeros(N, np.int8),
    "b": RNG.normal(size=N).astype(np.float32),
}
TABLE = {
    "codes": RNG.integers(0, 256, (ROWS, WIDTH)).astype(np.uint8),
    "scale": RNG.uniform(0.001, 0.01, (ROWS, 1)).astype(np.float32),
    "bias": RNG.normal(size=(ROWS, 1)).astype(np.float32),
}


def node(op, inputs, output, **attributes):
    made = helper.make_node(op, inputs.split(), output.split(), **attributes)
    made.metadata_props.add(key="rankc.origin", value=f"model.{output.split()[0]}")
    return made


def build(nodes, constants, inputs, outputs=("y",)):
    """Makes a model of nodes; an input is a name and its dimensions, an id if it starts with i."""
    used = {name for n in nodes for name in n.input}
    values = [
        helper.make_tensor_value_info(
            name, TensorProto.INT64 if name.startswith("i") else TensorProto.FLOAT, dims
        )
        for name, dims in inputs.items()
    ]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", values, outs, [i for i in initializers if i.name in used])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def session(model, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL, saved=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def ops(model):
    return collections.Counter(n.op_type for n in model.graph if n.op_type != "Constant")


def run_before_and_after(model, feeds):
    """Returns the meaning of the model, what the fused one computes, and the counts of rewrites."""
    exact = session(model, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    before = [exact.run(None, feed) for feed in feeds]
    counts = fuse_for_onnxruntime(model)
    fused = session(model)
    return before, [fused.run(None, feed) for feed in feeds], counts


def fused(counts):
    return {kind: count for kind, count in counts.items() if count}


def assert_rounds_alike(before, after, terms=K):
    # Two float32 sums of `terms` terms, in any order, differ by that many half-ulps of the largest
    # partial sum, which for these inputs stays below 8 times the largest result.
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            assert b.shape == a.shape
            np.testing.assert_allclose(b, a, rtol=0, atol=8 * np.abs(a).max() * terms * 2.0**-24)


def assert_same_bits(before, after):
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(b, a)


def floats(*shape):
    return [{"x": RNG.normal(size=(batch, *shape)).astype(np.float32)} for batch in BATCHES]


def quantized(zero="xz", x="x"):
    return [
        node("QuantizeLinear", f"{x} xs {zero}", "q"),
        node("DequantizeLinear", f"q xs {zero}", "d"),
    ]


def gemm(zero="xz", weight="w ws wz", bias="b", axis=0, **attributes):
    return [
        *quantized(zero),
        node("DequantizeLinear", weight, "wd", axis=axis),
        node("Gemm", f"d wd {bias}", "y", **{"transB": 1, **attributes}),
    ]


def matmul(zero="xz"):
    return [
        *quantized(zero),
        node("DequantizeLinear", "w ws", "wd", axis=0),
        node("Transpose", "wd", "wt", perm=[1, 0]),
        node("MatMul", "d wt", "m"),
    ]


LINEARS = {
    "gemm": (gemm(), {}, {"quantized-gemm": 1}),
    "no-zero-points": (gemm("", "w ws"), {}, {"quantized-gemm": 1}),
    "no-bias": (gemm(bias=""), {}, {"quantized-gemm": 1}),
    "per-tensor": (gemm(weight="w ws"), {"ws": np.float32(0.01)}, {"quantized-gemm": 1}),
    "untransposed": (
        gemm(axis=1, transB=0),
        {"w": LINEAR["w"].T.copy()},
        {"quantized-gemm": 1},
    ),
    "negative-axis": (gemm(axis=-2), {}, {"quantized-gemm": 1}),
    "matmul": ([*matmul(), node("Relu", "m", "y")], {}, {"quantized-matmul": 1}),
    "matmul-add": (
        [*matmul(), node("Add", "m b", "y")],
        {},
        {"quantized-matmul": 1, "quantized-bias": 1},
    ),
    "matmul-add-no-zero-point": (
        [*matmul(""), node("Add", "m b", "y")],
        {},
        {"quantized-matmul": 1, "quantized-bias": 1},
    ),
    "add-matmul": (
        [*matmul(), node("Add", "b m", "y")],
        {},
        {"quantized-matmul": 1, "quantized-bias": 1},
    ),
}


@pytest.mark.parametrize("name", LINEARS)
def test_quantized_linear(name):
    nodes, constants, expected = LINEARS[name]
    model = build(nodes, {**LINEAR, **constants}, {"x": ["B", K]})
    before, after, counts = run_before_and_after(model, floats(K))
    assert fused(counts) == expected
    assert ops(model)["MatMulIntegerToFloat"] == 1
    assert not ops(model).keys() & {"DequantizeLinear", "Gemm", "MatMul", "Transpose", "Add"}
    assert_rounds_alike(before, after)


def test_quantized_linear_over_vectors_of_a_row():
    model = build([*matmul(), node("Add", "m b", "y")], LINEAR, {"x": ["B", 5, K]})
    before, after, counts = run_before_and_after(model, floats(5, K))
    assert fused(counts) == {"quantized-matmul": 1, "quantized-bias": 1}
    assert_rounds_alike(before, after)


LEFT_ALONE = {
    "weight-zero-point": (gemm(), {"wz": np.full(N, 3, np.int8)}),
    "int8-activation": (gemm(), {"xz": np.int8(-5)}),
    "uint8-weight": (
        gemm(),
        {"w": LINEAR["w"].astype(np.uint8), "wz": np.zeros(N, np.uint8)},
    ),
    "scale-per-input": (
        gemm(weight="w ws", axis=1),
        {"ws": RNG.uniform(0.001, 0.01, K).astype(np.float32)},
    ),
    "bias-per-row": (gemm(bias="b1"), {"b1": np.float32(1.5)}),
    "scaled-product": (gemm(alpha=0.5), {}),
    "scaled-bias": (gemm(beta=2.0), {}),
    "float-activation": ([gemm()[2], node("Gemm", "x wd b", "y", transB=1)], {}),
    "float-weight": ([*quantized(), node("Gemm", "d wf b", "y")], {"wf": np.ones((K, N), "f4")}),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_linear_left_alone(name):
    nodes, constants = LEFT_ALONE[name]
    model = build(nodes, {**LINEAR, **constants}, {"x": ["B", K]})
    names = [n.op_type for n in model.graph]
    assert fuse_for_onnxruntime(model) == NOTHING
    assert [n.op_type for n in model.graph] == names
    session(model).run(None, floats(K)[1])


def test_square_weight_scaled_along_the_wrong_axis_is_left_alone():
    square = {"w": LINEAR["w"][:, :N].copy()}
    model = build(gemm(weight="w ws", axis=1), {**LINEAR, **square}, {"x": ["B", N]})
    assert fuse_for_onnxruntime(model) == NOTHING


def test_transposed_input_is_left_alone():
    model = build(gemm(transA=1), LINEAR, {"x": [K, "B"]})
    assert fuse_for_onnxruntime(model) == NOTHING


def test_weight_that_a_run_can_change_is_left_alone():
    model = build(gemm(), LINEAR, {"x": ["B", K]})
    model.graph.inputs.append(model.graph.initializers["w"])
    assert fuse_for_onnxruntime(model) == NOTHING


def test_product_with_another_user_keeps_its_addition():
    nodes = [*matmul(), node("Add", "m b", "y"), node("Relu", "m", "z")]
    model = build(nodes, LINEAR, {"x": ["B", K]}, ("y", "z"))
    before, after, counts = run_before_and_after(model, floats(K))
    assert fused(counts) == {"quantized-matmul": 1}
    assert_rounds_alike(before, after)


def test_addition_that_is_not_a_bias_stays():
    model = build(
        [*matmul(), node("Add", "m x", "y")],
        LINEAR | {"w": np.ones((K, K), "i1"), "ws": np.float32(0.1)},
        {"x": ["B", K]},
    )
    before, after, counts = run_before_and_after(model, floats(K))
    assert fused(counts) == {"quantized-matmul": 1}
    assert_rounds_alike(before, after)


def test_shared_weight_and_shared_input():
    nodes = [
        *gemm()[:3],
        node("Gemm", "d wd b", "y", transB=1),
        node("Gemm", "d wd", "z", transB=1),
        node("Relu", "d", "float_use"),
    ]
    model = build(nodes, LINEAR, {"x": ["B", K]}, ("y", "z", "float_use"))
    before, after, counts = run_before_and_after(model, floats(K))
    assert fused(counts) == {"quantized-gemm": 2}
    assert ops(model) == {
        "QuantizeLinear": 1,
        "DequantizeLinear": 1,
        "MatMulIntegerToFloat": 2,
        "Relu": 1,
    }
    # One transposed copy serves both, and the original is gone.
    assert [v.shape for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8] == [
        ir.Shape([K, N])
    ]
    assert_rounds_alike(before, after)


def test_chain_stays_within_its_quantization_steps():
    square = {"w": RNG.integers(-127, 128, (K, K)).astype(np.int8), "ws": np.float32(0.002)}
    nodes = [
        node("QuantizeLinear", "x xs xz", "q0"),
        node("DequantizeLinear", "q0 xs xz", "d0"),
        node("DequantizeLinear", "w ws", "wd"),
        node("Gemm", "d0 wd", "t", transB=1),
        node("Relu", "t", "r"),
        node("QuantizeLinear", "r s1 z1", "q1"),
        node("DequantizeLinear", "q1 s1 z1", "d1"),
        node("Gemm", "d1 wd", "y", transB=1),
    ]
    steps = {"s1": np.float32(0.017), "z1": np.uint8(0)}
    model = build(nodes, {**LINEAR, **square, **steps}, {"x": ["B", K]})
    before, after, counts = run_before_and_after(model, floats(K))
    assert fused(counts) == {"quantized-gemm": 2}
    # A hidden value within a rounding error of half a step may round the other way: none does here.
    assert_rounds_alike(before, after)


def test_equal_scales_are_shared_so_that_one_quantization_remains(tmp_path):
    nodes = []
    for i in range(2):
        nodes += [
            node("QuantizeLinear", f"x xs{i} xz{i}", f"q{i}"),
            node("DequantizeLinear", f"q{i} xs{i} xz{i}", f"d{i}"),
            node("DequantizeLinear", "w ws", f"wd{i}", axis=0),
            node("Gemm", f"d{i} wd{i} b", f"y{i}", transB=1),
        ]
    constants = {f"{name}{i}": LINEAR[name] for name in ("xs", "xz") for i in range(2)}
    model = build(nodes, {**LINEAR, **constants}, {"x": ["B", K]}, ("y0", "y1"))
    counts = fuse_for_onnxruntime(model)
    assert fused(counts) == {"shared-scalars": 2, "quantized-gemm": 2}
    session(model, saved=tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert [n.op_type for n in optimized].count("QuantizeLinear") == 1


def lookup(table="", ids="i", gather="Gather", out="y"):
    c, s, b = (f"{name}{table}" for name in ("codes", "scale", "bias"))
    return [
        node(gather, f"{c} {ids}", f"g{out}"),
        node("Cast", f"g{out}", f"c{out}", to=TensorProto.FLOAT),
        node(gather, f"{s} {ids}", f"s{out}"),
        node("Mul", f"c{out} s{out}", f"m{out}"),
        node(gather, f"{b} {ids}", f"b{out}"),
        node("Add", f"m{out} b{out}", out),
    ]


def ids(*shape):
    return [{"i": RNG.integers(-ROWS, ROWS, (batch, *shape))} for batch in BATCHES]


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_rowwise_table(shape, dtype):
    codes = {"codes": TABLE["codes"].astype(dtype)}
    model = build(lookup(), {**TABLE, **codes}, {"i": ["B", *shape]})
    before, after, counts = run_before_and_after(model, ids(*shape))
    assert fused(counts) == {"rowwise-table": 1}
    assert ops(model)["Gather"] == 2
    assert ops(model)["DequantizeLinear"] == 1
    assert not ops(model).keys() & {"Cast", "Mul"}
    assert_same_bits(before, after)


def test_rowwise_table_with_operands_the_other_way_round():
    nodes = lookup()
    nodes[3] = node("Mul", "sy cy", "my")
    nodes[5] = node("Add", "by my", "y")
    model = build(nodes, TABLE, {"i": ["B"]})
    before, after, counts = run_before_and_after(model, ids())
    assert fused(counts) == {"rowwise-table": 1}
    assert_same_bits(before, after)


def test_rowwise_table_read_twice_is_stored_once():
    nodes = [
        *lookup(ids="i", out="u"),
        *lookup(ids="i2", out="v"),
        node("Concat", "u v", "y", axis=1),
    ]
    model = build(nodes, TABLE, {"i": ["B"], "i2": ["B"]})
    feeds = [feed | {"i2": feed["i"][::-1].copy()} for feed in ids()]
    before, after, counts = run_before_and_after(model, feeds)
    assert fused(counts) == {"rowwise-table": 2}
    floats_kept = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert [v.shape for v in floats_kept] == [ir.Shape([ROWS, 2])]
    assert_same_bits(before, after)


def test_onnxruntime_does_not_take_row_scales_for_one_scale():
    # What it does to a DequantizeLinear of row scales that feeds a product directly.
    nodes = [
        *lookup(ids="i", out="u"),
        *lookup(ids="i2", out="v"),
        node("Transpose", "v", "vt", perm=[1, 0]),
        node("MatMul", "u vt", "y"),
    ]
    model = build(nodes, TABLE, {"i": ["B"], "i2": ["B"]})
    feeds = [feed | {"i2": feed["i"][::-1].copy()} for feed in ids()]
    before, after, counts = run_before_and_after(model, feeds)
    assert fused(counts) == {"rowwise-table": 2}
    assert_rounds_alike(before, after)


def table_without_bias():
    return [*lookup()[:3], node("Mul", "cy sy", "y")]


def table_with_another_user_of_its_codes():
    return [*lookup(), node("Cast", "gy", "z", to=TensorProto.FLOAT)]


def table_by_column():
    nodes = lookup()
    nodes[0] = node("Gather", "codes i", "gy", axis=1)
    return nodes


def table_of_other_ids():
    nodes = lookup()
    nodes[4] = node("Gather", "bias i2", "by")
    return nodes


TABLES_LEFT_ALONE = {
    "no-bias": (table_without_bias(), {}, {"i": ["B"]}),
    "two-users": (table_with_another_user_of_its_codes(), {}, {"i": ["B"]}),
    "other-ids": (table_of_other_ids(), {}, {"i": ["B"], "i2": ["B"]}),
    "by-column": (table_by_column(), {"codes": TABLE["codes"][:, :1]}, {"i": [16]}),
    "int32-codes": (lookup(), {"codes": TABLE["codes"].astype(np.int32)}, {"i": ["B"]}),
    "one-scale": (lookup(), {"scale": TABLE["scale"][:, 0]}, {"i": [WIDTH]}),
    "unknown-shape": (lookup(), {}, {"i": ["B", "L"]}),
}


@pytest.mark.parametrize("name", TABLES_LEFT_ALONE)
def test_table_left_alone(name):
    nodes, constants, inputs = TABLES_LEFT_ALONE[name]
    outputs = ("y", "z") if name == "two-users" else ("y",)
    model = build(nodes, {**TABLE, **constants}, inputs, outputs)
    names = [n.op_type for n in model.graph]
    assert fuse_for_onnxruntime(model) == NOTHING
    assert [n.op_type for n in model.graph] == names


NIBBLES = [
    node("Gather", "codes i", "pairs"),
    node("BitwiseAnd", "pairs fifteen", "low"),
    node("BitShift", "pairs four", "high", direction="RIGHT"),
    node("Unsqueeze", "low last", "low1"),
    node("Unsqueeze", "high last", "high1"),
    node("Concat", "low1 high1", "halves", axis=-1),
    node("Reshape", "halves shape", "values"),
    node("Cast", "values", "v", to=TensorProto.FLOAT),
    node("Gather", "scale i", "s"),
    node("Cast", "s", "sf", to=TensorProto.FLOAT),
    node("Gather", "bias i", "b"),
    node("Cast", "b", "bf", to=TensorProto.FLOAT),
    node("Mul", "v sf", "vs"),
    node("Add", "vs bf", "y"),
]
NIBBLE_TABLE = {
    **{name: value.astype(np.float16) for name, value in TABLE.items() if name != "codes"},
    "codes": TABLE["codes"],
    "fifteen": np.uint8(15),
    "four": np.uint8(4),
    "last": np.array([-1]),
    "shape": np.array([0, -1]),
}


def test_rowwise_table_of_4_bits():
    model = build(NIBBLES, NIBBLE_TABLE, {"i": ["B"]})
    before, after, counts = run_before_and_after(model, ids())
    assert fused(counts) == {"rowwise-table4": 1}
    assert ops(model)["Gather"] == 2
    assert_same_bits(before, after)


@pytest.mark.parametrize("changed", [{"scale": TABLE["scale"]}, {"fifteen": np.uint8(7)}])
def test_another_table_of_4_bits_is_left_alone(changed):
    model = build(NIBBLES, {**NIBBLE_TABLE, **changed}, {"i": ["B"]})
    assert fuse_for_onnxruntime(model) == NOTHING


def test_table_bytes_are_not_read():
    model = build(lookup(), TABLE, {"i": ["B"]})

    def read():
        raise AssertionError("the table was read")

    for name in ("codes", "scale", "bias"):
        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(read, value.dtype, value.shape, name=name)
    assert fused(fuse_for_onnxruntime(model)) == {"rowwise-table": 1}


@pytest.mark.parametrize("axis", [-1, 1])
def test_index_to_gather_makes_a_table_of_an_indexing(axis):
    nodes = [node("Unsqueeze", "i axis", "i1"), *lookup(ids="i1", gather="GatherND")]
    model = build(nodes, {**TABLE, "axis": np.array([axis])}, {"i": ["B"]})
    before, after, counts = run_before_and_after(model, ids())
    assert fused(counts) == {"index-to-gather": 3, "rowwise-table": 1}
    assert_same_bits(before, after)


def test_indexing_by_two_coordinates_is_left_alone():
    nodes = [node("Unsqueeze", "i axis", "i1"), node("GatherND", "scale i1", "y")]
    model = build(nodes, {**TABLE, "axis": np.array([0])}, {"i": [2]})
    assert fuse_for_onnxruntime(model) == NOTHING


def flat(x_dims, bias="b"):
    constants = {"wf": RNG.normal(size=(K, N)).astype(np.float32), "b": LINEAR["b"]}
    constants["row"] = RNG.normal(size=(5, N)).astype(np.float32)
    nodes = [node("MatMul", "x wf", "m"), node("Add", f"m {bias}", "t"), node("Relu", "t", "y")]
    return build(nodes, constants, {"x": x_dims})


def test_flat_linear():
    model = flat(["B", 5, K])
    before, after, counts = run_before_and_after(model, floats(5, K))
    assert fused(counts) == {"flat-linear": 1}
    assert ops(model) == {"Reshape": 2, "Gemm": 1, "Relu": 1}
    assert_rounds_alike(before, after)


@pytest.mark.parametrize(
    ("x_dims", "bias"), [(["B", K], "b"), (["B", "L", K], "b"), (["B", 5, K], "row")]
)
def test_linear_not_flattened(x_dims, bias):
    model = flat(x_dims, bias)
    assert fuse_for_onnxruntime(model) == NOTHING
    assert ops(model) == {"MatMul": 1, "Add": 1, "Relu": 1}


def normed(norm="LayerNormalization"):
    constants = {"g": RNG.normal(size=K).astype(np.float32), "c": LINEAR["b"][:1]}
    nodes = [node("Add", "x x2", "t"), node("Mul", "t c", "z")]
    nodes.append(node(norm, "t g", "y") if norm == "LayerNormalization" else node(norm, "t", "y"))
    return build(nodes, constants, {"x": ["B", 5, K], "x2": ["B", 5, K]}, ("y", "z"))


def test_a_sum_before_a_norm_stays_apart_from_it(tmp_path):
    model = normed()
    feeds = [{**x, "x2": np.flip(x["x"])} for x in floats(5, K)]
    before, after, counts = run_before_and_after(model, feeds)
    assert fused(counts) == {"sum-before-norm": 1}
    assert_rounds_alike(before, after)
    session(model, saved=tmp_path / "optimized.onnx")
    kinds = {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "LayerNormalization" in kinds
    assert "SkipLayerNormalization" not in kinds


def test_an_addition_without_a_norm_after_it_stays():
    model = normed("Relu")
    assert fuse_for_onnxruntime(model) == NOTHING


def test_replaced_nodes_keep_their_origin():
    nodes = [
        *lookup(out="x"),
        *quantized(),
        *gemm()[2:],
    ]
    model = build(nodes, {**LINEAR, **TABLE, "w": LINEAR["w"][:, :WIDTH]}, {"i": ["B"]})
    assert fused(fuse_for_onnxruntime(model)) == {"rowwise-table": 1, "quantized-gemm": 1}
    origins = {n.op_type: n.metadata_props.get("rankc.origin") for n in model.graph}
    assert origins["MatMulIntegerToFloat"] == "model.y"
    assert all(origins.values())


def test_fusing_twice_changes_nothing_more():
    model = build(
        [*lookup(out="x"), *gemm()], {**LINEAR, **TABLE, "w": LINEAR["w"][:, :WIDTH]}, {"i": ["B"]}
    )
    fuse_for_onnxruntime(model)
    names = [n.op_type for n in model.graph]
    assert fuse_for_onnxruntime(model) == NOTHING
    assert [n.op_type for n in model.graph] == names


def test_saved_with_external_data(tmp_path):
    constants = {**LINEAR, **TABLE, "w": LINEAR["w"][:, :WIDTH]}
    model = build([*lookup(out="x"), *gemm()], constants, {"i": ["B"]})
    ir.save(model, tmp_path / "a.onnx", external_data="a.bin", size_threshold_bytes=0)
    lazy = ir.load(tmp_path / "a.onnx")
    feeds = ids()
    before, after, _ = run_before_and_after(model, feeds)
    assert_rounds_alike(before, after)

    assert fused(fuse_for_onnxruntime(lazy)) == {"rowwise-table": 1, "quantized-gemm": 1}
    ir.save(lazy, tmp_path / "b.onnx", external_data="b.bin", size_threshold_bytes=0)
    reread = ort.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    assert_same_bits(after, [reread.run(None, feed) for feed in feeds])


class Ranker(torch.nn.Module):
    """Row-wise tables read by column and by stacked ids, then a quantized linear, as exported."""

    def __init__(self):
        super().__init__()
        for name, value in {**TABLE, **LINEAR}.items():
            self.register_buffer(name, torch.tensor(value))

    def rows(self, ids):
        codes = torch.nn.functional.embedding(ids, self.codes).float()
        scale = torch.nn.functional.embedding(ids, self.scale)
        return codes * scale + torch.nn.functional.embedding(ids, self.bias)

    def forward(self, ids):
        columns = [self.rows(ids[:, 0]), self.rows(ids[:, 1])]
        x = torch.cat([*columns, self.rows(ids[:, 1:]).mean(1)], 1)
        shape, symbolic = x.shape, torch.onnx.ops.symbolic
        q = symbolic(
            "QuantizeLinear", [x, self.xs, self.xz], dtype=torch.uint8, shape=shape, version=20
        )
        d = symbolic(
            "DequantizeLinear", [q, self.xs, self.xz], dtype=torch.float32, shape=shape, version=20
        )
        w = symbolic(
            "DequantizeLinear",
            [self.w, self.ws],
            attrs={"axis": 0},
            dtype=torch.float32,
            shape=(N, K),
            version=20,
        )
        return torch.relu(torch.nn.functional.linear(d, w, self.b))


def test_exported_model():
    example = torch.zeros(4, 3, dtype=torch.int64)
    program = torch.onnx.export(
        Ranker().eval(),
        (example,),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=["i"],
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    model = program.model
    feeds = [{"i": np.abs(feed["i"]) % ROWS} for feed in ids(3)]
    before, after, counts = run_before_and_after(model, feeds)
    assert counts["rowwise-table"] == 3
    assert counts["quantized-gemm"] + counts["quantized-matmul"] == 1
    assert "Gemm" not in ops(model)
    assert_rounds_alike(before, after)


def test_old_opset_is_an_error():
    model = build(gemm(), LINEAR, {"x": ["B", K]})
    model.graph.opset_imports[""] = 11
    with pytest.raises(ValueError, match="opset 11"):
        fuse_for_onnxruntime(model)
