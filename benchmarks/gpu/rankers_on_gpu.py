"""DHEN, Wukong and DLRM-DCNv2: tuned BF16, each low kernel everywhere, and the mixed dispatch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from gemms import ERROR
from gpu_device import compiled, device, timer
from rankc import models
from rankc.backends.inductor.gpu_kernels import BF16, KERNELS, Kernel, dispatch
from torch import Tensor, nn

#: The largest and the smallest first: where time runs out, the ends are known.
BATCHES = (4096, 512, 2048, 1024)
SINGLE = ("fp8-tensor", "fp8-scaled", "fp8-rows", "int8-rows")
#: Linears with fewer inputs or outputs stay as they are, here and at toy sizes.
_SMALLEST, _SMALLEST_DRY = 64, 8
_ROWS = 100_000


def built(name: str, dry: bool) -> nn.Module:
    """A model of that name, heavy in products unless dry."""
    torch.manual_seed(0)
    if dry:
        return models.zoo()[name]().eval()
    tables = (_ROWS,) * 26
    if name == "dhen":
        config = models.DHENConfig(
            tables, 13, embedding_dim=128, bottom=(512,), layers=4, module_tokens=32,
            dot_hidden=(2048, 2048), heads=4, feedforward=512, top=(2048, 1024),
        )  # fmt: skip
        return models.DHEN(config).eval()
    if name == "wukong":
        config = models.WukongConfig(
            tables, 13, embedding_dim=128, bottom=(512,), layers=4, fm_embeddings=32,
            linear_embeddings=32, rank=24, fm_hidden=(4096, 4096), top=(2048, 1024),
        )  # fmt: skip
        return models.Wukong(config).eval()
    config = models.DLRMDCNv2Config(
        tables, (1,) * 26, 13, embedding_dim=128, bottom=(512, 256), cross_layers=3, rank=512,
        top=(1024, 1024, 512, 256),
    )  # fmt: skip
    return models.DLRMDCNv2(config).eval()


class Dispatched(nn.Module):
    """A linear that runs in one kernel; what it stores is what the kernel reads."""

    def __init__(self, linear: nn.Linear, kernel: Kernel, step: Tensor) -> None:
        super().__init__()
        self.kernel, self.step = kernel, step
        self.stored = kernel.prepare(linear.weight.detach())
        self.bias = linear.bias.detach() if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = self.kernel.run(flat, self.stored, self.bias, self.step)
        return out.reshape(*x.shape[:-1], out.shape[-1])


def linears(model: nn.Module, dry: bool) -> dict[str, nn.Linear]:
    """The linears that may take a low format, by name."""
    smallest = _SMALLEST_DRY if dry else _SMALLEST
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and min(module.weight.shape) >= smallest
    }


def inputs_of(model: nn.Module, example: tuple[Tensor, ...], dry: bool) -> dict[str, Tensor]:
    """What each linear is fed."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].detach()})
        )
        for name, module in linears(model, dry).items()
    ]
    with torch.no_grad():
        model(*example)
    for handle in handles:
        handle.remove()
    return {name: x.reshape(-1, x.shape[-1]) for name, x in seen.items()}


def step_of(kernel: Kernel, x: Tensor) -> Tensor:
    """The static scale of an input."""
    return x.abs().max().float() / (448.0 if kernel.format == "fp8" else 127.0)


def replaced(model: nn.Module, kernels: dict[str, Kernel], fed: dict[str, Tensor]) -> nn.Module:
    """The model with some linears in other kernels; the original's modules are put back after."""
    for name, kernel in kernels.items():
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(parent, child, Dispatched(linear, kernel, step_of(kernel, fed[name])))
    return model


def section(clock: Any, dry: bool) -> list[dict[str, Any]]:
    """A row per model and batch."""
    # Its fast path reads the weights of linears instead of calling them.
    torch.backends.mha.set_fastpath_enabled(False)
    found = []
    for batch in (16,) if dry else BATCHES:
        for name in ("wukong", "dhen", "dlrm-dcnv2"):
            if clock.over():
                return found
            found.append(_measured(name, batch, clock, dry))
    return found


def _measured(name: str, batch: int, clock: Any, dry: bool) -> dict[str, Any]:
    where, timed = device(dry), timer(dry)
    model = built(name, dry).to(where)
    example = tuple(x.to(where) for x in model.example_inputs(batch))  # type: ignore[operator]
    with torch.no_grad():
        exact = model(*example).float()
        model = model.to(torch.bfloat16)
        example = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in example)
        fed = inputs_of(model, example, dry)
        row: dict[str, Any] = {"model": name, "batch": batch, "seconds": {}, "off": {}}

        def measure(label: str, candidate: nn.Module) -> None:
            ready = compiled(candidate, dry, tuned=True)
            off = ready(*example).float() - exact
            row["off"][label] = float(off.norm() / exact.norm())
            row["seconds"][label] = timed(lambda: ready(*example))

        measure(BF16.name, model)
        chosen = _dispatch(model, fed, dry)
        row["chosen"] = {site: kernel.name for site, kernel in chosen.items()}
        original = linears(model, dry)
        low = {site: kernel for site, kernel in chosen.items() if kernel is not BF16}
        measure("mixed", replaced(model, low, fed))
        _put_back(model, original)
        for kernel in KERNELS:
            if kernel.name not in SINGLE or clock.over():
                continue
            try:
                measure(kernel.name, replaced(model, dict.fromkeys(original, kernel), fed))
            except RuntimeError as error:
                row["off"][kernel.name] = str(error)[:160]
            _put_back(model, original)
    return row


def _put_back(model: nn.Module, original: dict[str, nn.Linear]) -> None:
    for name, linear in original.items():
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, linear)


def _dispatch(model: nn.Module, fed: dict[str, Tensor], dry: bool) -> dict[str, Kernel]:
    """The kernel of each linear, measured; linears of one shape share a measurement."""
    named = {kernel.name: kernel for kernel in KERNELS}
    chosen: dict[str, Kernel] = {}
    known: dict[tuple[int, ...], str] = {}
    for site, linear in linears(model, dry).items():
        x, weight = fed[site], linear.weight.detach()
        shape = (*x.shape, *weight.shape)
        if shape not in known:
            calls = {}
            for kernel in KERNELS:
                stored, step = kernel.prepare(weight), step_of(kernel, x)
                run = partial(kernel.run, weight=stored, bias=None, step=step)
                try:
                    call = partial(compiled(run, dry), x)
                    call()
                except RuntimeError:
                    continue
                calls[kernel.name] = call
            exact = x.float() @ weight.float().T
            known[shape] = dispatch(calls, exact, ERROR, timer(dry)).kernel
        chosen[site] = named[known[shape]]
    return chosen
