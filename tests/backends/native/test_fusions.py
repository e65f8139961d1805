"""What becomes a native operator, and that it scores alike with the library and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from rankc.backends.native import library
from rankc.backends.native.fusions import fuse_natively
from rankc.backends.onnx.translate import to_onnx
from rankc.backends.onnxruntime.fusions import fuse_for_onnxruntime
from rankc.frontends.export import capture
from rankc.optimizer.analysis.sites import table_sites
from rankc.optimizer.ir import Rewriter, sweep
from rankc.optimizer.precision.table_formats import realise_table
from support import run_passes
from torch import Tensor, nn

RNG = np.random.default_rng(0)
ROWS, WIDTH = 50, 16
#: Sums in another order: 16 steps of float32, relative to the largest value.
ROUNDING = 16 * np.finfo(np.float32).eps

TRIANGLE = np.array([(i, j) for i in range(4) for j in range(i)])
CONSTANTS: dict[str, np.ndarray] = {
    "table": RNG.normal(size=(ROWS, WIDTH)).astype(np.float32),
    "other": RNG.normal(size=(ROWS, WIDTH)).astype(np.float32),
    "narrow": RNG.normal(size=(ROWS, 1)).astype(np.float32),
    "halves": RNG.normal(size=(ROWS, WIDTH)).astype(np.float16),
    "codes": RNG.integers(0, 256, (ROWS, WIDTH)).astype(np.uint8),
    "scale": RNG.uniform(0.001, 0.01, (ROWS, 1)).astype(np.float32),
    "bias": RNG.normal(size=(ROWS, 1)).astype(np.float32),
    "starts": np.array([0, 10, 20]),
    "triangle": TRIANGLE,
    "left": np.array([0, 0, 1, -1]),
    "right": np.array([1, 2, 2, 0]),
    "step": np.float32(0.05),
    "steps": np.full(52, 0.05, np.float32),
    "zero": np.uint8(90),
    "zeros": np.full(52, 90, np.uint8),
    "half": np.float32(0.5),
    "flat": np.array([-1, 3 * WIDTH]),
    "twelve4": np.array([-1, 4, 3 * WIDTH // 4]),
    "flat4": np.array([-1, 4 * WIDTH]),
    "rows3": np.array([-1, 3, WIDTH]),
    "rows4": np.array([-1, 4, WIDTH]),
    "bags": np.array([-1, 2, 3, WIDTH]),
    "c0": np.array(0),
    "c2": np.array(2),
    "v0": np.array([0]),
    "v1": np.array([1]),
    "v2": np.array([2]),
    "v3": np.array([3]),
    "last": np.array([-1]),
    "pad": np.array([[0, 0, 0]]),
}
TYPES = {
    "dense": "float[B, 4]",
    "wide": f"float[B, {WIDTH}]",
    "rest": f"float[B, {2 * WIDTH - 4}]",
    "thrice": f"float[B, {3 * WIDTH}]",
    "weights": "float[B, 3]",
    "ids": "int64[B, 3]",
    "six": "int64[B, 6]",
    "small": "int32[B, 3]",
    "one": "int64[B]",
}
ROWWISE = """
  q = Gather(codes, ids)  qf = Cast <to = 1> (q)
  s = Gather(scale, ids)  b = Gather(bias, ids)
  qs = Mul(qf, s)         rows = Add(qs, b)
"""


def dots(x: str) -> str:
    """The dot interaction of ``x``, called like it."""
    return f"""
      {x}t = Transpose <perm = [0, 2, 1]> ({x})    {x}g = MatMul({x}, {x}t)
      {x}u = Transpose <perm = [1, 2, 0]> ({x}g)   {x}p = GatherND({x}u, triangle)
      {x}dots = Transpose <perm = [1, 0]> ({x}p)
    """


def model_of(body: str, outputs: str) -> ir.Model:
    """A model of some nodes; inputs and constants are those that it names."""
    words = {word.strip("(),") for word in body.replace("(", " ").split()}
    inputs = ", ".join(f"{kind} {name}" for name, kind in TYPES.items() if name in words)
    text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, value in CONSTANTS.items():
        if name in words:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def feeds_for(model: ir.Model, batch: int) -> dict[str, Any]:
    feeds: dict[str, Any] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = (batch, *list(value.shape)[1:])
        if value.dtype == ir.DataType.FLOAT:
            feeds[value.name] = RNG.normal(size=shape).astype(np.float32)
        else:
            feeds[value.name] = RNG.integers(0, 30, shape).astype(value.dtype.numpy())
    return feeds


def run(model: ir.Model, feeds: dict[str, Any], native: bool) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if native:
        options.register_custom_ops_library(str(library().path))
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feeds)
    return found


def calls(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain == "rankc"]


def kinds(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph if node.op_type != "Constant"}


def assert_same(before: list[Any], after: list[Any]) -> None:
    for old, new in zip(before, after, strict=True):
        assert new.shape == old.shape
        assert new.dtype == old.dtype
        if old.dtype == np.uint8:
            # One rounding may fall on the other side of a half.
            assert np.abs(old.astype(int) - new).max(initial=0) <= 1
            assert (old != new).mean() < 0.01
        else:
            limit = ROUNDING * np.abs(old).max(initial=0.0)
            assert np.abs(old - new).max(initial=0.0) <= limit


FORMS: dict[str, tuple[str, str, list[str]]] = {
    "rows-beside-dense": (
        "rows = Gather(table, ids) f = Reshape(rows, flat) y = Concat <axis = 1> (dense, f)",
        "float[B, 52] y",
        ["Features"],
    ),
    "rows": ("y = Gather(table, ids)", f"float[B, 3, {WIDTH}] y", ["Features"]),
    "rows-of-codes": (f"{ROWWISE} y = Identity(rows)", f"float[B, 3, {WIDTH}] y", ["Features"]),
    "a-sum": (
        "rows = Gather(table, ids) y = ReduceSum <keepdims = 0> (rows, v1)",
        f"float[B, {WIDTH}] y",
        ["Features"],
    ),
    "a-mean-that-keeps-its-dimension": (
        "rows = Gather(table, small) y = ReduceMean <keepdims = 1> (rows, v1)",
        f"float[B, 1, {WIDTH}] y",
        ["Features"],
    ),
    "sums-of-codes": (
        f"{ROWWISE} y = ReduceSum <keepdims = 0> (rows, v1)",
        f"float[B, {WIDTH}] y",
        ["Features"],
    ),
    "two-bags-of-three": (
        "rows = Gather(table, six) r = Reshape(rows, bags) y = ReduceSum <keepdims = 0> (r, v2)",
        f"float[B, 2, {WIDTH}] y",
        ["Features"],
    ),
    "bags-of-slices": (
        """shifted = Add(ids, starts) rows = Gather(table, shifted)
        a = Slice(rows, v0, v2, v1, v1) b = Slice(rows, v2, v3, v1)
        s = ReduceSum <keepdims = 0> (a, v1) t = ReduceSum <keepdims = 0> (b, v1)
        y = Concat <axis = -1> (t, dense, s)""",
        f"float[B, {2 * WIDTH + 4}] y",
        ["Features"],
    ),
    "weighted": (
        """rows = Gather(table, ids) w = Unsqueeze(weights, v2) r = Mul(w, rows)
        s = ReduceSum <keepdims = 0> (r, v1) y = Mul(s, half)""",
        f"float[B, {WIDTH}] y",
        ["Features"],
    ),
    "a-masked-mean": (
        """rows = Gather(table, ids) w = Unsqueeze(weights, v2) r = Mul(rows, w)
        s = ReduceSum <keepdims = 0> (r, v1) c = ReduceL1 <keepdims = 1> (weights, v1)
        d = Div(s, c) y = Concat <axis = 1> (d, dense)""",
        f"float[B, {WIDTH + 4}] y",
        ["Features"],
    ),
    "weights-of-width-one": (
        "rows = Gather(narrow, ids) r = Squeeze(rows, v2) y = ReduceSum <keepdims = 1> (r, v1)",
        "float[B, 1] y",
        ["Features"],
    ),
    "ids-that-are-selected-and-joined": (
        """a = Gather <axis = 1> (ids, c2) b = Unsqueeze(a, v1) c = Slice(six, last, v2, v1)
        d = Slice(six, v0, v2, v1) e = Concat <axis = 1> (b, d) rows = Gather(table, e)
        f = Reshape(rows, flat) y = Concat <axis = 1> (f, wide)""",
        f"float[B, {4 * WIDTH}] y",
        ["Features"],
    ),
    "slices-of-halves": (
        """rows = Gather(halves, ids) a = Slice(rows, v0, v2, v1, v1) b = Slice(rows, v2, v3, v1)
        p = Cast <to = 1> (a) q = Cast <to = 1> (b) s = ReduceSum <keepdims = 0> (p, v1)
        t = Squeeze(q, v1) y = Concat <axis = 1> (s, dense, t)""",
        f"float[B, {2 * WIDTH + 4}] y",
        ["Features"],
    ),
    "halves-used-whole-are-made-once": (
        """rows = Gather(halves, ids) p = Cast <to = 1> (rows) t = Tanh(p) f = Reshape(p, flat)
        y = Concat <axis = 1> (dense, f)""",
        f"float[B, 3, {WIDTH}] t, float[B, 52] y",
        ["Features"],
    ),
    "dots-of-rows": (
        f"""rows = Gather(table, ids) w = Unsqueeze(wide, v1)
        x = Concat <axis = 1> (w, rows) {dots("x")} y = Concat <axis = 1> (wide, xdots)""",
        f"float[B, {WIDTH + 6}] y",
        ["Features"],
    ),
    "dots-of-a-flat-concatenation-as-codes": (
        f"""{ROWWISE} f = Reshape(rows, flat) c = Concat <axis = 1> (wide, f)
        x = Reshape(c, rows4) {dots("x")} z = Concat <axis = 1> (wide, xdots)
        y = QuantizeLinear(z, step, zero)""",
        f"uint8[B, {WIDTH + 6}] y",
        ["FeatureCodes"],
    ),
    "a-row-to-codes": (
        f"{ROWWISE} f = Reshape(rows, flat) c = Concat <axis = 1> (dense, f) "
        "y = QuantizeLinear(c, step, zero)",
        "uint8[B, 52] y",
        ["FeatureCodes"],
    ),
    "what-also-something-else-uses": (
        f"""{ROWWISE} f = Reshape(rows, flat) y = Concat <axis = 1> (dense, f)
        z = QuantizeLinear(y, step, zero)""",
        "float[B, 52] y, uint8[B, 52] z",
        ["Features"],
    ),
    "scales-per-column-stay": (
        f"""{ROWWISE} f = Reshape(rows, flat) c = Concat <axis = 1> (dense, f)
        y = QuantizeLinear <axis = 1> (c, steps, zeros)""",
        "uint8[B, 52] y",
        ["Features"],
    ),
    "rows-used-whole-are-made-once": (
        f"""{ROWWISE} t = Tanh(rows) f = Reshape(rows, flat) y = Concat <axis = 1> (dense, f)
        z = ReduceSum <keepdims = 0> (rows, v1)""",
        f"float[B, 3, {WIDTH}] t, float[B, 52] y, float[B, {WIDTH}] z",
        ["Features"],
    ),
    "one-operator-inside-another": (
        f"""{ROWWISE.replace("ids", "six")} a = Slice(rows, v0, v1, v1) o = Squeeze(a, v1)
        t = Tanh(o) f = Flatten(rows) y = Concat <axis = 1> (dense, f)""",
        f"float[B, {WIDTH}] t, float[B, {6 * WIDTH + 4}] y",
        ["Features", "Features"],
    ),
    "products-of-pairs-of-rows": (
        """rows = Gather(table, ids) a = Gather <axis = 1> (rows, left)
        b = Gather <axis = 1> (rows, right) y = Mul(a, b)""",
        f"float[B, 4, {WIDTH}] y",
        ["Features"],
    ),
    "products-of-rows-and-dense-values-behind-these": (
        """rows = Gather(table, ids) w = Reshape(thrice, rows3) a = Gather <axis = 1> (w, left)
        b = Gather <axis = 1> (rows, right) p = Mul(a, b) f = Reshape(p, flat4)
        y = Concat <axis = 1> (thrice, f)""",
        f"float[B, {7 * WIDTH}] y",
        ["Features"],
    ),
    "products-of-pairs-as-codes": (
        f"""{ROWWISE} l = Gather <axis = 1> (rows, left) r = Gather <axis = 1> (rows, right)
        p = Mul(l, r) y = QuantizeLinear(p, step, zero)""",
        f"uint8[B, 4, {WIDTH}] y",
        ["FeatureCodes"],
    ),
    "rows-that-are-also-used-apart-are-made-once": (
        """rows = Gather(table, ids) a = Gather <axis = 1> (rows, left)
        b = Gather <axis = 1> (rows, right) y = Mul(a, b) t = Tanh(rows) u = Tanh(a)""",
        f"float[B, 4, {WIDTH}] y, float[B, 3, {WIDTH}] t, float[B, 4, {WIDTH}] u",
        ["Features", "Features"],
    ),
    "two-interactions": (
        f"""a = Gather(table, ids) b = Gather(other, ids) w = Unsqueeze(wide, v1)
        x = Concat <axis = 1> (w, a) z = Concat <axis = 1> (b, w) {dots("x")} {dots("z")}
        y = Concat <axis = 1> (xdots, zdots)""",
        "float[B, 12] y",
        ["Features", "Features"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 5, 130])
def test_it_scores_alike_with_the_library_and_without(form: str, batch: int) -> None:
    body, outputs, expected = FORMS[form]
    model = model_of(body, outputs)
    feeds = feeds_for(model, batch)
    before = run(model, feeds, native=False)
    fuse_for_onnxruntime(model)
    counts = fuse_natively(model)
    assert calls(model) == expected
    assert counts == {"native-features": len(expected)}
    assert_same(before, run(model, feeds, native=False))
    if library().path is not None:
        assert_same(before, run(model, feeds, native=True))


ALONE: dict[str, tuple[str, str]] = {
    "a-row-of-floats": ("y = Gather(table, one)", f"float[B, {WIDTH}] y"),
    "a-row-of-halves": ("y = Gather(halves, ids)", f"float16[B, 3, {WIDTH}] y"),
    "columns-of-a-dense-value": ("y = Gather <axis = 1> (dense, c2)", "float[B] y"),
    "dense-values": ("y = Concat <axis = 1> (dense, wide)", f"float[B, {WIDTH + 4}] y"),
    "batches-behind-one-another": (
        "rows = Gather(table, one) y = Concat <axis = 0> (rows, wide)",
        f"float[C, {WIDTH}] y",
    ),
    "rows-of-an-input": ("y = Gather(wide, one)", f"float[B, {WIDTH}] y"),
    "constant-ids": ("y = Gather(table, pad)", f"float[1, 3, {WIDTH}] y"),
    "ids-computed-from-others-rows-mixed": (
        "t = Transpose <perm = [1, 0]> (ids) y = Gather(table, t)",
        f"float[3, B, {WIDTH}] y",
    ),
}


@pytest.mark.parametrize("form", ALONE)
def test_what_is_left_alone(form: str) -> None:
    model = model_of(*ALONE[form])
    before = kinds(model)
    assert fuse_natively(model) == {"native-features": 0}
    assert kinds(model) == before
    assert not model.functions
    assert "rankc" not in model.opset_imports


NOT_ABSORBED: dict[str, tuple[str, str, str]] = {
    "a-sum-in-halves": (
        """a = Gather(halves, ids) s = ReduceSum <keepdims = 0> (a, v1) c = Cast <to = 1> (s)
        y = Concat <axis = 1> (c, dense)""",
        f"float[B, {WIDTH + 4}] y",
        "ReduceSum",
    ),
    "a-bag-over-two-inputs": (
        """a = Gather <axis = 1> (ids, c0) b = Gather <axis = 1> (six, c0)
        c = Unsqueeze(a, v1) d = Unsqueeze(b, v1) e = Concat <axis = 1> (c, d)
        rows = Gather(table, e) s = ReduceSum <keepdims = 0> (rows, v1)
        y = Concat <axis = 1> (s, wide)""",
        f"float[B, {2 * WIDTH}] y",
        "ReduceSum",
    ),
    "a-bag-over-two-tables": (
        """a = Gather(table, ids) b = Gather(other, ids) c = Concat <axis = 1> (a, b)
        y = ReduceSum <keepdims = 0> (c, v1)""",
        f"float[B, {WIDTH}] y",
        "ReduceSum",
    ),
    "a-sum-over-the-width": (
        "rows = Gather(table, ids) y = ReduceSum <keepdims = 0> (rows, v2)",
        "float[B, 3] y",
        "ReduceSum",
    ),
    "a-sum-over-the-batch": (
        "rows = Gather(table, ids) y = ReduceSum <keepdims = 0> (rows, v0)",
        f"float[3, {WIDTH}] y",
        "ReduceSum",
    ),
    "a-sum-over-everything": (
        "rows = Gather(table, ids) y = ReduceSum <keepdims = 0> (rows)",
        "float y",
        "ReduceSum",
    ),
    "products-across-the-borders-of-vectors": (
        """x = Concat <axis = 1> (dense, wide, rest) r = Reshape(x, rows3)
        a = Gather <axis = 1> (r, v1) b = Gather <axis = 1> (r, v1) y = Mul(a, b)""",
        f"float[B, 1, {WIDTH}] y",
        "Mul",
    ),
    "dots-across-the-borders-of-vectors": (
        f"""rows = Gather(table, ids) x = Reshape(rows, twelve4) {dots("x")}
        y = Concat <axis = 1> (wide, xdots)""",
        f"float[B, {WIDTH + 6}] y",
        "MatMul",
    ),
    "part-of-a-row": (
        """a = Gather(table, ids) f = Reshape(a, flat) s = Slice(f, v1, v3, v1)
        y = Concat <axis = 1> (s, dense)""",
        "float[B, 6] y",
        "Concat",
    ),
    "weights-per-column": (
        """a = Gather(table, ids) w = Unsqueeze(wide, v1) m = Mul(a, w)
        y = ReduceSum <keepdims = 0> (m, v1)""",
        f"float[B, {WIDTH}] y",
        "ReduceSum",
    ),
}


@pytest.mark.parametrize("form", NOT_ABSORBED)
def test_what_the_kernel_does_not_do_stays_outside(form: str) -> None:
    body, outputs, outside = NOT_ABSORBED[form]
    model = model_of(body, outputs)
    feeds = feeds_for(model, 5)
    before = run(model, feeds, native=False)
    fuse_natively(model)
    assert outside in kinds(model)
    assert_same(before, run(model, feeds, native=library().path is not None))


class Bag(nn.Module):
    """One bag a row, cut from a list of ids by offsets, beside a dense feature."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(50, 8, **options)

    def forward(self, dense: Tensor, ids: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        if self.bag.mode == "mean":
            return torch.cat([dense, self.bag(ids, offsets)], 1)
        return torch.cat([dense, self.bag(ids, offsets, per_sample_weights=weights)], 1)


LENGTHS = torch.tensor([2, 0, 3, 1, 0, 4])
BOUNDS = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])


@pytest.mark.parametrize(
    ("mode", "last", "padding"),
    [("sum", False, None), ("sum", True, 3), ("mean", False, 3), ("mean", True, None)],
)
def test_bags_by_offsets(mode: str, last: bool, padding: int | None) -> None:
    module = Bag(mode=mode, include_last_offset=last, padding_idx=padding).eval()
    ids = torch.arange(10) * 7 % 50
    inputs = torch.rand(6, 4), ids, torch.rand(10), BOUNDS if last else BOUNDS[:-1]
    lowered = run_passes(capture(module, inputs), "canonicalize,lower-embedding-bag").program
    model = to_onnx(lowered)
    fuse_for_onnxruntime(model)
    assert fuse_natively(model) == {"native-features": 1}
    assert calls(model) == ["Features"]
    with torch.no_grad():
        want = module(*inputs).numpy()
    names = [value.name for value in model.graph.inputs]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    for native in (False, library().path is not None):
        assert_same([want], run(model, feeds, native))


class Gated(Bag):
    """The bag times a number of its row, of which there are as many as rows and not as ids."""

    def forward(self, dense: Tensor, ids: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        return self.bag(ids, offsets) * dense[:, :1]  # type: ignore[no-any-return]


def test_a_factor_of_a_bag_by_offsets_is_no_weight_of_its_ids() -> None:
    module = Gated(mode="sum").eval()
    inputs = torch.rand(6, 4), torch.arange(10) * 7 % 50, torch.rand(10), BOUNDS[:-1]
    lowered = run_passes(capture(module, inputs), "canonicalize,lower-embedding-bag").program
    model = to_onnx(lowered)
    fuse_for_onnxruntime(model)
    fuse_natively(model)
    assert "Mul" in kinds(model)
    names = [value.name for value in model.graph.inputs]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    with torch.no_grad():
        want = module(*inputs).numpy()
    assert_same([want], run(model, feeds, library().path is not None))


class History(nn.Module):
    """A row and a masked mean of rows of one table, beside dense features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(50, 6)

    def forward(self, dense: Tensor, item: Tensor, history: Tensor) -> Tensor:
        mask = (history != 0).unsqueeze(-1).float()
        pooled = (self.items(history) * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return torch.cat([dense, self.items(item), pooled], 1)


@pytest.mark.parametrize("number_format", ["fp32", "fp16", "int8", "int4"])
def test_tables_in_every_format(number_format: str) -> None:
    inputs = torch.rand(7, 4), torch.arange(7), torch.arange(35).reshape(7, 5) % 11
    program = run_passes(capture(History().eval(), inputs), "canonicalize").program
    for lookups in table_sites(program).values():
        if number_format != "fp32":
            realise_table(Rewriter(program, "test"), lookups, number_format)
    sweep(program)
    want = program.run(dict(zip(program.signature.names, inputs, strict=True)))
    model = to_onnx(program)
    fuse_for_onnxruntime(model)
    assert fuse_natively(model) == {"native-features": 1}
    names = [value.name for value in model.graph.inputs]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    for native in (False, library().path is not None):
        assert_same([one.numpy() for one in want.values()], run(model, feeds, native))


def test_the_function_holds_what_was_there() -> None:
    body, outputs, _ = FORMS["a-row-to-codes"]
    model = model_of(body, outputs)
    for node in model.graph:
        node.metadata_props["rankc.origin"] = f"model.{node.outputs[0].name}"
    fuse_for_onnxruntime(model)
    fuse_natively(model)
    assert kinds(model) == {"FeatureCodes"}
    (call,) = (node for node in model.graph if node.domain == "rankc")
    assert call.metadata_props == {"rankc.origin": "model.y"}
    (function,) = model.functions.values()
    assert {"Gather", "DequantizeLinear", "Concat", "QuantizeLinear"} <= {
        node.op_type for node in function
    }
    onnx.checker.check_model(ir.to_proto(model))


def test_equal_models_are_equal_bytes() -> None:
    models = [model_of(*FORMS["dots-of-a-flat-concatenation-as-codes"][:2]) for _ in range(2)]
    for model in models:
        fuse_for_onnxruntime(model)
        fuse_natively(model)
    first, second = (ir.to_proto(model).SerializeToString() for model in models)
    assert first == second
