"""Rewrites an exported ONNX model into the operators ONNX Runtime's CPU provider runs fastest.

The exporter writes a quantized linear as ``QuantizeLinear -> DequantizeLinear -> Gemm`` and a
row-wise quantized table as ``Gather -> Cast -> Mul -> Add``. ONNX Runtime recognises the first only
in part and the second not at all. Every rewrite keeps the Q/DQ meaning up to float32 rounding. Two
forms that look faster were measured and left out:

* ``QGemm`` with an int32 bias, uint8 to uint8: 273 us against 271 for three 512x512 layers at batch
  64 (2101 against 2119 at 512), and by rounding the bias to steps of the sums, and those of the
  next layers in turn, it changes one output in nine.
* ``GatherBlockQuantized``: 191 us against 79 for ``Gather`` and ``DequantizeLinear``, both without
  a bias (26 stacked tables of width 64, batch 64).

Tables are not stacked here: that would copy their bytes. It belongs to the torch graph, where they
are parameters (it takes 26 of them from 206 us to 116).

Times are CPU microseconds of one thread of an AVX512-VNNI EPYC, ONNX Runtime 1.32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

_log = logging.getLogger(__name__)

# The rewriter's builder makes an operator of any name, so its methods have no types.
_Op: TypeAlias = Any

_MICROSOFT = "com.microsoft"
_MAX_INNER = (2**31 - 1) // (255 * 128)  # uint8 times int8, summed in int32


class _Miss(Exception):  # noqa: N818
    """Why a matched node is left alone."""


def fuse_for_onnxruntime(model: ir.Model) -> dict[str, int]:
    """Rewrites a model in place for ONNX Runtime's CPU provider.

    Run it last: the result holds ``com.microsoft`` operators, which other runtimes don't read.
    Nothing big is read: weights are transposed, and the scales and biases of tables joined, only
    when the model is saved, and the codes of tables never.

    Args:
        model: As exported: opset 13 or newer, quantization in Q/DQ form, shapes inferred.

    Returns:
        How many rewrites were done, by kind: ``shared-scalars``, ``index-to-gather``,
        ``rowwise-table``, ``rowwise-table4``, ``quantized-gemm``, ``quantized-matmul``,
        ``quantized-bias`` (added to one of the quantized-matmul), ``flat-linear``,
        ``sum-before-norm``.

    Raises:
        ValueError: The model's opset has no per-axis dequantization.
    """
    opset = model.opset_imports.get("", 0)
    if opset < 13:
        raise ValueError(f"the model has opset {opset}; fusing for ONNX Runtime needs 13 or newer")
    counts = {"shared-scalars": _share_scalars(model)}
    for kind, rule, commute in _RULES:
        # One rule at a time, because some match what the one before them wrote.
        counts[kind] = RewriteRuleSet([rule], commute=commute).apply_to_model(model)
    RemoveUnusedNodesPass()(model)
    return counts


def _share_scalars(model: ir.Model) -> int:
    """Makes equal scalar initializers one, and returns how many that removed.

    ONNX Runtime merges two QuantizeLinear of one value only if they name the same scale, and the
    exporter writes a scale for each. One spared is 38 us at 512x512.
    """
    before = len(model.graph.initializers)
    DeduplicateInitializersPass(size_limit=1)(model)
    return before - len(model.graph.initializers)


def _index_pattern(op: _Op, table: Any, ids: Any, axes: Any) -> Any:
    return op.GatherND(table, op.Unsqueeze(ids, axes), _outputs=["rows"])


def _index_to_gather(
    op: _Op, table: ir.Value, ids: ir.Value, axes: ir.Value, rows: ir.Value
) -> object:
    """Replaces ``GatherND(table, Unsqueeze(ids, -1))`` by ``Gather(table, ids)``.

    ``table[ids]`` is exported as the first, ``F.embedding`` as the second. 177 us against 149 for
    512 x 26 rows of width 64, and only a Gather can be part of a row-wise table.
    """
    node = _producer(rows)
    axis = _constant(axes, node, "the unsqueezed axis")
    rank = -1 if ids.shape is None else ids.shape.rank()
    _require(axis.size == 1 and axis.numpy().item() in (-1, rank), "the index has more coordinates")
    _require(node.attributes.get_int("batch_dims", 0) == 0, "the lookup is batched")
    return op.Gather(table, ids, axis=0)


def _table_pattern(op: _Op, codes: Any, scale: Any, bias: Any, ids: Any) -> Any:
    rows = op.Cast(op.Gather(codes, ids, _outputs=["code_rows"]), to=ir.DataType.FLOAT)
    scaled = op.Mul(rows, op.Gather(scale, ids, _outputs=["scale_rows"]))
    return op.Add(scaled, op.Gather(bias, ids, _outputs=["bias_rows"]))


def _rowwise_table(
    op: _Op, codes: ir.Value, scale: ir.Value, bias: ir.Value, ids: ir.Value, **rows: ir.Value
) -> object:
    """Replaces ``Cast(codes[ids]) * scale[ids] + bias[ids]`` by a dequantization with row scales.

    DequantizeLinear takes the gathered scales as its channel scales, which spares one pass over
    the rows; scale and bias are read from one ``[R, 2]`` table, which spares a cache miss a row.
    26 tables of width 64: 249 us to 206 at batch 64, 2992 to 2263 at 512. Equal bit for bit.

    A table with scales but no bias is left alone, though it would gain as much: ONNX Runtime 1.32
    moves a DequantizeLinear over what follows it and takes its scale for a scalar, so that a dot
    interaction of such rows comes out wrong without an error. The Add here shields against that.
    """
    gathers = [_producer(value) for value in rows.values()]
    by_row = all(gather.attributes.get_int("axis", 0) == 0 for gather in gathers)
    _require(by_row, "a lookup is not by row")
    table = _constant(codes, gathers[0], "the codes")
    scales = _constant(scale, gathers[0], "the row scale")
    biases = _constant(bias, gathers[0], "the row bias")
    _require(table.dtype in (ir.DataType.UINT8, ir.DataType.INT8), f"the codes are {table.dtype}")
    _require(len(table.shape) == 2, "the table is not a matrix")
    count, width = table.shape.numpy()
    for column in (scales, biases):
        _require(column.dtype == ir.DataType.FLOAT, "a row parameter is not float32")
        _require(column.shape.numpy() == (count, 1), "a row parameter is not one value per row")
    sizes = _reshape_sizes(() if ids.shape is None else ids.shape)

    flat = ids if len(sizes) == 1 else op.Reshape(ids, op.Constant(value_ints=[-1]))

    def join() -> npt.NDArray[Any]:
        return np.concatenate([scales.numpy(), biases.numpy()], axis=1)

    name = f"{scale.name}|{bias.name}"
    columns = _derived(op, scale, name, join, ir.DataType.FLOAT, (count, 2))
    split = op.Constant(value_ints=[1, 1])
    row_scale, row_bias = op.Split(op.Gather(columns, flat, axis=0), split, axis=1, _outputs=2)
    row_scale = op.Reshape(row_scale, op.Constant(value_ints=[-1]))
    scaled = op.DequantizeLinear(op.Gather(codes, flat, axis=0), row_scale, axis=0)
    result = op.Add(scaled, row_bias)
    if len(sizes) > 1:
        result = op.Reshape(result, op.Constant(value_ints=[*sizes, width]))
    return result


def _table4_pattern(
    op: _Op, codes: Any, scale: Any, bias: Any, ids: Any, ends: Any, shape: Any
) -> Any:
    pairs = op.Gather(codes, ids)
    low, high = op.BitwiseAnd(pairs, 15), op.BitShift(pairs, 4)
    halves = op.Concat(op.Unsqueeze(low, ends), op.Unsqueeze(high, ends))
    values = op.Cast(op.Reshape(halves, shape), to=ir.DataType.FLOAT, _outputs=["values"])
    step = op.Cast(op.Gather(scale, ids, _outputs=["scale_rows"]), to=ir.DataType.FLOAT)
    least = op.Cast(op.Gather(bias, ids, _outputs=["bias_rows"]), to=ir.DataType.FLOAT)
    return op.Add(op.Mul(values, step), least)


def _rowwise_table4(
    op: _Op, scale: ir.Value, bias: ir.Value, ids: ir.Value, values: ir.Value, **rows: ir.Value
) -> object:
    """Replaces the scales and biases of a table of 4-bit rows by one ``[R, 2]`` table of both.

    It spares a cache miss a row, and two passes over the scales.
    """
    gather = _producer(rows["scale_rows"])
    scales = _constant(scale, gather, "the row scale")
    biases = _constant(bias, gather, "the row bias")
    count = scales.shape.numpy()[0]
    for column in (scales, biases):
        _require(column.dtype == ir.DataType.FLOAT16, "a row parameter is not float16")
        _require(column.shape.numpy() == (count, 1), "a row parameter is not one value per row")

    def join() -> npt.NDArray[Any]:
        return np.concatenate([scales.numpy(), biases.numpy()], axis=1)

    name = f"{scale.name}|{bias.name}"
    columns = _derived(op, scale, name, join, ir.DataType.FLOAT16, (count, 2))
    both = op.Cast(op.Gather(columns, ids, axis=0), to=ir.DataType.FLOAT)
    step, least = op.Split(both, op.Constant(value_ints=[1, 1]), axis=-1, _outputs=2)
    return op.Add(op.Mul(values, step), least)


def _gemm_pattern(op: _Op, x: Any, weight: Any) -> Any:
    return op.Gemm(x, weight, _allow_other_inputs=True, _outputs=["product"])


def _matmul_pattern(op: _Op, x: Any, weight: Any) -> Any:
    return op.MatMul(x, weight, _outputs=["product"])


def _quantized_linear(op: _Op, x: ir.Value, weight: ir.Value, product: ir.Value) -> object:
    """Replaces a Gemm or MatMul of dequantized inputs by ``MatMulIntegerToFloat``.

    Three 512x512 layers at batch 64: 271 us, against 550 for what ONNX Runtime makes of the Q/DQ
    form and 895 in float32. The integer sums are exact, so the result differs from the Q/DQ form
    by float32 rounding alone; ONNX Runtime's own fusion also rounds the bias.

    int8 activations stay as they are: the int8 x int8 kernel takes 3230 us for the same layers.
    """
    node = _producer(product)
    attributes = node.attributes
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Gemm":
        factors = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
        plain = factors == (1.0, 1.0) and attributes.get_int("transA", 0) == 0
        _require(plain, "the product is scaled or its input transposed")
    else:
        _require(x.shape is not None and x.shape.rank() >= 2, "the input may be a vector")
    quantized = _read_activation(x, node)
    matrix = _read_weight(weight, attributes.get_int("transB", 0) == 1, node)
    _require(bias is None or _is_float_vector(bias, matrix.width), "the bias is not per output")

    codes = _transposed(op, matrix.codes) if matrix.transposed else matrix.codes
    inputs = [quantized.codes, codes, quantized.scale, matrix.scale, quantized.zero_point]
    inputs += [] if bias is None else [None, bias]
    return op.MatMulIntegerToFloat(*inputs, _domain=_MICROSOFT)


def _bias_pattern(op: _Op, bias: Any) -> Any:
    product = op.MatMulIntegerToFloat(
        _allow_other_inputs=True, _domain=_MICROSOFT, _outputs=["product"]
    )
    return op.Add(product, bias)


def _quantized_bias(op: _Op, bias: ir.Value, product: ir.Value) -> object:
    """Replaces ``MatMulIntegerToFloat + bias`` by the same operator with a bias input."""
    inputs = _producer(product).inputs
    shape = None if inputs[1] is None else inputs[1].shape
    per_output = shape is not None and _is_float_vector(bias, shape[1])
    _require(per_output, "what is added is not one value per output")
    _require(len(inputs) < 7, "the product has a bias already")
    padded = [*inputs, None, None][:6]  # trailing absent inputs are not stored
    return op.MatMulIntegerToFloat(*padded, bias, _domain=_MICROSOFT)


def _linear_pattern(op: _Op, x: Any, weight: Any, bias: Any) -> Any:
    return op.Add(op.MatMul(x, weight, _outputs=["product"]), bias)


def _flat_linear(
    op: _Op, x: ir.Value, weight: ir.Value, bias: ir.Value, product: ir.Value
) -> object:
    """Replaces a float linear over ``[B, ..., K]`` by a Gemm over ``[B * ..., K]``.

    ONNX Runtime joins MatMul and Add only in two dimensions, and adds the bias of the others in a
    pass of its own: 26 vectors of width 64 at batch 512 take 1622 us, flat 1303.
    """
    matrix = _constant(weight, _producer(product), "the weight")
    _require(matrix.dtype == ir.DataType.FLOAT, f"the weight is {matrix.dtype}")
    _require(len(matrix.shape) == 2, "the weight is not a matrix")
    inner, outer = matrix.shape.numpy()
    _require(_is_float_vector(bias, outer), "what is added is not one value per output")
    _require(x.shape is not None and x.shape.rank() > 2, "the input is flat already")
    sizes = _reshape_sizes(list(x.shape or ())[:-1])

    flat = op.Reshape(x, op.Constant(value_ints=[-1, inner]))
    return op.Reshape(op.Gemm(flat, weight, bias), op.Constant(value_ints=[*sizes, outer]))


def _sum_pattern(op: _Op, x: Any, y: Any) -> Any:
    return op.Add(x, y, _outputs=["total"])


def _sum_before_norm(op: _Op, x: ir.Value, y: ir.Value, total: ir.Value) -> object:
    """Replaces an Add whose result is layer-normed by a Sum, which is the same but isn't fused.

    ONNX Runtime makes ``SkipLayerNormalization`` of Add and LayerNormalization, whose kernel sums
    a row number by number: 512 x 25 rows of width 64 take 4859 us, Sum and LayerNormalization
    1047; 512 x 32 of width 160 15634 and 3167; at batch 1 16 and 9. Equal bit for bit to the Add.
    """
    norms = [node for node in total.consumers() if node.op_type == "LayerNormalization"]
    _require(bool(norms), "the sum isn't layer-normed")
    return op.Sum(x, y)


@dataclass(frozen=True)
class _Activation:
    """Codes uint8, one scale, and a zero point (``None`` means 0)."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None


@dataclass(frozen=True)
class _Weight:
    """Codes int8 ``[K, width]``, or ``[width, K]`` if transposed; one scale, or one per output."""

    codes: ir.Value
    scale: ir.Value
    transposed: bool
    width: int


def _read_activation(x: ir.Value, user: ir.Node) -> _Activation:
    _, codes, scale, zero_point = _dequantize(x, "the activation")
    scales = _constant(scale, user, "the activation's scale")
    _require(scales.dtype == ir.DataType.FLOAT, "the activation's scale is not float32")
    _require(scales.size == 1, "the activation has many scales")
    dtype = codes.dtype
    if zero_point is not None:
        zero = _constant(zero_point, user, "the activation's zero point")
        _require(zero.size == 1, "the activation has many zero points")
        dtype = zero.dtype
    _require(dtype == ir.DataType.UINT8, f"the activation is {dtype}, not uint8")
    return _Activation(codes, scale, zero_point)


def _read_weight(weight: ir.Value, transposed: bool, user: ir.Node) -> _Weight:
    source: ir.Value | None = weight
    transpose = weight.producer()
    if transpose is not None and transpose.op_type == "Transpose":
        perm = tuple(transpose.attributes.get_ints("perm", (1, 0)))
        _require(perm == (1, 0), "the weight is not a transposed matrix")
        source, transposed = transpose.inputs[0], not transposed
    dequantize, codes, scale, zero_point = _dequantize(source, "the weight")
    matrix = _constant(codes, user, "the weight")
    scales = _constant(scale, user, "the weight's scale")
    _require(matrix.dtype == ir.DataType.INT8, f"the weight is {matrix.dtype}, not int8")
    _require(len(matrix.shape) == 2, "the weight is not a matrix")
    outputs_axis = 0 if transposed else 1
    width, inner = (matrix.shape.numpy()[axis] for axis in (outputs_axis, 1 - outputs_axis))
    _require(inner <= _MAX_INNER, "the sums could overflow int32")
    _require(scales.dtype == ir.DataType.FLOAT, "the weight's scale is not float32")
    if scales.size != 1:
        axis = dequantize.attributes.get_int("axis", 1) % 2
        per_output = scales.shape.numpy() == (width,) and axis == outputs_axis
        _require(per_output, "the weight's scales are not one per output")
    if zero_point is not None:
        zeros = _constant(zero_point, user, "the weight's zero point").numpy()
        _require(not zeros.any(), "the weight's zero point is not 0")
    return _Weight(codes, scale, transposed, width)


def _dequantize(
    value: ir.Value | None, what: str
) -> tuple[ir.Node, ir.Value, ir.Value, ir.Value | None]:
    """Returns the DequantizeLinear that makes a value, its codes, scale and zero point."""
    node = None if value is None else value.producer()
    if node is None or (node.domain, node.op_type) != ("", "DequantizeLinear"):
        raise _Miss(f"{what} is not quantized")
    dtype = node.attributes.get_int("output_dtype", int(ir.DataType.FLOAT))
    _require(dtype in (ir.DataType.UNDEFINED, ir.DataType.FLOAT), f"{what} is not float32")
    _require(not node.attributes.get_int("block_size", 0), f"{what} is quantized by block")
    codes, scale, zero_point = [*node.inputs, None][:3]
    assert codes is not None
    assert scale is not None
    return node, codes, scale, zero_point


def _constant(value: ir.Value, user: ir.Node, what: str) -> ir.TensorProtocol:
    """Returns the tensor of a value that no run can change and that is in the user's own graph."""
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.graph is not user.graph:
        raise _Miss(f"{what} is not a constant of the graph")
    return tensor


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Miss(otherwise)


def _is_float_vector(value: ir.Value, length: object) -> bool:
    shape = value.shape
    return value.dtype == ir.DataType.FLOAT and shape is not None and list(shape) == [length]


def _reshape_sizes(dimensions: Iterable[object]) -> list[int]:
    """Returns dimensions as Reshape takes them, which may leave one of them open."""
    sizes = [size if isinstance(size, int) else -1 for size in dimensions]
    _require(bool(sizes) and sizes.count(-1) <= 1 and 0 not in sizes, "the shape is not known")
    return sizes


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None, "a matched output has a producer"
    return node


def _transposed(op: _Op, weight: ir.Value) -> ir.Value:
    tensor = weight.const_value
    assert tensor is not None
    rows, columns = tensor.shape.numpy()

    def transpose() -> npt.NDArray[Any]:
        return np.ascontiguousarray(tensor.numpy().T)

    name = f"{weight.name}|transposed"
    return _derived(op, weight, name, transpose, tensor.dtype, (columns, rows))


def _derived(
    op: _Op,
    source: ir.Value,
    name: str,
    compute: Callable[[], npt.NDArray[Any]],
    dtype: ir.DataType,
    shape: tuple[int, ...],
) -> ir.Value:
    """Returns the initializer of that name, made at its first use and computed at saving."""
    graph = source.graph
    if isinstance(graph, ir.Graph) and name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.LazyTensor(lambda: ir.Tensor(compute()), dtype, ir.Shape(shape), name=name)
    made: ir.Value = op.initializer(tensor, name=name)
    return made


def _rule(
    pattern: Callable[..., Any], rewrite: Callable[..., object], *, shared: bool = False
) -> RewriteRule:
    """Makes a rewriter rule of a pattern and a rewrite that may raise `_Miss`.

    With `shared`, the matched nodes may have users outside the pattern, and stay for those.
    """
    name = rewrite.__name__.lstrip("_")

    def attempt(op: _Op, **bindings: ir.Value) -> object:
        try:
            return rewrite(op, **bindings)
        except _Miss as miss:
            _log.debug("%s left alone: %s", name, miss)
            return None

    return RewriteRule(pattern, attempt, name=name, remove_nodes=not shared)


# Kind, rule, and whether to try the operands of Add and Mul both ways round.
_RULES: tuple[tuple[str, RewriteRule, bool], ...] = (
    ("index-to-gather", _rule(_index_pattern, _index_to_gather, shared=True), False),
    ("rowwise-table", _rule(_table_pattern, _rowwise_table), True),
    ("rowwise-table4", _rule(_table4_pattern, _rowwise_table4, shared=True), False),
    ("quantized-gemm", _rule(_gemm_pattern, _quantized_linear, shared=True), False),
    ("quantized-matmul", _rule(_matmul_pattern, _quantized_linear, shared=True), False),
    ("quantized-bias", _rule(_bias_pattern, _quantized_bias), True),
    ("flat-linear", _rule(_linear_pattern, _flat_linear), True),
    ("sum-before-norm", _rule(_sum_pattern, _sum_before_norm), False),
)
