"""Arguments that several commands take, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RankcError

if TYPE_CHECKING:
    from .data.parquet import Parquet
    from .ir.program import Program
    from .requests.request import Request


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust-code``."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="open files that can run code: a .pt2, a compiled package or engine",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds what tells a model, its data and what is wanted of it."""
    parser.add_argument("model", help="pkg.module:factory, or a .pt2 or .onnx file")
    parser.add_argument("--target", default="cpu-int8", help="a target (default cpu-int8)")
    parser.add_argument("--data", type=Path, help="parquet, columns named like the features")
    parser.add_argument(
        "--label", action="append", default=[], help="label column, or task=column; repeatable"
    )
    parser.add_argument("--group", help="column of the user or request a row belongs to")
    parser.add_argument("--time", help="column of when a row came; rows are sorted by it")
    parser.add_argument("--cohort", action="append", default=[], help="column judged by slice")
    parser.add_argument("--pipeline", default="default", help="passes (default: default)")
    parser.add_argument(
        "--cache", type=Path, help="folder of measured kernel times (default ~/.cache/rankc)"
    )
    add_trust(parser)


def request_of(arguments: argparse.Namespace) -> Request | None:
    """What candidates of a request have in common, as it was asked for."""
    from .requests.request import Request

    if arguments.request is None:
        if arguments.precompute_items:
            raise RankcError("--precompute-items is for requests; give --request as well")
        return None
    names = [name.strip() for name in arguments.request.split(",") if name.strip()]
    return Request(names or None, arguments.precompute_items)


def parquet_of(arguments: argparse.Namespace) -> Parquet | None:
    """The rows that were named."""
    from .data.parquet import Parquet

    if arguments.data is None:
        return None
    return Parquet(
        arguments.data,
        tuple(arguments.label),
        arguments.group,
        tuple(arguments.cohort),
        arguments.time,
    )


def capture_of(place: str, trust_code: bool) -> Program:
    """The program of a named model."""
    from .capture import capture

    return capture(place, trust_code=trust_code)


def sizes_of(text: str) -> tuple[int, ...]:
    """Batch sizes as text, such as ``64,512``."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise RankcError(f"--batch takes positive numbers such as 64,512, got {text!r}")
    return sizes
