"""Arguments that several commands take, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RankcError, SignatureError

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
    parser.add_argument("--weights", help="column of how many rows of traffic a row stands for")
    parser.add_argument("--cohort", action="append", default=[], help="column judged by slice")
    parser.add_argument(
        "--regression",
        action="append",
        default=[],
        metavar="TASK",
        help="a task whose labels are amounts, such as seconds watched; repeatable",
    )
    parser.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="TASK=VALUE",
        help="what stands for a missing label of a task, besides null and NaN; repeatable",
    )
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
        arguments.weights,
    )


def model_of(arguments: argparse.Namespace) -> str | Program:
    """The model that was named, captured where something is said of its tasks."""
    if not arguments.regression and not arguments.missing:
        return str(arguments.model)
    return declared_model(arguments)


def capture_of(place: str, trust_code: bool) -> Program:
    """The program of a named model."""
    from .capture import capture

    return capture(place, trust_code=trust_code)


def declared_model(arguments: argparse.Namespace) -> Program:
    """The program of the model that was named, its tasks as they were declared."""
    from .ir.signature import TaskKind

    program = capture_of(arguments.model, arguments.trust_code)
    declared: list[tuple[str, dict[str, object]]] = [
        (task, {"kind": TaskKind.REGRESSION}) for task in arguments.regression
    ]
    for text in arguments.missing:
        task, _, value = text.rpartition("=")
        try:
            declared.append((task, {"missing": float(value)}))
        except ValueError:
            raise RankcError(f"--missing takes task=value, such as buy=-1, got {text!r}") from None
    for task, changes in declared:
        try:
            program.signature = program.signature.with_task(task, **changes)
        except KeyError as error:
            raise SignatureError(f"{arguments.model}: {error.args[0]}") from error
    return program


def sizes_of(text: str) -> tuple[int, ...]:
    """Batch sizes as text, such as ``64,512``."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise RankcError(f"--batch takes positive numbers such as 64,512, got {text!r}")
    return sizes
