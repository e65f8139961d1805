"""What callers give, as numpy arrays. Tensors are looked at where they lie; torch isn't imported.

A tensor can only be given where torch was imported already, so ``sys.modules`` tells.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import SignatureError

Array = np.ndarray[Any, Any]

#: The kinds of dtypes that are numbers.
_NUMBERS = "biufc"
#: What a list of Python's own numbers becomes, as in torch; other integers stay as they are.
_NARROWED = {np.dtype(np.float64): np.float32, np.dtype(np.complex128): np.complex64}


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(value, kind)


def dtype_called(name: str) -> np.dtype[Any]:
    """The dtype of a name: ``"int64"``, or one that numpy hasn't, such as ``"bfloat16"``.

    Raises:
        TypeError: There is none.
    """
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # has the formats that numpy lacks

        return np.dtype(getattr(ml_dtypes, name, name))


def array_of(name: str, value: Any) -> Array:
    """What was given for a feature, as an array; the memory of an array or a tensor is shared.

    Args:
        name: The feature's.
        value: An array, a tensor, a number, or nested lists of numbers. Python's own floats are
            float32, as in torch.

    Raises:
        SignatureError: It is none of these.
    """
    try:
        if is_tensor(value):
            return _of_tensor(value)
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _no_numbers(name, value, str(error)) from error
    if array.dtype.kind not in _NUMBERS and not _is_low(array.dtype):
        raise _no_numbers(name, value, f"it holds {array.dtype.name}")
    if not array.dtype.isnative:  # runtimes read bytes as they are
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype in _NARROWED and _is_plain(value):
        array = array.astype(_NARROWED[array.dtype])
    return array


def arrays_of(features: Mapping[str, Any]) -> dict[str, Array]:
    """Features as arrays, by name.

    Raises:
        SignatureError: One is neither an array nor a tensor nor numbers.
    """
    return {
        name: value if type(value) is np.ndarray and _runs(value) else array_of(name, value)
        for name, value in features.items()
    }


def tensors_like(arrays: Mapping[str, Array], like: Any) -> dict[str, Any]:
    """Arrays as tensors on the device of one, which share their memory on the CPU."""
    torch: Any = sys.modules["torch"]
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    if like.device.type == "cpu":
        return tensors
    return {name: value.to(like.device) for name, value in tensors.items()}


def _of_tensor(value: Any) -> Array:
    if value.device.type != "cpu" or value.requires_grad:
        value = value.detach().cpu()
    try:
        array: Array = value.numpy()
    except TypeError:  # a format that numpy lacks: the same bits
        held: Any = sys.modules["torch"]
        bits = {1: held.uint8, 2: held.int16}.get(value.element_size())
        if bits is None:
            raise
        kind = dtype_called(str(value.dtype).removeprefix("torch."))
        array = value.view(bits).numpy().view(kind)
    return array


def _runs(array: Array) -> bool:
    """Whether runtimes read it as it lies."""
    return array.dtype.kind in _NUMBERS and array.dtype.isnative


def _is_low(dtype: np.dtype[Any]) -> bool:
    """Whether it is a number format of less than four bytes that numpy lacks."""
    return dtype.kind == "V" and dtype.names is None and "float" in dtype.name


def _is_plain(value: Any) -> bool:
    """Whether it is a number of Python's, or lists that begin with one."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return not hasattr(value, "dtype") and not hasattr(value, "__array_interface__")


def _no_numbers(name: str, value: Any, reason: str) -> SignatureError:
    return SignatureError(
        f"feature {name!r} is a {type(value).__name__}, expected a tensor or an array of numbers "
        f"({reason})."
    )
