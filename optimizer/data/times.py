"""When rows came: the column of a batch that says so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError


def time_column(time: ArrayLike, rows: int) -> NDArray[Any]:
    """A time column ``[N]`` that can be sorted: numbers, dates, or text whose order is time's.

    Raises:
        DataError: another length than ``rows``, missing entries, or what can't be compared.
    """
    column = np.asarray(time)
    if column.shape == (rows, 1):
        column = column[:, 0]
    if column.shape != (rows,):
        raise DataError(f"time has shape {list(column.shape)}, expected one entry for {rows} rows")
    if column.dtype.kind == "O":
        missing = np.fromiter((one is None or one != one for one in column), bool, rows)
    elif column.dtype.kind in "fmM":
        missing = np.isnan(column)
    else:
        missing = np.zeros(rows, dtype=np.bool_)
    if missing.any():
        raise DataError(
            f"time is missing in {int(missing.sum()):,} rows, first in row "
            f"{int(missing.argmax())}; give every row the time it came, or leave time out"
        )
    if column.dtype.kind == "c":
        raise DataError("time holds complex numbers, expected numbers, dates or text")
    if column.dtype.kind != "O":
        return column
    kinds = {type(one) for one in column}
    if kinds == {str}:
        return column.astype(np.str_)
    try:
        return np.array(column.tolist(), dtype="datetime64[us]")
    except (TypeError, ValueError):
        pass
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError) as error:
        named = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"time holds {named}, which can't be put in order; give numbers, dates or text"
        ) from error
