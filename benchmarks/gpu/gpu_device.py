"""How a call is timed here, and what the device gives at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from rankc.backends.inductor.gpu_kernels import time_on_gpu
from rankc.optimizer.ir import torchapi
from torch import Tensor

GEMM = 8192


def device(dry: bool) -> torch.device:
    """Where everything runs."""
    return torch.device("cpu" if dry else "cuda")


def timer(dry: bool) -> Callable[[Callable[[], Any]], float]:
    """Seconds of a call: replays of a CUDA graph, or a clock around it when dry."""
    return _clocked if dry else time_on_gpu


def _clocked(call: Callable[[], Any]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compiled(call: Callable[..., Any], dry: bool, tuned: bool = False) -> Callable[..., Any]:
    """The callable compiled for fixed shapes; as it is when dry."""
    if dry:
        return call
    return torchapi.compiled(call, "max-autotune-no-cudagraphs" if tuned else "default")


def section(clock: Any, dry: bool) -> dict[str, Any]:
    """Peak rate of BF16 and FP8 products, and bandwidth of a copy: what shares are of."""
    where, size, timed = device(dry), 64 if dry else GEMM, timer(dry)
    a = torch.randn(size, size, device=where).to(torch.bfloat16)
    flops = 2.0 * size**3
    found = {"bf16_tflops": flops / timed(lambda: a @ a) / 1e12}
    source = torch.empty(size * size * 8, device=where)
    held = torch.empty_like(source)
    found["copy_gb_per_s"] = 2.0 * source.nbytes / timed(lambda: held.copy_(source)) / 1e9

    def product() -> Tensor:
        return torchapi.scaled_mm(low, low.t(), one, one, torch.bfloat16)

    try:
        low = a.to(torch.float8_e4m3fn)
        one = torch.ones((), device=where)
        found["fp8_tflops"] = flops / timed(product) / 1e12
    except RuntimeError as error:
        found["fp8"] = str(error)[:200]
    return found
