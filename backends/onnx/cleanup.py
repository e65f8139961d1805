"""Makes what the exporter writes smaller, without changing a bit of what it computes.

``torch.onnx.export`` would call onnxscript's optimizer, whose rules aren't exact: it drops
``x + c`` and ``x * c`` where c is near 0 or 1, makes Clip of Min and Max (NaN comes out otherwise),
folds batch norms, casts twice as once, and splits an odd size in the wrong place. Here are only
those of its parts that move values or say the same thing in fewer words; arithmetic on constants is
left to the runtime, which computes it as it would compute it for each call.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

# The rewriter's builder makes an operator of any name, so its methods have no types.
_Op: TypeAlias = Any

#: Operators that are folded over constants: they move values, or compare and count integers. What
#: onnx's own evaluator (numpy) makes of them is what every runtime makes of them.
_MOVES = frozenset(
    (
        *("Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements"),
        *("GatherND", "Identity", "Range", "Reshape", "Shape", "Size", "Slice", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    )
)
#: Of integers whose results fit by far: sizes, axes, positions.
_COUNTS = frozenset(
    ("Add", "Cast", "Equal", "Greater", "Less", "Mul", "Neg", "Not", "Sub", "Where")
)
_COUNTABLE = 2**31
#: In values; what is larger isn't read, and isn't made.
_LARGEST_INPUT, _LARGEST_OUTPUT = 8192, 512 * 512


def clean_up(model: ir.Model) -> None:
    """Folds shapes, drops what does nothing and what nobody reads, in place; bit for bit the same.

    Args:
        model: As exported, its values typed and shaped where the exporter knows them.
    """
    passes.InlinePass()(model)
    for _ in range(2):  # a rule may leave constants to fold, and these another place for a rule
        folded = fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=_LARGEST_INPUT,
            output_size_limit=_LARGEST_OUTPUT,
            should_fold=_foldable,
        )
        rewritten = _RULES.apply_to_model(model)
        _UNUSED(model)
        if not (folded.modified or rewritten):
            break
    _ONCE(model)


def _foldable(node: ir.Node) -> bool | None:
    """None leaves it to sizes alone; False keeps the node."""
    if node.domain != "":
        return False
    if node.op_type in _MOVES:
        return None
    if node.op_type not in _COUNTS:
        return False
    return None if all(_countable(value) for value in node.inputs) else False


def _countable(value: ir.Value | None) -> bool:
    """Whether a constant is of truths or of small integers."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.size > _LARGEST_INPUT:
        return False
    if tensor.dtype == ir.DataType.BOOL:
        return True
    if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return False
    values = tensor.numpy()
    return bool(values.size == 0 or abs(values.astype("float64")).max() < _COUNTABLE)


def _reshape_pattern(op: _Op, data: Any, shape: Any) -> Any:
    return op.Reshape(data, shape, _outputs=["reshaped"])


def _has_known_shape(context: object, data: ir.Value, shape: ir.Value, reshaped: ir.Value) -> bool:
    """Whether all sizes but one are known, so that the shape needn't be computed.

    A size of 0 beside an unknown one is left alone: what -1 stands for couldn't be found.
    """
    if shape.const_value is not None or reshaped.shape is None:
        return False
    known = [size for size in reshaped.shape if isinstance(size, int)]
    unknown = len(reshaped.shape) - len(known)
    return unknown == 0 or (unknown == 1 and 0 not in known)


def _reshape(op: _Op, data: ir.Value, shape: ir.Value, reshaped: ir.Value) -> object:
    """Replaces a computed shape by the shape, -1 where a size isn't known."""
    sizes = [size if isinstance(size, int) else -1 for size in reshaped.shape or ()]
    return op.Reshape(data, op.Constant(value=ir.tensor(sizes, ir.DataType.INT64)), allowzero=1)


#: onnxscript's rules that only say in one operator what two said, and ours.
_RULES = RewriteRuleSet(
    [
        rules.collapse_slice_rule,
        rules.collapse_slice2_rule,
        RewriteRule(_reshape_pattern, _reshape, _has_known_shape),
        rules.no_op_expand_rule,
        rules.flatten_to_reshape_rule,
        rules.reshape_reshape_rule,
        rules.no_op_transpose_rule,
        rules.transpose_transpose_rule,
        rules.unsqueeze_unsqueeze_rule,
        rules.squeeze_reshape_1d_rule,
        rules.no_op_dynamic_scatter_nd_rule,
        rules.no_op_static_scatter_nd_rule,
    ]
)

_UNUSED = Sequential(
    passes.RemoveUnusedNodesPass(),
    passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    passes.RemoveUnusedOpsetsPass(),
)
#: Nothing is said twice, and all constants are initializers.
_ONCE = Sequential(
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    passes.LiftSubgraphInitializersToMainGraphPass(),
    passes.DeduplicateInitializersPass(),
    passes.CommonSubexpressionEliminationPass(),
    passes.RemoveUnusedNodesPass(),
    passes.OutputFixPass(),
    passes.NameFixPass(),
)
