"""What is the same for all candidates of a request is computed once: the shape of IKBO's blog.

PyTorch's blog (May 2026) measures a linear compression, W [433, 2044] times [1024, 2044, 256] in
FP16 on an H100, about 70 candidates a user: 1.944 ms, 1.389 once the users' part is computed for 15
users (1.40 times), 0.798 once each part is padded to a multiple of 8 (2.44 times). It doesn't say
how many of the 2044 columns are the users'; here 660 are, which makes the split's share of the
work what the 1.40 say.
"""

from __future__ import annotations

from typing import Any

import torch
from gpu_device import compiled, device, timer
from torch import Tensor

PUBLISHED = {"split": 1.40, "padded": 2.44}
USER_COLUMNS = 660


def section(clock: Any, dry: bool) -> dict[str, Any]:
    """Milliseconds of the three forms, and how far they are from one another."""
    batch, outputs, inputs, width, users = (24, 7, 20, 8, 3) if dry else (1024, 433, 2044, 256, 15)
    shared = inputs // 3 if dry else USER_COLUMNS - 1  # neither part a multiple of 8, as published
    where = device(dry)
    half = torch.float32 if dry else torch.float16
    generator = torch.Generator(device=where).manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=where, generator=generator).to(half)

    of_user, of_candidate = made(users, shared, width), made(batch, inputs - shared, width)
    weight = made(outputs, inputs) / inputs**0.5
    index = torch.arange(batch, device=where) * users // batch

    def whole(of_user: Tensor, of_candidate: Tensor) -> Tensor:
        return weight @ torch.cat([of_user[index], of_candidate], 1)

    def split(of_user: Tensor, of_candidate: Tensor) -> Tensor:
        left, right = weight[:, :shared], weight[:, shared:]
        return (left @ of_user)[index] + right @ of_candidate

    left, right = (_padded(part, 1) for part in (weight[:, :shared], weight[:, shared:]))
    wide_user, wide_candidate = _padded(of_user, 1), _padded(of_candidate, 1)

    def padded(of_user: Tensor, of_candidate: Tensor) -> Tensor:
        return (left @ of_user)[index] + right @ of_candidate

    calls = {
        "whole": (whole, of_user, of_candidate),
        "split": (split, of_user, of_candidate),
        "padded": (padded, wide_user, wide_candidate),
    }
    exact = whole(of_user, of_candidate).float()
    timed = timer(dry)
    found: dict[str, Any] = {"seconds": {}, "off": {}, "published": PUBLISHED}
    for name, (call, *args) in calls.items():
        ready = compiled(call, dry, tuned=True)
        off = (ready(*args).float() - exact).norm() / exact.norm()
        found["off"][name] = float(off)
        found["seconds"][name] = timed(lambda ready=ready, args=args: ready(*args))
    found["speedup"] = {
        name: found["seconds"]["whole"] / found["seconds"][name] for name in ("split", "padded")
    }
    return found


def _padded(x: Tensor, dim: int) -> Tensor:
    """Zeros behind ``dim`` up to a multiple of 8, contiguous, so that the GPU's loads are whole."""
    extra = -x.shape[dim] % 8
    shape = [*x.shape]
    shape[dim] = extra
    return torch.cat([x, x.new_zeros(shape)], dim).contiguous()
