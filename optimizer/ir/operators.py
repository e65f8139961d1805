"""The traits of ATen's operators, one line an operator, and how they are asked for.

A line holds for all overloads, unless an overload has a line of its own. ATen's tag tells of the
others which are elementwise.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import torch
from torch import fx

from .torchapi import OpOverload, operator_name
from .traits import Coded, Flops, Move, NotFinite, OnRows, Rounding, Traits, Values

_ATEN: dict[str, Traits] = {}
_OTHERS: dict[Any, Traits] = {}
_APART = Traits(OnRows.APART)
_LOST = Traits(OnRows.LOST)


def give(target: Any, traits: Traits) -> None:
    """Says the traits of an operator that isn't ATen's."""
    _OTHERS[target] = traits
    traits_of.cache_clear()


def known(name: str) -> Traits | None:
    """The traits said of an operator of ATen's: its name, or with an overload's."""
    return _ATEN.get(name)


@cache
def traits_of(target: Any) -> Traits:
    """The traits of what a node calls; those of nothing known where nothing is said."""
    if target in _OTHERS:
        return _OTHERS[target]
    name = operator_name(target)
    if name is None:
        return _LOST
    assert isinstance(target, OpOverload)
    said = _ATEN.get(f"{name}.{target._overloadname}") or _ATEN.get(name)
    if said is not None:
        return said
    return _APART if torch.Tag.pointwise in target.tags else _LOST


def of_node(value: Any) -> Traits | None:
    """The traits of a call; None for what isn't one."""
    if isinstance(value, fx.Node) and value.op == "call_function":
        return traits_of(value.target)
    return None


def moves(value: Any, move: Move) -> bool:
    """Whether ``value`` is a call that moves elements in one of these ways."""
    traits = of_node(value)
    return traits is not None and bool(traits.move & move)


def gives(value: Any, *values: Values) -> bool:
    """Whether ``value`` is a call whose values come about in one of these ways."""
    traits = of_node(value)
    return traits is not None and traits.values in values


def lookup_of(value: Any) -> tuple[int, int] | None:
    """The places of the table and of the ids among a lookup's arguments; None for what is none."""
    traits = of_node(value)
    return None if traits is None else traits.lookup


def _is(
    name: str,
    rows: OnRows,
    values: Values = Values.ANY,
    flops: Flops = Flops.ELEMENTS,
    *,
    rounding: Rounding = Rounding.ANY,
    not_finite: NotFinite = NotFinite.DROPPED,
    learned: tuple[int, ...] = (),
    tables: tuple[int, ...] = (),
    coded: Coded = Coded.NO,
    lookup: tuple[int, int] | None = None,
    level: bool = False,
    flat: bool = False,
    asserts: bool = False,
) -> None:
    assert name not in _ATEN, name
    _ATEN[name] = Traits(
        rows=rows,
        values=values,
        flops=flops,
        learned=learned,
        tables=tables,
        coded=coded,
        lookup=lookup,
        not_finite=not_finite,
        rounding=rounding,
        level=level,
        flat=flat,
        asserts=asserts,
    )


def _move(
    name: str,
    move: Move,
    values: Values = Values.SAME,
    flops: Flops = Flops.FREE,
    not_finite: NotFinite = NotFinite.DROPPED,
    rounding: Rounding = Rounding.NONE,
    rows: OnRows = OnRows.MOVED,
) -> None:
    assert name not in _ATEN, name
    _ATEN[name] = Traits(rows, values, move, flops, not_finite=not_finite, rounding=rounding)


_A, _V, _F, _N, _R = OnRows, Values, Flops, NotFinite, Rounding

# --- what moves -----------------------------------------------------------------------------------

_move("alias", Move.COPY, flops=_F.ELEMENTS)
_move("clone", Move.COPY, flops=_F.ELEMENTS, not_finite=_N.KEPT)
_move("contiguous", Move.COPY, flops=_F.ELEMENTS)
_move("detach", Move.COPY, flops=_F.ELEMENTS)
_move("dropout", Move.COPY, flops=_F.ELEMENTS, rounding=_R.ANY)
_move("lift_fresh_copy", Move.COPY, flops=_F.ELEMENTS)
_move("_to_copy", Move.CAST, _V.CAST, _F.ELEMENTS, rounding=_R.ONCE)
_move("to", Move.CAST, _V.CAST, _F.ELEMENTS)
_move("flatten", Move.RESHAPE, not_finite=_N.MOVED)
_move("reshape", Move.RESHAPE, not_finite=_N.MOVED)
_move("view", Move.RESHAPE, not_finite=_N.MOVED)
_move("unsqueeze", Move.UNSQUEEZE, not_finite=_N.MOVED)
_move("squeeze", Move.SQUEEZE, not_finite=_N.MOVED)
_move("permute", Move.TRANSPOSE, not_finite=_N.MOVED)
_move("t", Move.TRANSPOSE, not_finite=_N.MOVED)
_move("transpose", Move.TRANSPOSE, not_finite=_N.MOVED)
_move("expand", Move.EXPAND, not_finite=_N.MOVED)
_move("repeat", Move.REPEAT, flops=_F.ELEMENTS, rows=_A.LOST)
_move("select", Move.SELECT, not_finite=_N.PARTED)
_move("slice", Move.SLICE, not_finite=_N.PARTED)
_move("chunk", Move.SPLIT)
_move("split", Move.SPLIT, not_finite=_N.PARTED)
_move("split_with_sizes", Move.SPLIT, not_finite=_N.PARTED)
_move("tensor_split", Move.SPLIT)
_move("unbind", Move.SPLIT)
_move("cat", Move.JOIN, _V.JOINED, _F.ELEMENTS, _N.MIXED)
_move("stack", Move.JOIN, _V.JOINED, _F.ELEMENTS, _N.MIXED)
_move("index_select", Move.PICK, _V.PICKED, _F.ELEMENTS, _N.PARTED)
_move("index", Move.PICK, _V.INDEXED, _F.ELEMENTS, _N.PARTED, rows=_A.INDEX)
_move("gather", Move.GATHER, _V.INDEXED, _F.ELEMENTS, rows=_A.GATHER)
_OTHERS[operator.getitem] = Traits(
    OnRows.MOVED, move=Move.ITEM, rounding=Rounding.NONE, flops=Flops.ELEMENTS
)

# --- arithmetic -----------------------------------------------------------------------------------

_is("add", _A.APART, _V.ADD, rounding=_R.ONCE, not_finite=_N.KEPT)
_is("sub", _A.APART, _V.SUBTRACT, rounding=_R.ONCE, not_finite=_N.KEPT)
_is("rsub", _A.APART, _V.SUBTRACT_REVERSED, rounding=_R.ONCE)
_is("mul", _A.APART, _V.MULTIPLY, rounding=_R.ONCE, not_finite=_N.KEPT)
_is("div", _A.APART, _V.DIVIDE, rounding=_R.ONCE)
_is("div.Tensor_mode", _A.APART, _V.DIVIDE_ROUNDED, rounding=_R.ONCE)
_is("div.Scalar_mode", _A.APART, _V.DIVIDE_ROUNDED, rounding=_R.ONCE)
_is("floor_divide", _A.APART, _V.FLOOR_DIVIDE, rounding=_R.NONE)
_is("remainder", _A.APART, _V.REMAINDER, rounding=_R.NONE)
_is("fmod", _A.APART, _V.FMOD, rounding=_R.NONE)
_is("pow", _A.APART, _V.POWER)
_is("square", _A.APART, rounding=_R.ONCE)
_is("lerp", _A.APART, rounding=_R.ONCE)
_is("addcmul", _A.APART)
_is("atan2", _A.APART)
_is("mse_loss", _A.LOST)
_is("neg", _A.APART, _V.NEGATED, rounding=_R.NONE, not_finite=_N.KEPT)
_is("abs", _A.APART, _V.ABSOLUTE, rounding=_R.NONE)
_is("sign", _A.APART, _V.SIGN, rounding=_R.NONE, level=True, flat=True)
_is("sgn", _A.APART, _V.SIGN)
_is("floor", _A.APART, _V.ROUNDED, rounding=_R.NONE, flat=True)
_is("ceil", _A.APART, _V.ROUNDED, rounding=_R.NONE, flat=True)
_is("round", _A.APART, _V.ROUNDED, rounding=_R.NONE, flat=True)
_is("trunc", _A.APART, _V.ROUNDED, rounding=_R.NONE)
_is("maximum", _A.APART, _V.LARGER, rounding=_R.NONE)
_is("minimum", _A.APART, _V.LARGER, rounding=_R.NONE)
_is("fmax", _A.APART)
_is("fmin", _A.APART)
_is("clamp", _A.APART, _V.CLAMPED, rounding=_R.NONE, not_finite=_N.BOUNDED)
_is("clamp.Tensor", _A.APART, _V.CLAMPED_BY_TENSORS, rounding=_R.NONE)
_is("clamp_min", _A.APART, _V.CLAMPED, rounding=_R.NONE)
_is("clamp_min.Tensor", _A.APART, _V.CLAMPED_BY_TENSORS, rounding=_R.NONE)
_is("clamp_max", _A.APART, _V.CLAMPED, rounding=_R.NONE)
_is("clamp_max.Tensor", _A.APART, _V.CLAMPED_BY_TENSORS, rounding=_R.NONE)
_is("nan_to_num", _A.APART, rounding=_R.NONE)

# --- functions of one number ----------------------------------------------------------------------

_is("relu", _A.APART, _V.RECTIFIED, rounding=_R.NONE, not_finite=_N.BOUNDED)
_is("relu6", _A.APART)
_is("leaky_relu", _A.APART, _V.RISING, not_finite=_N.BOUNDED)
_is("prelu", _A.FIRST)
_is("elu", _A.APART, _V.RISING, not_finite=_N.BOUNDED)
_is("selu", _A.APART, _V.RISING)
_is("gelu", _A.APART, _V.DIPPING, not_finite=_N.BOUNDED)
_is("silu", _A.APART, _V.DIPPING, not_finite=_N.BOUNDED)
_is("mish", _A.APART, _V.DIPPING)
_is("hardswish", _A.APART, _V.DIPPING)
_is("hardsigmoid", _A.APART, _V.RISING, level=True)
_is("hardtanh", _A.APART, _V.RISING, not_finite=_N.BOUNDED, level=True)
_is("sigmoid", _A.APART, _V.RISING, not_finite=_N.BOUNDED, level=True)
_is("tanh", _A.APART, _V.RISING, not_finite=_N.BOUNDED, level=True)
_is("softplus", _A.APART, _V.RISING, not_finite=_N.BOUNDED)
_is("log_sigmoid_forward", _A.LOST)
_is("logit", _A.APART)
_is("exp", _A.APART, _V.RISING, not_finite=_N.BOUNDED)
_is("expm1", _A.APART, _V.RISING)
_is("log", _A.APART, _V.RISING)
_is("log10", _A.APART)
_is("log1p", _A.APART, _V.RISING)
_is("log2", _A.APART, _V.RISING)
_is("sqrt", _A.APART, _V.RISING, rounding=_R.ONCE)
_is("rsqrt", _A.APART, _V.FALLING)
_is("reciprocal", _A.APART, _V.FALLING, rounding=_R.ONCE)
_is("erf", _A.APART, _V.RISING, level=True)
_is("atan", _A.APART, _V.RISING, level=True)
_is("sin", _A.APART, _V.WAVE, level=True)
_is("cos", _A.APART, _V.WAVE, level=True)
_is("tan", _A.APART)
_is("acos", _A.APART)
_is("acosh", _A.APART)
_is("asin", _A.APART)
_is("asinh", _A.APART)
_is("atanh", _A.APART)
_is("cosh", _A.APART)
_is("sinh", _A.APART)

# --- truths, bits and choices ---------------------------------------------------------------------

_is("eq", _A.APART, _V.EQUAL)
_is("ne", _A.APART, _V.UNEQUAL)
_is("lt", _A.APART, _V.LESS)
_is("le", _A.APART, _V.LESS_OR_EQUAL)
_is("gt", _A.APART, _V.GREATER)
_is("ge", _A.APART, _V.GREATER_OR_EQUAL)
_is("isnan", _A.APART, rounding=_R.NONE)
_is("isinf", _A.APART)
_is("logical_and", _A.APART)
_is("logical_not", _A.APART)
_is("logical_or", _A.APART)
_is("logical_xor", _A.APART)
_is("bitwise_and", _A.APART, _V.AND)
_is("bitwise_not", _A.APART)
_is("bitwise_or", _A.APART)
_is("bitwise_xor", _A.APART, _V.XOR)
_is("bitwise_left_shift", _A.APART, _V.SHIFT_LEFT)
_is("bitwise_right_shift", _A.APART, _V.SHIFT_RIGHT)
_is("__lshift__", _A.APART, _V.SHIFT_LEFT)
_is("__rshift__", _A.APART, _V.SHIFT_RIGHT)
_is("where", _A.APART, _V.CHOSEN, rounding=_R.NONE)
_is("masked_fill", _A.APART, _V.FILLED, rounding=_R.NONE)
_is("copy", _A.LOST, rounding=_R.NONE)
_is("fill", _A.LOST, rounding=_R.NONE)

# --- along dimensions -----------------------------------------------------------------------------

_is("sum", _A.ALONG, _V.SUM, not_finite=_N.MIXED)
_is("sum.default", _A.ALONG, _V.SUM)
_is("mean", _A.ALONG, _V.MEAN, not_finite=_N.MIXED)
_is("mean.default", _A.ALONG, _V.MEAN)
_is("prod", _A.ALONG)
_is("std", _A.ALONG)
_is("var", _A.ALONG)
_is("amax", _A.ALONG, _V.EXTREME, rounding=_R.NONE)
_is("amin", _A.ALONG, _V.EXTREME, rounding=_R.NONE)
_is("max", _A.ALONG, _V.EXTREME, rounding=_R.NONE)
_is("max.other", _A.APART, rounding=_R.NONE)
_is("min", _A.ALONG, _V.EXTREME, rounding=_R.NONE)
_is("min.other", _A.APART, rounding=_R.NONE)
_is("all", _A.ALONG)
_is("any", _A.ALONG)
_is("argmax", _A.ALONG, _V.PLACE, rounding=_R.NONE)
_is("argmin", _A.ALONG, _V.PLACE)
_is("argsort", _A.ALONG, _V.PLACE)
_is("sort", _A.ALONG, _V.SORTED, rounding=_R.NONE)
_is("topk", _A.ALONG, _V.SORTED, rounding=_R.NONE)
_is("cumsum", _A.ALONG, _V.CUMULATED)
_is("cumprod", _A.LOST)
_is("logsumexp", _A.ALONG)
_is("linalg_vector_norm", _A.ALONG, _V.LENGTH)
_is("_softmax", _A.ALONG, _V.WEIGHTS, not_finite=_N.BOUNDED, level=True)
_is("softmax", _A.ALONG, _V.WEIGHTS, not_finite=_N.BOUNDED, level=True)
_is("_log_softmax", _A.ALONG)
_is("log_softmax", _A.ALONG, _V.LOG_WEIGHTS)

# --- products, norms, lookups ---------------------------------------------------------------------

_is(
    "linear",
    _A.LINEAR,
    _V.LINEAR,
    _F.LINEAR,
    learned=(1, 2),
    coded=Coded.CAN,
    not_finite=_N.SPREAD,
)
_is("mm", _A.PRODUCT, _V.PRODUCT, _F.PRODUCT, learned=(0, 1))
_is("bmm", _A.PRODUCT, _V.PRODUCT, _F.PRODUCT, learned=(0, 1), not_finite=_N.MIXED)
_is("matmul", _A.PRODUCT, _V.PRODUCT, _F.PRODUCT, learned=(0, 1), not_finite=_N.MIXED)
_is("addmm", _A.ADDED_PRODUCT, learned=(0, 1, 2))
_is("conv1d", _A.FIRST, learned=(1, 2))
_is("conv2d", _A.FIRST, learned=(1, 2))
_is("convolution", _A.LOST)
_is("scaled_dot_product_attention", _A.ATTENTION, _V.ATTENDED)
_is("gru", _A.RECURRENT)
_is("lstm", _A.RECURRENT)
_is("layer_norm", _A.NORM, _V.NORMED, learned=(2, 3), not_finite=_N.SPREAD, level=True)
_is("native_layer_norm", _A.NORM)
_is("rms_norm", _A.NORM, _V.ROOT_NORMED, level=True)
_is("group_norm", _A.FIRST)
_is("native_group_norm", _A.LOST)
_is("_native_batch_norm_legit", _A.LOST)
_is("_native_batch_norm_legit_no_training", _A.LOST)
_is(
    "embedding",
    _A.LOOKUP,
    _V.LOOKED_UP,
    _F.LOOKUP,
    tables=(0,),
    coded=Coded.CAN,
    lookup=(0, 1),
    rounding=_R.NONE,
    level=True,
)
_is("embedding_bag", _A.LOST, lookup=(0, 1))
_is("_embedding_bag", _A.LOST)
_is("segment_reduce", _A.LOST)

# --- places, constants and shapes -----------------------------------------------------------------

_is("bucketize", _A.LOST, _V.BUCKET)
_is("searchsorted", _A.LOST, _V.BUCKET)
_is("one_hot", _A.SAME, _V.BIT)
_is("arange", _A.LOST, _V.COUNTING, rounding=_R.NONE)
_is("full", _A.MADE, _V.CONSTANT, rounding=_R.NONE)
_is("full_like", _A.SAME, _V.CONSTANT_LIKE, rounding=_R.NONE)
_is("zeros", _A.MADE, _V.ZERO, rounding=_R.NONE)
_is("zeros_like", _A.SAME, _V.ZERO, rounding=_R.NONE)
_is("ones", _A.MADE, _V.ONE, rounding=_R.NONE)
_is("ones_like", _A.SAME, _V.ONE, rounding=_R.NONE)
_is("scalar_tensor", _A.LOST, _V.SCALAR, rounding=_R.NONE)
_is("empty", _A.LOST, rounding=_R.NONE)
_is("empty_strided", _A.LOST)
_is("new_zeros", _A.LOST, rounding=_R.NONE)
_is("new_ones", _A.LOST, rounding=_R.NONE)
_is("new_full", _A.LOST, rounding=_R.NONE)
_is("rand", _A.LOST)
_is("randn", _A.LOST)
_is("randperm", _A.LOST)
_is("sym_size", _A.LOST, flops=_F.FREE)
_is("sym_numel", _A.LOST)
_is("sym_stride", _A.LOST)
_is("sym_storage_offset", _A.LOST)
_is("sym_is_contiguous", _A.LOST)
_is("_local_scalar_dense", _A.LOST)

# --- elements put or moved where rows aren't followed ---------------------------------------------

_is("diagonal", _A.LOST, _V.SAME, rounding=_R.NONE)
_is("flip", _A.LOST, _V.SAME, rounding=_R.NONE)
_is("roll", _A.LOST, _V.SAME, rounding=_R.NONE)
_is("tril", _A.MATRICES, rounding=_R.NONE)
_is("triu", _A.MATRICES, rounding=_R.NONE)
_is("pad", _A.PAD)
_is("constant_pad_nd", _A.PAD, rounding=_R.NONE)
_is("reflection_pad1d", _A.LOST)
_is("reflection_pad2d", _A.LOST)
_is("reflection_pad3d", _A.LOST)
_is("replication_pad2d", _A.LOST)
_is("replication_pad3d", _A.LOST)
_is("alias_copy", _A.LOST, rounding=_R.NONE)
_is("as_strided", _A.LOST)
_is("expand_as", _A.LOST)
_is("unfold", _A.LOST, rounding=_R.NONE)
_is("scatter", _A.LOST, rounding=_R.NONE)
_is("scatter_add", _A.LOST)
_is("scatter_reduce", _A.LOST)
_is("select_scatter", _A.LOST)
_is("slice_scatter", _A.LOST)
_is("index_add", _A.LOST)
_is("index_copy", _A.LOST)
_is("index_put", _A.LOST)
_is("masked_scatter", _A.LOST)
_is("masked_select", _A.LOST)
_is("nonzero", _A.LOST)
_is("resize_", _A.LOST)

# --- pictures, spectra, distances -----------------------------------------------------------------

_is("_adaptive_avg_pool2d", _A.LOST)
_is("_adaptive_avg_pool3d", _A.LOST)
_is("adaptive_avg_pool1d", _A.LOST)
_is("avg_pool1d", _A.LOST)
_is("avg_pool2d", _A.LOST)
_is("avg_pool3d", _A.LOST)
_is("max_pool2d_with_indices", _A.LOST)
_is("max_pool3d_with_indices", _A.LOST)
_is("col2im", _A.LOST)
_is("grid_sampler_2d", _A.LOST)
_is("upsample_bilinear2d", _A.LOST)
_is("upsample_nearest2d", _A.LOST)
_is("_fft_c2r", _A.LOST)
_is("_fft_r2c", _A.LOST)
_is("_cdist_forward", _A.LOST)
_is("_pdist_forward", _A.LOST)

# --- of training, and checks ----------------------------------------------------------------------

_is("native_dropout", _A.LOST)
_is("_adaptive_avg_pool2d_backward", _A.LOST)
_is("avg_pool2d_backward", _A.LOST)
_is("max_pool2d_with_indices_backward", _A.LOST)
_is("convolution_backward", _A.LOST)
_is("embedding_dense_backward", _A.LOST)
_is("native_group_norm_backward", _A.LOST)
_is("native_layer_norm_backward", _A.LOST)
_is("_assert_tensor_metadata", _A.LOST, asserts=True)
_is("_assert_scalar", _A.LOST, asserts=True)
_is("_assert_async", _A.LOST, asserts=True)
_is("sym_constrain_range", _A.LOST, asserts=True)
_is("sym_constrain_range_for_size", _A.LOST, asserts=True)
