"""Large tables on disk, mapped: a program that still runs takes the memory of what it looks up."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from ..ir.program import Program
from ..ir.rewrite import Rewriter

#: Bytes; smaller tensors stay in memory.
_LARGE = 16 * 2**20
_PARKED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def park(programs: Collection[Program], folder: Path, but: Program) -> None:
    """Puts the large tensors of programs into files, read only, of which no name stays behind.

    Args:
        programs: Changed in place; they compute what they did.
        folder: Where the files are made.
        but: A program that goes on being held: what is stored in its tensors stays.

    Raises:
        OSError: The folder can't be written to.
    """
    held = {tensor.untyped_storage().data_ptr() for _, tensor in but.tensors()}
    parked: dict[int, Tensor] = {}
    for program in programs:
        rw = Rewriter(program, "parking")
        for name, tensor in list(program.tensors()):
            address = tensor.untyped_storage().data_ptr()
            whole = tensor.nbytes == tensor.untyped_storage().nbytes() and tensor.is_contiguous()
            if tensor.nbytes < _LARGE or not whole or address in held:
                continue
            if address not in parked:
                parked[address] = _mapped(tensor, folder)
                held.add(parked[address].data_ptr())
            rw.set_value(name, parked[address])


def rest() -> None:
    """Takes out of memory what was looked up: the kernel brings sixteen pages in for each row."""
    for held in list(_PARKED):
        held.madvise(mmap.MADV_DONTNEED)


def _mapped(tensor: Tensor, folder: Path) -> Tensor:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    _PARKED.add(held)
    return torch.frombuffer(held, dtype=torch.uint8).view(tensor.dtype).view(tensor.shape)
