"""Kernels a linear can run in on PyTorch, and the choice among them by measuring.

Imports torch and nothing else of weight, so that a GPU machine without rankc's other
dependencies can measure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...optimizer import formats
from ...optimizer.errors import TargetError
from ...optimizer.ir.torchapi import int_mm, scaled_mm

_FLOAT8_MAX, _INT8_MAX = 448.0, 127.0
#: `_scaled_mm` and `_int_mm` take sizes in multiples of this; others are padded with zeros.
_ALIGNMENT = 16
#: `_int_mm` on a GPU takes more rows than this.
_INT8_ROWS = 32
#: A low kernel must be this much faster than BF16 to be worth its error (LoKA's Dispatch).
_WORTH = 1.05
_TINY = 1e-12


@dataclass(frozen=True)
class LowWeight:
    """A linear's weight in codes.

    Attributes:
        codes: ``[N, K]`` float8_e4m3fn or int8.
        scale: ``[N]`` float32, per output channel.
    """

    codes: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> LowWeight:
        """Symmetric codes per output channel of ``weight`` ``[N, K]``."""
        limit = _FLOAT8_MAX if dtype.is_floating_point else _INT8_MAX
        scale = (weight.float().abs().amax(1) / limit).clamp_min(_TINY)
        return cls(_codes(weight.float() / scale[:, None], dtype), scale)


def _codes(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return scaled.clamp(-_FLOAT8_MAX, _FLOAT8_MAX).to(dtype)
    return scaled.round().clamp(-_INT8_MAX - 1, _INT8_MAX).to(dtype)


def _padded(x: Tensor, *sizes: int) -> Tensor:
    """Zeros behind the last dimensions; zeros add nothing to a product."""
    extra = [want - have for want, have in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    if not any(extra):
        return x
    bits = x.view(torch.uint8) if x.dtype is torch.float8_e4m3fn else x
    padded = functional.pad(bits, [n for size in reversed(extra) for n in (0, size)])
    return padded.view(x.dtype) if bits is not x else padded


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def multiply_codes(codes: Tensor, step: Tensor, weight: LowWeight) -> Tensor:
    """``(codes · step) @ (weight codes · scale)ᵀ`` in fp32.

    Args:
        codes: ``[M, K]`` in the weight's dtype.
        step: ``[]`` for one scale of the whole input, or ``[M, 1]`` for a scale per row.
        weight: The weight ``[N, K]``.

    Returns:
        ``[M, N]`` float32.
    """
    outputs, inputs = weight.codes.shape
    wide, deep = _aligned(outputs), _aligned(inputs)
    right = _padded(weight.codes, wide, deep).t()
    left = _padded(codes, deep)
    if codes.dtype is torch.int8:
        rows = codes.shape[0]
        if left.is_cuda:
            left = functional.pad(left, [0, 0, 0, _INT8_ROWS])
        product = int_mm(left, right)[:rows, :outputs].float()
    else:
        one = torch.ones((), device=codes.device)
        product = scaled_mm(left, right, one, one, torch.float32)[:, :outputs]
    return product * step * weight.scale


def scaled_rows(codes: Tensor, step: Tensor, weight: LowWeight) -> Tensor:
    """The same, FP8 only, scales applied inside the kernel and the result rounded to BF16."""
    outputs, inputs = weight.codes.shape
    wide, deep = _aligned(outputs), _aligned(inputs)
    right = _padded(weight.codes, wide, deep).t()
    rows = step.expand(codes.shape[0], 1).contiguous()
    columns = _padded(weight.scale, wide).reshape(1, -1)
    found = scaled_mm(_padded(codes, deep), right, rows, columns, torch.bfloat16)
    return found[:, :outputs]


def multiply_rows(
    x: Tensor,
    weight: LowWeight,
    bias: Tensor | None,
    column_scale: Tensor | None = None,
    kept: Tensor | None = None,
    kept_weight: Tensor | None = None,
) -> Tensor:
    """``rankc.rowwise_linear`` of ``x`` ``[M, K]`` with the product in INT8.

    The steps 0 to 255 of a row are multiplied as -128 to 127, and its least value moved by as much.
    """
    scaled = x if column_scale is None else x * column_scale
    low = scaled.amin(-1, keepdim=True)
    step = (scaled.amax(-1, keepdim=True) - low) / 255.0
    inverse = step.clamp_min(torch.finfo(torch.float32).tiny).reciprocal()
    codes = (torch.round((scaled - low) * inverse) - 128.0).to(torch.int8)
    sums = weight.codes.float().sum(-1)
    result = multiply_codes(codes, step, weight) + (low + 128.0 * step) * sums * weight.scale
    if kept is not None and kept_weight is not None:
        result = result + functional.linear(x[:, kept], kept_weight)
    return result if bias is None else result + bias


@dataclass(frozen=True)
class Kernel:
    """A way to run a linear.

    Attributes:
        name: Such as ``"fp8-rows"``.
        number: What it multiplies in.
        sm: The first compute capability that has it.
        dynamic: Whether each row's range is found while running.
        in_kernel: Whether the scales are applied by the product's own kernel, in BF16.
    """

    name: str
    number: formats.Number
    sm: int
    dynamic: bool = False
    in_kernel: bool = False

    @property
    def format(self) -> str:
        """What reports call that."""
        return self.number.word

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of it."""
        found: torch.dtype = getattr(torch, self.number.torch)
        return found

    def prepare(self, weight: Tensor) -> LowWeight | Tensor:
        """What of the weight ``[N, K]`` is stored."""
        if self.number is formats.BF16:
            return weight.to(self.dtype)
        return LowWeight.of(weight, self.dtype)

    def run(
        self, x: Tensor, weight: LowWeight | Tensor, bias: Tensor | None, step: Tensor | None
    ) -> Tensor:
        """The linear's output, quantizing and layout of its input included.

        Args:
            x: ``[M, K]``.
            weight: What `prepare` made.
            bias: ``[N]`` or None.
            step: ``[]``, the static scale of the input; not read by dynamic kernels.

        Returns:
            ``[M, N]`` in the dtype of ``x``.
        """
        if isinstance(weight, Tensor):
            low_bias = bias.to(weight.dtype) if bias is not None else None
            return functional.linear(x.to(weight.dtype), weight, low_bias).to(x.dtype)
        if self.dynamic and not self.dtype.is_floating_point:
            return multiply_rows(x.float(), weight, bias).to(x.dtype)
        if self.dynamic:
            step = (x.float().abs().amax(1, keepdim=True) / _FLOAT8_MAX).clamp_min(_TINY)
        assert step is not None
        codes = _codes(x.float() / step, weight.codes.dtype)
        multiply = scaled_rows if self.in_kernel else multiply_codes
        out = multiply(codes, step, weight)
        return (out if bias is None else out + bias).to(x.dtype)


BF16 = Kernel("bf16", formats.BF16, 80)
KERNELS: tuple[Kernel, ...] = (
    BF16,
    Kernel("fp8-tensor", formats.E4M3, 89),
    Kernel("fp8-scaled", formats.E4M3, 89, in_kernel=True),
    Kernel("fp8-rows", formats.E4M3, 89, dynamic=True, in_kernel=True),
    Kernel("int8-tensor", formats.INT8, 75),
    Kernel("int8-rows", formats.INT8, 75, dynamic=True),
)


@dataclass(frozen=True)
class Dispatched:
    """Which kernel a linear takes.

    Attributes:
        kernel: Its name.
        seconds: What each candidate took.
        errors: Relative L2 error of each candidate.
        reason: Why this one.
    """

    kernel: str
    seconds: Mapping[str, float]
    errors: Mapping[str, float]
    reason: str


def choose(seconds: Mapping[str, float], errors: Mapping[str, float], limit: float) -> Dispatched:
    """The fastest kernel within the linear's share of the error, or BF16 if none is worth it.

    Args:
        seconds: A call of each, quantizing its input and layout included; ``"bf16"`` among them.
        errors: Relative L2 error of each one's output on the linear's own rows.
        limit: The linear's share of the error.
    """
    high = seconds[BF16.name]
    allowed = {n: t for n, t in seconds.items() if n != BF16.name and errors.get(n, 0.0) <= limit}
    if not allowed:
        return Dispatched(
            BF16.name,
            seconds,
            errors,
            f"stays in BF16: every lower format is off by over {limit:g}",
        )
    best = min(allowed, key=lambda name: allowed[name])
    gain = high / allowed[best]
    if gain < _WORTH:
        reason = f"stays in BF16: the fastest lower kernel, {best}, is {gain:.2f} times as fast"
        return Dispatched(BF16.name, seconds, errors, reason)
    return Dispatched(best, seconds, errors, f"{gain:.2f} times as fast as BF16")


def dispatch(
    candidates: Mapping[str, Callable[[], Tensor]],
    exact: Tensor | None,
    limit: float,
    timer: Callable[[Callable[[], Tensor]], float],
) -> Dispatched:
    """Measures candidates and chooses among them.

    Args:
        candidates: A call of each kernel, by name.
        exact: What the linear gives in fp32; None where the candidates' errors are known to be
            within the limit.
        limit: The linear's share of the error.
        timer: Seconds of a call.
    """
    errors = {}
    for name, call in candidates.items():
        if exact is None:
            continue
        off = (call().float() - exact).norm() / exact.norm().clamp_min(1e-30)
        errors[name] = float(off)
    return choose({name: timer(call) for name, call in candidates.items()}, errors, limit)


def gpu_sm() -> int | None:
    """The compute capability of the first GPU times ten; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def time_on_gpu(call: Callable[[], Tensor], rounds: int = 7, seconds: float = 0.01) -> float:
    """Seconds a call on the GPU: replays of a CUDA graph between events, the median of rounds.

    Raises:
        TargetError: There is no GPU.
    """
    if gpu_sm() is None:
        raise TargetError("kernels are timed on an NVIDIA GPU, and this machine has none")
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    once = max(_between_events(graph, 3), 1e-7)
    repeats = max(3, min(1000, round(seconds / once)))
    return statistics.median(_between_events(graph, repeats) for _ in range(rounds))


def _between_events(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats
