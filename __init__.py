"""rankc: a compiler for ranking models.

```python
artifact = rankc.optimize(model, target="cpu-int8", data=batches, budget=rankc.Budget(ne=2e-4))
artifact.save("out/")
scores = rankc.load("out/")(batch)
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from .optimizer.artifact.artifact import Artifact
    from .optimizer.backend import Backend, Built
    from .optimizer.capture import capture
    from .optimizer.data.batch import Batch
    from .optimizer.data.parquet import Parquet
    from .optimizer.diagnose.bisect import bisect
    from .optimizer.diagnose.debug import debug
    from .optimizer.driver import optimize
    from .optimizer.errors import RankcError
    from .optimizer.heads.consolidate import consolidate
    from .optimizer.heads.stage_consistency import consistency
    from .optimizer.heads.windows import Windows, cdf_of
    from .optimizer.ir import (
        Feature,
        FeatureKind,
        Program,
        Score,
        Side,
        Signature,
        Task,
        TaskKind,
    )
    from .optimizer.pipeline.passbase import Exactness, Pass
    from .optimizer.pipeline.pipeline import Pipeline
    from .optimizer.pipeline.registry import register
    from .optimizer.quality.budget import Budget
    from .optimizer.quality.measures import Measure
    from .optimizer.quality.verdict import Status, Verdict
    from .optimizer.replan import replan
    from .optimizer.report.report import Report
    from .optimizer.requests.request import Request
    from .optimizer.target import DeviceSpec, Target

#: name -> module it is found in; imported when first used, so that importing rankc is cheap.
_PUBLIC = {
    "Artifact": "optimizer.artifact.artifact",
    "Backend": "optimizer.backend",
    "Batch": "optimizer.data.batch",
    "Budget": "optimizer.quality.budget",
    "Built": "optimizer.backend",
    "DeviceSpec": "optimizer.target",
    "Distill": "optimizer.training.distill",
    "Exactness": "optimizer.pipeline.passbase",
    "Feature": "optimizer.ir",
    "FeatureKind": "optimizer.ir",
    "Measure": "optimizer.quality.measures",
    "Parquet": "optimizer.data.parquet",
    "Pass": "optimizer.pipeline.passbase",
    "Pipeline": "optimizer.pipeline.pipeline",
    "Program": "optimizer.ir",
    "RankcError": "optimizer.errors",
    "Report": "optimizer.report.report",
    "Request": "optimizer.requests.request",
    "Score": "optimizer.ir",
    "Side": "optimizer.ir",
    "Signature": "optimizer.ir",
    "Status": "optimizer.quality.verdict",
    "Stream": "optimizer.pruning.stream",
    "Target": "optimizer.target",
    "Task": "optimizer.ir",
    "TaskKind": "optimizer.ir",
    "Verdict": "optimizer.quality.verdict",
    "Windows": "optimizer.heads.windows",
    "bisect": "optimizer.diagnose.bisect",
    "capture": "optimizer.capture",
    "cdf_of": "optimizer.heads.windows",
    "consistency": "optimizer.heads.stage_consistency",
    "consolidate": "optimizer.heads.consolidate",
    "debug": "optimizer.diagnose.debug",
    "optimize": "optimizer.driver",
    "register": "optimizer.pipeline.registry",
    "replan": "optimizer.replan",
}

__all__ = [
    "Artifact",
    "Backend",
    "Batch",
    "Budget",
    "Built",
    "DeviceSpec",
    "Distill",
    "Exactness",
    "Feature",
    "FeatureKind",
    "Measure",
    "Parquet",
    "Pass",
    "Pipeline",
    "Program",
    "RankcError",
    "Report",
    "Request",
    "Score",
    "Side",
    "Signature",
    "Status",
    "Stream",
    "Target",
    "Task",
    "TaskKind",
    "Verdict",
    "Windows",
    "__version__",
    "bisect",
    "capture",
    "cdf_of",
    "consistency",
    "consolidate",
    "debug",
    "load",
    "optimize",
    "register",
    "replan",
]


def __getattr__(name: str) -> Any:
    if name == "models":
        return importlib.import_module(f"{__name__}.models")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rankc' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def load(
    folder: str | Path, *, trust_code: bool = False, key: str | Path | None = None
) -> Artifact:
    """Opens an artifact folder that `Artifact.save` wrote: only as it was written.

    Args:
        folder: The artifact.
        trust_code: Whether files that are programs may be opened: a ``.pt2``, which is unpickled,
            compiled packages and engines. They can do whatever this process can.
        key: A public key (Ed25519, PEM) by which the folder must be signed.

    Raises:
        ArtifactError: The folder is missing, damaged, changed or not an artifact; it isn't signed
            by the key; or it holds code that isn't trusted.
    """
    from .optimizer.artifact.artifact import Artifact

    return Artifact.load(folder, trust_code=trust_code, key=key)
