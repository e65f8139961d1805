"""What is known of operators alone: what differs and why, what is refused, what has no case."""

from __future__ import annotations

from collections.abc import Mapping

_ORDER = "beyond the largest number the sum depends on the order of its parts"
_FUSED = "eager's fused product doesn't overflow on the way"
_OVERFLOWS = "eager's variance overflows and is NaN"

#: Cases whose values on ONNX Runtime aren't eager's: each is of numbers near the largest there is.
DIFFERS: Mapping[str, str] = {
    "gelu (at the edge) float32": "eager's own kernels differ: NaN of infinity, alone infinity",
    "addcmul (at the edge) float32": _FUSED,
    "layer_norm (at the edge) float32": "eager's variance overflows above 1e19 and is NaN, not 0",
    "addcmul (at the edge) float64": _FUSED,
    "var (biased) float64": _OVERFLOWS,
    "layer_norm (at the edge) float64": _OVERFLOWS,
    "matmul (of anything) float64": _ORDER,
}

#: Cases that differ in some batches, where a sum of numbers near the largest overflows or cancels.
DEPENDS_ON_ORDER: Mapping[str, str] = {
    f"{case} {dtype}": _ORDER
    for case in ("sum (of anything)", "mean", "cumsum (of anything)", "matmul (of anything)")
    for dtype in ("float32", "float64")
    if f"{case} {dtype}" not in DIFFERS
}

#: What OpenVINO does with NaN, infinity, denormals and the largest numbers, where it isn't what
#: eager does. On ordinary numbers nothing differs; on these the comparison of every artifact with
#: its model does, and OpenVINO is then not in the race.
OPENVINO_AT_THE_EDGE = (
    "its maximum, minimum, comparison, relu, clamp and exponential don't carry NaN, denormals are "
    "0, and what overflows on the way is infinity"
)

#: Cases that a backend refuses when a model is built, by the operator's name and the user's line,
#: are data of the backends: `openvino_limits`, `onnx_double`.

_TRAINING = "only training has it"
_IMAGES = "of images; ranking models have none"
_RANDOM = "random: capture refuses a score that changes from call to call"
_INSIDE = "a part of another operator that has a case"
_SIZES = "of sizes or memory, not of values; folded or read when a model is captured"

#: Operators of the table that aren't tried alone, and why.
WITHOUT_CASE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("_adaptive_avg_pool2d_backward", "avg_pool2d_backward", "convolution_backward"),
            *("embedding_dense_backward", "max_pool2d_with_indices_backward"),
            *("native_group_norm_backward", "native_layer_norm_backward", "native_dropout"),
            *("dropout", "_native_batch_norm_legit"),
        ),
        _TRAINING,
    ),
    **dict.fromkeys(
        (
            *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d"),
            *("avg_pool1d", "avg_pool2d", "avg_pool3d", "col2im", "conv2d", "grid_sampler_2d"),
            *("max_pool2d_with_indices", "max_pool3d_with_indices", "reflection_pad1d"),
            *("reflection_pad2d", "reflection_pad3d", "replication_pad2d", "replication_pad3d"),
            *("upsample_bilinear2d", "upsample_nearest2d"),
        ),
        _IMAGES,
    ),
    **dict.fromkeys(("rand", "randn", "randperm"), _RANDOM),
    **dict.fromkeys(
        (
            *("_embedding_bag", "_log_softmax", "_softmax", "native_group_norm"),
            *("native_layer_norm", "conv1d", "pad", "_cdist_forward", "_pdist_forward"),
        ),
        _INSIDE,
    ),
    **dict.fromkeys(
        (
            *("_local_scalar_dense", "alias", "arange", "as_strided", "clone", "copy", "empty"),
            *("empty_strided", "fill", "full", "scalar_tensor", "sym_numel", "sym_size"),
            *("sym_storage_offset", "sym_stride", "sym_is_contiguous", "resize_"),
        ),
        _SIZES,
    ),
    **dict.fromkeys(("_fft_c2r", "_fft_r2c"), "complex numbers, which ranking models have none of"),
    **dict.fromkeys(
        ("nonzero", "masked_scatter"), "as many values as a batch happens to have: refused"
    ),
    **dict.fromkeys(("embedding_bag", "gru", "lstm"), "a test of its own compares it with eager"),
}
