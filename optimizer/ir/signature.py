"""What goes into a ranking model and what comes out of it: features and tasks.

A `Signature` is the contract between a model and its callers. It is inferred from the graph (what
an input feeds tells what it is) and can be overridden by the user. It holds no torch object, so
that an artifact can be served without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum, StrEnum
from typing import Any

#: What may stand for a value that is missing, as `float` reads it.
MISSING = ("nan", "inf", "-inf")
#: How the batch dimension is written in a shape.
BATCH = "batch"


class FeatureKind(StrEnum):
    """What an input holds."""

    DENSE = "dense"
    ID = "id"
    ID_LIST = "id list"
    JAGGED = "jagged ids"
    OFFSETS = "offsets"
    LENGTHS = "lengths"
    MASK = "mask"
    SEQUENCE = "sequence"
    UNUSED = "unused"


class Side(StrEnum):
    """Whom a feature describes. The user side is shared by all candidates of a request."""

    USER = "user"
    ITEM = "item"
    CONTEXT = "context"
    UNKNOWN = "unknown"


class TaskKind(StrEnum):
    """What a task predicts."""

    BINARY = "binary"
    REGRESSION = "regression"


class Score(StrEnum):
    """In which space a task's output lives."""

    LOGIT = "logit"
    PROBABILITY = "probability"
    VALUE = "value"


@dataclass(frozen=True)
class Feature:
    """One input tensor of the model.

    Attributes:
        name: Its name in the program and in the artifact.
        kind: What it holds.
        dtype: The torch dtype's name, such as ``"float32"`` or ``"int64"``.
        shape: Sizes; a dynamic dimension is a name, the first is usually ``"batch"``.
        side: Whom it describes.
        tables: Parameter names of the tables it is looked up in.
        cardinalities: Rows of the table each column is looked up in: one number for the whole
            input, or one per column, 0 for a column that is no id. Empty when none is an id, or
            where it isn't known.
        axis: The dimension columns are counted in, where there is one cardinality per column.
        delimiter: The feature that says where this one's rows begin, or how long they are, where
            rows hold different numbers of ids.
        default: What stands in every row where a caller leaves the feature out; None where it must
            be given.
        bounds: The least and the largest value it may have; None for any.
        lows: The least id of each column, as cardinalities has one more than the largest; empty
            where all begin at 0.
        missing: Of what stands for missing values, those for which the model's scores are finite,
            as words: ``"nan inf -inf"``; one entry for the whole input, or one per column. Empty
            where the model takes none.
    """

    name: str
    kind: FeatureKind
    dtype: str
    shape: tuple[int | str, ...]
    side: Side = Side.UNKNOWN
    tables: tuple[str, ...] = ()
    cardinalities: tuple[int, ...] = ()
    axis: int = 1
    delimiter: str = ""
    default: float | None = None
    bounds: tuple[float, float] | None = None
    lows: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def least(self) -> tuple[int, ...]:
        """The least id of each column that has a cardinality."""
        return self.lows or (0,) * len(self.cardinalities)

    @property
    def is_integer(self) -> bool:
        """Whether the dtype is an integer or bool."""
        return self.dtype.startswith(("int", "uint", "bool"))

    def describe(self) -> str:
        """The feature in a few words: ``ids: id int64 [batch, 26]``."""
        shape = ", ".join(str(size) for size in self.shape)
        return f"{self.name}: {self.kind.value} {self.dtype} [{shape}]"


@dataclass(frozen=True)
class Task:
    """One thing the model predicts: an output tensor, or one column of it.

    Attributes:
        name: The task's name, by which labels are given.
        output: The name of the output tensor it is read from.
        column: Which column of a ``[B, T]`` output; None for ``[B]`` and ``[B, 1]``.
        kind: Binary (judged by NE) or regression (judged by squared error).
        score: Whether the output is a logit, a probability or a plain value.
        auxiliary: Train-only; not served, and not judged.
        missing: What stands for a missing label, besides NaN; None for nothing.
    """

    name: str
    output: str
    column: int | None = None
    kind: TaskKind = TaskKind.BINARY
    score: Score = Score.LOGIT
    auxiliary: bool = False
    missing: float | None = None


@dataclass(frozen=True)
class Signature:
    """The features and tasks of a program, in the order of its inputs and outputs."""

    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    outputs: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def feature(self, name: str) -> Feature:
        """The feature called ``name``.

        Raises:
            KeyError: No feature has that name.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(f"no feature is called {name!r}; there are {list(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names, in input order."""
        return tuple(feature.name for feature in self.features)

    @property
    def optional(self) -> tuple[str, ...]:
        """The names of the features a caller may leave out."""
        return tuple(feature.name for feature in self.features if feature.default is not None)

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the features that nothing reads: what a caller gives there is dropped."""
        kind = FeatureKind.UNUSED
        return tuple(f.name for f in self.features if f.kind is kind and f.default is not None)

    def left_out(self, given: Mapping[str, Any]) -> tuple[tuple[Feature, tuple[int, ...]], ...]:
        """The features with a default that a caller left out, and the shape of what stands there.

        Args:
            given: Tensors or arrays by name, of which the first with a row per row counts them.
        """
        missing = [f for f in self.features if f.default is not None and f.name not in given]
        by_row = (f.name for f in self.features if f.shape[:1] == (BATCH,) and f.name in given)
        rows = 0
        for name in (*by_row, *given):
            if given[name].shape:
                rows = int(given[name].shape[0])
                break
        found = []
        for feature in missing:
            # What a request shares has one row.
            once = feature.shape[:1] == (1,)
            sizes = [size if isinstance(size, int) else 1 for size in feature.shape[1:]]
            found.append((feature, (1 if once else rows, *sizes)))
        return tuple(found)

    @property
    def served(self) -> tuple[Task, ...]:
        """The tasks that are served, and therefore judged."""
        return tuple(task for task in self.tasks if not task.auxiliary)

    def with_feature(self, name: str, /, **changes: Any) -> Signature:
        """A copy with some fields of one feature changed, such as ``side=Side.USER``."""
        self.feature(name)
        return replace(
            self,
            features=tuple(replace(f, **changes) if f.name == name else f for f in self.features),
        )

    def with_task(self, name: str, /, **changes: Any) -> Signature:
        """A copy with some fields of one task changed, such as ``kind=TaskKind.REGRESSION``."""
        if name not in {task.name for task in self.tasks}:
            raise KeyError(f"no task is called {name!r}; there are {[t.name for t in self.tasks]}")
        return replace(
            self, tasks=tuple(replace(t, **changes) if t.name == name else t for t in self.tasks)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; `from_json` reads them back."""
        return {
            "features": [_plain(feature) for feature in self.features],
            "tasks": [_plain(task) for task in self.tasks],
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """The signature that `to_json` wrote."""
        return cls(
            features=tuple(
                Feature(
                    name=f["name"],
                    kind=FeatureKind(f["kind"]),
                    dtype=f["dtype"],
                    shape=tuple(f["shape"]),
                    side=Side(f["side"]),
                    tables=tuple(f["tables"]),
                    cardinalities=tuple(f["cardinalities"]),
                    axis=f["axis"],
                    delimiter=f.get("delimiter", ""),
                    default=f.get("default"),
                    bounds=tuple(f["bounds"]) if f.get("bounds") else None,
                    lows=tuple(f.get("lows", ())),
                    missing=tuple(f.get("missing", ())),
                )
                for f in data["features"]
            ),
            tasks=tuple(
                Task(
                    name=t["name"],
                    output=t["output"],
                    column=t["column"],
                    kind=TaskKind(t["kind"]),
                    score=Score(t["score"]),
                    auxiliary=t["auxiliary"],
                    missing=t.get("missing"),
                )
                for t in data["tasks"]
            ),
            outputs=tuple(data["outputs"]),
        )


def _plain(value: Feature | Task) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for item in fields(value):
        content = getattr(value, item.name)
        if isinstance(content, Enum):
            content = content.value
        result[item.name] = list(content) if isinstance(content, tuple) else content
    return result
