"""The exception tree.

Two branches. Mistakes a user can mend (`CaptureError`, `DataError`, `BudgetExceeded`, …) say what
was found, where in *their* model or data, and what to try. Mistakes of a pass author
(`PreconditionError`, `VerifyError`, `PassError`) say which pass and show the graph around it.
A pass that doesn't apply is neither: that is a remark.
"""

from __future__ import annotations


class RankcError(Exception):
    """The root of everything rankc raises on purpose."""


class CaptureError(RankcError):
    """The model could not be captured into a graph.

    Attributes:
        routes: What each way of capturing said, where several were tried.
    """

    routes: tuple[str, ...] = ()


class DataError(RankcError):
    """Inputs, labels or rows don't fit the model's signature, or can't be judged."""


class SignatureError(DataError):
    """A batch whose names, dtypes or shapes don't fit the signature."""


class BudgetError(RankcError):
    """A budget that makes no sense: negative, not a number, an unknown limit."""


class BudgetExceeded(RankcError):  # noqa: N818 - the name users catch
    """No program within the budget was found, not even the original in the highest format.

    Attributes:
        smallest: The smallest ΔNE reached (upper confidence bound, relative), or None.
    """

    def __init__(self, message: str, smallest: float | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class PruneError(RankcError):
    """A sparsity was asked for that the model can't give without breaking what depends on it."""


class RecoverError(RankcError):
    """Finetuning that can't be done: nothing to learn, or rows or checkpoints of something else."""


class TargetError(RankcError):
    """An unknown target, or one that nothing installed here can build for."""


class PluginError(TargetError):
    """A backend or measure of another package that can't be used: which package, and why."""


class UnsupportedError(RankcError):
    """A node that no backend of the target takes."""


class ArtifactError(RankcError):
    """An artifact folder that can't be written or isn't one."""


class CheckpointError(RankcError):
    """A checkpoint of another model or other rows, or a file that is none."""


class PipelineError(RankcError):
    """A pipeline text that names no known pass, or options a pass doesn't have."""


class PreconditionError(RankcError):
    """A pass was run on a program that isn't in the form it requires."""


class VerifyError(RankcError):
    """A program that breaks an invariant of the graph."""


class PassError(RankcError):
    """A pass failed or broke its promise; the cause is chained.

    Attributes:
        pass_spec: The failing pass as pipeline text.
    """

    def __init__(self, message: str, pass_spec: str = "") -> None:
        super().__init__(message)
        self.pass_spec = pass_spec


class TranslationError(RankcError):
    """What was built scores rows otherwise than the model, and not for its rounding.

    Attributes:
        site: The user's name of where the scores part; empty where it can't be told.
        row: What is unusual about the row.
        got: What was scored; NaN where something was raised.
        want: What the model gives.
    """

    def __init__(
        self,
        message: str,
        site: str = "",
        row: str = "",
        got: float = float("nan"),
        want: float = float("nan"),
    ) -> None:
        super().__init__(message)
        self.site = site
        self.row = row
        self.got = got
        self.want = want
