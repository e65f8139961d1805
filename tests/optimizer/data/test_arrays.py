"""What callers give becomes arrays: of which kinds, of which dtype, and what is refused."""

from __future__ import annotations

import array
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from rankc.optimizer.data.arrays import array_of, arrays_of, dtype_called, is_tensor, tensors_like
from rankc.optimizer.errors import SignatureError

X = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (X, "float32"),
        (X.clone().requires_grad_(), "float32"),
        (X.t(), "float32"),
        (X[0, 0], "float32"),
        (X.double(), "float64"),
        (X > 1, "bool"),
        (X.bfloat16(), "bfloat16"),
        (X.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        ([[0.5, 1.0]], "float32"),
        ([1, 2], "int64"),
        ([True, False], "bool"),
        (1.5, "float32"),
        ([], "float32"),
        ([np.float64(1.0)], "float64"),
        (np.float64(1.0), "float64"),
        (np.arange(3, dtype=">i8"), "int64"),
        (np.arange(3)[::-1], "int64"),
        (array.array("f", [1.0]), "float32"),
    ],
    ids=str,
)
def test_numbers_become_arrays_of_their_dtype(given: Any, dtype: str) -> None:
    found = array_of("x", given)
    assert found.dtype.name == dtype
    assert found.dtype.isnative
    expected = given.detach().float() if isinstance(given, torch.Tensor) else given
    assert np.array_equal(found.astype(np.float64), np.asarray(expected, np.float64))


def test_memory_is_shared() -> None:
    held = np.arange(3.0)
    assert array_of("x", held) is held
    assert np.shares_memory(array_of("x", X), X.numpy())
    back = tensors_like({"x": held}, X)["x"]
    assert is_tensor(back)
    assert np.shares_memory(back.numpy(), held)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (None, "NoneType"),
        ("text", "str"),
        ({1, 2}, "set"),
        ([[1], [2, 3]], "list"),
        (np.array(["a"]), "ndarray"),
        (np.array([1, None]), "ndarray"),
        (torch.empty(2, device="meta"), "Tensor"),
        (X.to_sparse(), "Tensor"),
    ],
    ids=str,
)
def test_what_is_no_numbers_is_named(given: Any, kind: str) -> None:
    message = f"feature 'x' is a {kind}, expected a tensor or an array of numbers"
    with pytest.raises(SignatureError, match=message):
        array_of("x", given)
    with pytest.raises(SignatureError, match=message):
        arrays_of({"x": given})


def test_formats_that_numpy_lacks_have_a_dtype() -> None:
    assert dtype_called("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    with pytest.raises(TypeError):
        dtype_called("nonsense")
