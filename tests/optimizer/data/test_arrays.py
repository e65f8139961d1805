"""What callers give, as arrays that share its memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rankc.optimizer.data.arrays import array_of, arrays_of, dtype_called, is_tensor
from rankc.optimizer.errors import SignatureError


def test_memory_is_shared() -> None:
    tensor = torch.zeros(3)
    array_of("x", tensor)[0] = 5.0
    assert float(tensor[0]) == 5.0
    given = np.zeros(3)
    assert array_of("x", given) is given
    assert is_tensor(tensor)
    assert not is_tensor(given)


def test_dtypes_by_name_and_what_is_no_array() -> None:
    assert dtype_called("int64") == np.int64
    assert dtype_called("bfloat16").itemsize == 2
    with pytest.raises(SignatureError, match="x"):
        arrays_of({"x": object()})
