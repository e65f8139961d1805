"""The number formats of tables: how rows become codes, what a lookup gives, what they take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..formats import FP32, TABLE, TableData
from ..ir.dialect import DialectOp
from ..ir.ops import ROWWISE_EMBEDDING, ROWWISE_EMBEDDING4
from ..ir.rewrite import Rewriter
from .codes import errors_of, quantize_rows, round_trip_rows

_aten = torch.ops.aten
#: Rows that a table's error is measured on.
_ERROR_ROWS = 8192


class TableFormat(ABC):
    """One format, found by its name with `table_format`.

    Attributes:
        data: What it is and costs (`optimizer/formats.py`).
    """

    def __init__(self, data: TableData) -> None:
        self.data = data

    def fits(self, width: int) -> bool:
        """Whether a table of that width can take it."""
        return True

    @staticmethod
    @abstractmethod
    def imitate(rows: Tensor) -> Tensor:
        """What rows ``[..., D]`` are in it, as fp32; a function, for it stands in graphs."""

    @abstractmethod
    def put(self, rw: Rewriter, lookups: Sequence[fx.Node], base: str, weight: Tensor) -> None:
        """Stores a table in the format, and makes its lookups decode what they find.

        Args:
            rw: The editor.
            lookups: Every ``aten.embedding`` that reads the table.
            base: What names of new parameters begin with.
            weight: ``[R, D]``.
        """


class _Rows(TableFormat):
    """Codes with a scale and a bias a row."""

    lookup: ClassVar[DialectOp]

    def put(self, rw: Rewriter, lookups: Sequence[fx.Node], base: str, weight: Tensor) -> None:
        coded = quantize_rows(weight, self.data.value.bits)
        parts = zip(("codes", "scale", "bias"), coded, strict=True)
        parameters = [rw.parameter(f"{base}_{part}", tensor) for part, tensor in parts]
        for node in lookups:
            with rw.before(node):
                decoded = rw.emit(self.lookup.op, *parameters, node.args[1], like=node)
            rw.replace(node, decoded)


def _eight(rows: Tensor) -> Tensor:
    return round_trip_rows(rows, 8)


def _four(rows: Tensor) -> Tensor:
    return round_trip_rows(rows, 4)


def _sixteen(rows: Tensor) -> Tensor:
    return rows.half().float()


class Int8Rows(_Rows):
    """``int8``: 256 steps between a row's least and largest value."""

    imitate = staticmethod(_eight)
    lookup = ROWWISE_EMBEDDING


class Int4Rows(_Rows):
    """``int4``: 16 steps in a range that is searched, two codes a byte."""

    imitate = staticmethod(_four)
    lookup = ROWWISE_EMBEDDING4

    def fits(self, width: int) -> bool:
        """Whether codes pair up."""
        return width % 2 == 0


class Fp16Rows(TableFormat):
    """``fp16``: values of eleven bits."""

    imitate = staticmethod(_sixteen)

    def put(self, rw: Rewriter, lookups: Sequence[fx.Node], base: str, weight: Tensor) -> None:
        """A lookup in the halves, and a cast."""
        half = rw.parameter(f"{base}_half", weight.half())
        for node in lookups:
            with rw.before(node):
                rows = rw.emit(_aten.embedding.default, half, node.args[1], like=node)
                wide = rw.emit(_aten._to_copy.default, rows, dtype=torch.float32, like=node)
            rw.replace(node, wide)


_CLASSES: dict[str, type[TableFormat]] = {
    found.__name__: found for found in (Int8Rows, Int4Rows, Fp16Rows)
}


def table_format(name: str) -> TableFormat:
    """The format of that name, one of `TABLE_FORMATS`."""
    data = TABLE[name]
    return _CLASSES[data.code](data)


def realise_table(rw: Rewriter, lookups: Sequence[fx.Node], number_format: str) -> None:
    """Stores a table in a format, and makes its lookups decode what they find.

    Args:
        rw: The editor.
        lookups: Every ``aten.embedding`` that reads the table.
        number_format: One of `TABLE_FORMATS`.
    """
    name = str(lookups[0].args[0].target)  # type: ignore[union-attr]
    base, weight = name.replace(".", "_"), rw.program.tensor(name)
    table_format(number_format).put(rw, lookups, base, weight)


def imitate_table(rw: Rewriter, lookups: Sequence[fx.Node], number_format: str) -> None:
    """Makes lookups give what they would in a format, without coding the table.

    A row is coded by itself, so that the rows that are looked up are all that is needed.
    """
    imitate = table_format(number_format).imitate
    for node in lookups:
        users = list(node.users)
        with rw.before(node.next):
            rows = rw.emit(_aten.clone.default, node, like=node)
        rows.target = imitate  # its shape is a clone's: tracing a search of ranges takes a while
        for user in users:
            user.replace_input_with(node, rows)


def table_bytes(rows: int, width: int, number_format: str) -> float:
    """What a table of ``[rows, width]`` takes in a format, scales and biases counted."""
    data = TABLE.get(number_format)
    value, beside = (data.value.nbytes, data.beside) if data else (FP32.nbytes, 0.0)
    return rows * (width * value + beside)


def table_error(weight: Tensor, number_format: str) -> dict[str, float]:
    """The errors of a table's rows in a format, on up to 8,192 rows."""
    count = min(len(weight), _ERROR_ROWS)
    rows = weight[torch.linspace(0, len(weight) - 1, count).long()]
    return errors_of(rows, table_format(number_format).imitate(rows))
