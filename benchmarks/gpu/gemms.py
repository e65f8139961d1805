"""LoKA's GEMM shapes (2605.10886): BF16, each low kernel, and what the dispatch takes.

The paper gives the first and the last of its 27 production shapes, (2048, 256) @ (256, 768) and
(2048, 123200) @ (123200, 1024); those between are ours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from gpu_device import compiled, device, timer
from rankc.backends.inductor.gpu_kernels import BF16, KERNELS, dispatch

SHAPES = (
    (2048, 256, 768),
    (2048, 512, 1024),
    (2048, 1024, 1024),
    (2048, 1024, 4096),
    (2048, 2048, 2048),
    (2048, 4096, 4096),
    (2048, 8192, 1024),
    (2048, 16384, 2048),
    (2048, 49152, 1024),
    (2048, 123200, 1024),
)
_DRY = ((32, 64, 48), (32, 100, 30))
#: Relative L2 error a linear may have here: what E4M3 gives on rows without outliers, and some.
ERROR = 0.05


def section(clock: Any, dry: bool) -> list[dict[str, Any]]:
    """A row per shape; the ends of the list first, in case time runs out."""
    shapes = list(_DRY if dry else SHAPES)
    order = [shapes[0], shapes[-1], *shapes[1:-1]]
    found = []
    for shape in order:
        if clock.over():
            break
        found.append(_measured(*shape, dry))
    return found


def _measured(rows: int, inputs: int, outputs: int, dry: bool) -> dict[str, Any]:
    where = device(dry)
    generator = torch.Generator(device=where).manual_seed(0)
    # Rows as rankers have them: rectified, each of its own size.
    sizes = torch.rand(rows, 1, device=where, generator=generator) + 0.5
    x = torch.randn(rows, inputs, device=where, generator=generator).relu() * sizes
    weight = torch.randn(outputs, inputs, device=where, generator=generator) / inputs**0.5
    exact = x @ weight.T
    x = x.to(torch.bfloat16)
    calls, why = {}, {}
    for kernel in KERNELS:
        step = x.float().abs().max() / (448.0 if kernel.format == "fp8" else 127.0)
        run = partial(kernel.run, weight=kernel.prepare(weight), bias=None, step=step)
        try:
            call = partial(compiled(run, dry, tuned=kernel is BF16), x)
            call()
            calls[kernel.name] = call
        except Exception as error:  # a kernel this GPU or torch doesn't have
            why[kernel.name] = f"{type(error).__name__}: {str(error)[:160]}"
    chosen = dispatch(calls, exact, ERROR, timer(dry))
    best = min((t for n, t in chosen.seconds.items() if n != BF16.name), default=float("inf"))
    return {
        "shape": [rows, inputs, outputs],
        "seconds": dict(chosen.seconds),
        "errors": dict(chosen.errors),
        "chosen": chosen.kernel,
        "reason": chosen.reason,
        "best_low_seconds": best,
        "tflops": {
            name: 2.0 * rows * inputs * outputs / seconds / 1e12
            for name, seconds in chosen.seconds.items()
        },
        "refused": why,
    }
