"""What requests, finetuning and windows add to a pipeline, where it hasn't got it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .heads.windows import Windows
from .ir.signature import Signature
from .pipeline.passbase import Exactness
from .pipeline.pipeline import Pipeline

_FORMATS = "place-precision"
#: What shares the user's side, before formats are placed.
_FOR_REQUESTS = ("share-user-side", "split-sides", "stack-candidates")
#: Finetuning comes before whatever fuses and quantizes.
_BEFORE = ("fuse-dot-interaction", "quantize-tables", _FORMATS)


def with_requests(pipeline: Pipeline) -> Pipeline:
    """The pipeline with the passes for requests in it."""
    named = re.split(r"[,(){}]", pipeline.spec())
    place = f"@before:{_FORMATS}" if _FORMATS in named else ""
    added = [f"+{name}{place}" for name in _FOR_REQUESTS if name not in named]
    return Pipeline.parse(",".join([pipeline.spec(), *added]))


def with_recovery(pipeline: Pipeline) -> Pipeline:
    """The pipeline with pruning and finetuning in it, unless it trains anywhere already."""
    if any(p.exactness is Exactness.TRAINED for p in _flat(pipeline)):
        return pipeline
    text = pipeline.spec()
    for place in _BEFORE:
        if any(p.name == place for p in _flat(pipeline)):
            return Pipeline.parse(f"{text},+prune-and-distill@before:{place}")
    return Pipeline.parse(f"{text},+prune-and-distill")


def with_windows(pipeline: Pipeline, windows: Windows, signature: Signature) -> Pipeline:
    """The pipeline with the windows' pass behind the last that makes programs canonical."""
    text = f"{pipeline.spec()},+{windows.of(signature).spec()}@after:canonicalize"
    return Pipeline.parse(text)


def _flat(pipeline: Pipeline) -> Iterator[Any]:
    for pass_ in pipeline.passes:
        if isinstance(pass_, Pipeline):
            yield from _flat(pass_)
        else:
            yield pass_
