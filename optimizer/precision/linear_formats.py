"""Putting a decided format into the graph: around a linear, in place of it, or on a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ..formats import HALF, WEIGHTS_ALONE
from ..ir.facts import Precision
from ..ir.ops import (
    CODED_LINEAR,
    DEQUANTIZE,
    HALF_LINEAR,
    QUANTIZE,
    ROWWISE_EMBEDDING,
    ROWWISE_EMBEDDING4,
    ROWWISE_LINEAR,
)
from ..ir.pattern import argument
from ..ir.rewrite import Rewriter
from .candidates import column_scale, errors_of, low_weight, output_of
from .codes import quantize_rows, quantize_weight, quantize_weights_alone, round_trip_rows

_aten = torch.ops.aten


def realise(
    rw: Rewriter, linear: fx.Node, precision: Precision, samples: Tensor | None = None
) -> None:
    """Makes a linear compute in a format.

    Args:
        rw: The editor.
        linear: Whose weight is a parameter.
        precision: The format, with the input's range, column scales and kept columns.
        samples: ``[rows, K]`` real inputs. With them, and a bias that is a parameter, the mean
            error of each output is taken out of the bias (bias correction, 1906.04721): rounding
            that shifts all scores one way costs more NE than its size says.
    """
    weight = rw.program.tensor(str(linear.args[1].target))  # type: ignore[union-attr]
    bias = _corrected(rw, linear, weight, precision, samples)
    if precision.format in HALF:
        _in_half(rw, linear, weight, bias, precision)
    elif precision.format in WEIGHTS_ALONE:
        _weights_alone(rw, linear, weight, bias, precision)
    elif precision.format == "int8-rows":
        _by_rows(rw, linear, weight, bias, precision)
    else:
        _insert_qdq(rw, linear, weight, bias, precision)


def _corrected(
    rw: Rewriter, linear: fx.Node, weight: Tensor, precision: Precision, samples: Tensor | None
) -> fx.Node | None:
    """The linear's bias less the mean error that the format adds to each output."""
    bias = argument(linear, 2, "bias")
    assert bias is None or isinstance(bias, fx.Node)
    if samples is None or bias is None or bias.op != "get_attr":
        return bias
    shift = (output_of(samples, weight, precision) - samples @ weight.T).mean(0)
    own = rw.program.tensor(str(bias.target))
    return rw.parameter(f"{_base(linear)}_bias", own - shift)


def _base(linear: fx.Node) -> str:
    return str(linear.args[1].target).replace(".", "_")  # type: ignore[union-attr]


def _in_half(
    rw: Rewriter, linear: fx.Node, weight: Tensor, bias: fx.Node | None, precision: Precision
) -> None:
    dtype: torch.dtype = getattr(torch, HALF[precision.format])
    half = rw.parameter(f"{_base(linear)}_half", weight.to(dtype))
    with rw.before(linear):
        made = rw.emit(HALF_LINEAR.op, linear.args[0], half, bias, like=linear)
    rw.replace(linear, made)


def _weights_alone(
    rw: Rewriter, linear: fx.Node, weight: Tensor, bias: fx.Node | None, precision: Precision
) -> None:
    coded = quantize_weights_alone(weight, WEIGHTS_ALONE[precision.format])
    codes, scale = (
        rw.parameter(f"{_base(linear)}_{part}", tensor)
        for part, tensor in zip(("codes", "scale"), coded, strict=True)
    )
    with rw.before(linear):
        made = rw.emit(CODED_LINEAR.op, linear.args[0], codes, scale, bias, like=linear)
    rw.replace(linear, made)


def _by_rows(
    rw: Rewriter, linear: fx.Node, weight: Tensor, bias: fx.Node | None, precision: Precision
) -> None:
    name = _base(linear)
    coded = quantize_weight(low_weight(weight, precision), torch.int8)
    codes = rw.parameter(f"{name}_codes", coded.codes)
    scale = rw.parameter(f"{name}_scale", coded.scale)
    columns = column_scale(precision, weight.shape[1])
    extra: list[fx.Node | None] = [None, None, None]
    if columns is not None:
        extra[0] = rw.parameter(f"{name}_columns", columns)
    if precision.kept:
        kept = list(precision.kept)
        extra[1] = rw.parameter(f"{name}_kept", torch.tensor(kept))
        extra[2] = rw.parameter(f"{name}_kept_weight", weight[:, kept].contiguous())
    with rw.before(linear):
        made = rw.emit(ROWWISE_LINEAR.op, linear.args[0], codes, scale, bias, *extra, like=linear)
    rw.replace(linear, made)


def _insert_qdq(
    rw: Rewriter, linear: fx.Node, exact: Tensor, bias: fx.Node | None, precision: Precision
) -> None:
    """Puts Q/DQ in front of a linear's input and replaces its weight by codes and a DQ."""
    source = linear.args[0]
    assert isinstance(source, fx.Node)
    name = _base(linear)
    input_dtype: torch.dtype = getattr(torch, precision.input_dtype)
    coded = quantize_weight(low_weight(exact, precision), getattr(torch, precision.weight_dtype))
    scale = rw.parameter(f"{name}_input_scale", torch.tensor(precision.input_scale))
    zero_point = torch.tensor(precision.input_zero_point).to(input_dtype)
    zero = rw.parameter(f"{name}_input_zero", zero_point)
    codes = rw.parameter(f"{name}_codes", coded.codes)
    weight_scale = rw.parameter(f"{name}_scale", coded.scale)
    weight_zero = rw.parameter(f"{name}_zero", coded.zero_point)
    with rw.before(linear):
        low = source
        if precision.column_scale:
            columns = rw.parameter(f"{name}_columns", torch.tensor(precision.column_scale))
            low = rw.emit(_aten.mul.Tensor, source, columns, like=linear)
        quantized = rw.emit(QUANTIZE.op, low, scale, zero, -1, input_dtype, like=linear)
        restored = rw.emit(DEQUANTIZE.op, quantized, scale, zero, -1, like=linear)
        decoded = rw.emit(DEQUANTIZE.op, codes, weight_scale, weight_zero, 0, like=linear)
    linear.args = (restored, decoded) if bias is None else (restored, decoded, bias)
    if precision.kept:
        _add_kept(rw, linear, source, exact, precision.kept, name)


def _add_kept(
    rw: Rewriter, linear: fx.Node, source: fx.Node, exact: Tensor, kept: tuple[int, ...], name: str
) -> None:
    """Adds the columns that stay fp32 to what the low linear gives."""
    columns = rw.parameter(f"{name}_kept", torch.tensor(kept))
    weights = rw.parameter(f"{name}_kept_weight", exact[:, list(kept)].contiguous())
    users = list(linear.users)
    with rw.before(linear.next):
        picked = rw.emit(_aten.index_select.default, source, -1, columns, like=linear)
        high = rw.emit(_aten.linear.default, picked, weights, like=linear)
        total = rw.emit(_aten.add.Tensor, linear, high, like=linear)
    for user in users:
        user.replace_input_with(linear, total)


#: The formats a table can take: bits a code, and the lookup.
_TABLES = {"int8": (8, ROWWISE_EMBEDDING), "int4": (4, ROWWISE_EMBEDDING4)}


def realise_table(rw: Rewriter, lookups: Sequence[fx.Node], number_format: str) -> None:
    """Stores a table in a format, and makes its lookups decode what they find.

    Args:
        rw: The editor.
        lookups: Every ``aten.embedding`` that reads the table.
        number_format: ``"int8"``, ``"int4"`` or ``"fp16"``.
    """
    name = str(lookups[0].args[0].target)  # type: ignore[union-attr]
    base, weight = name.replace(".", "_"), rw.program.tensor(name)
    if number_format == "fp16":
        half = rw.parameter(f"{base}_half", weight.half())
        for node in lookups:
            with rw.before(node):
                rows = rw.emit(_aten.embedding.default, half, node.args[1], like=node)
                wide = rw.emit(_aten._to_copy.default, rows, dtype=torch.float32, like=node)
            rw.replace(node, wide)
        return
    bits, op = _TABLES[number_format]
    parts = zip(("codes", "scale", "bias"), quantize_rows(weight, bits), strict=True)
    parameters = [rw.parameter(f"{base}_{part}", tensor) for part, tensor in parts]
    for node in lookups:
        with rw.before(node):
            decoded = rw.emit(op.op, *parameters, node.args[1], like=node)
        rw.replace(node, decoded)


def imitate_table(rw: Rewriter, lookups: Sequence[fx.Node], number_format: str) -> None:
    """Makes lookups give what they would in a format, without coding the table.

    A row is coded by itself, so that the rows that are looked up are all that is needed.
    """
    imitate = IMITATIONS[number_format]
    for node in lookups:
        users = list(node.users)
        with rw.before(node.next):
            rows = rw.emit(_aten.clone.default, node, like=node)
        rows.target = imitate  # its shape is a clone's: tracing a search of ranges takes a while
        for user in users:
            user.replace_input_with(node, rows)


def _eight(rows: Tensor) -> Tensor:
    return round_trip_rows(rows, 8)


def _four(rows: Tensor) -> Tensor:
    return round_trip_rows(rows, 4)


def _sixteen(rows: Tensor) -> Tensor:
    return rows.half().float()


#: What a table's rows are in each format.
IMITATIONS = {"int8": _eight, "int4": _four, "fp16": _sixteen}
#: Bytes of a row of width D in a format, and beside it.
_ROW_BYTES = {"fp32": (4.0, 0.0), "fp16": (2.0, 0.0), "int8": (1.0, 8.0), "int4": (0.5, 4.0)}


def table_bytes(rows: int, width: int, number_format: str) -> float:
    """What a table of ``[rows, width]`` takes in a format, scales and biases counted."""
    value, beside = _ROW_BYTES[number_format]
    return rows * (width * value + beside)


def table_error(weight: Tensor, number_format: str) -> dict[str, float]:
    """The errors of a table's rows in a format, on up to 8,192 rows."""
    rows = weight[torch.linspace(0, len(weight) - 1, min(len(weight), 8192)).long()]
    return errors_of(rows, IMITATIONS[number_format](rows))
