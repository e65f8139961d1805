"""Why a capture failed: the line in the user's code, the construct, and what to change."""

from __future__ import annotations

import inspect
import linecache
import re
import traceback
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

import torch
from torch import fx, nn

from ..optimizer.errors import CaptureError, RankcError
from ..optimizer.ir import facts_of
from ..optimizer.ir.operators import moves
from ..optimizer.ir.traits import Move

_OWN = Path(__file__).parents[1]
_PACKAGES = Path(torch.__file__).parents[1]
_PYTHON = Path(linecache.__file__).parent
#: Where frames that aren't the user's come from; ``<`` is generated code.
_LIBRARIES = (
    "<",
    *(f"{_OWN / name}/" for name in ("frontends", "optimizer")),
    *(f"{_PACKAGES / name}/" for name in ("torch", "networkx", "sympy", "numpy")),
    *(str(_PYTHON / name) for name in ("contextlib", "importlib", "functools", "unittest", "ast.")),
    *(str(_PYTHON / name) for name in ("asyncio", "concurrent", "threading", "inspect", "copy.")),
)


class Clarity(IntEnum):
    """How much a failure tells of what to change, the clearest first."""

    OURS = 0
    LINE = 1
    CONSTRUCT = 2
    UNKNOWN = 3


class DiagnosedError(CaptureError):
    """A capture that failed, and how clear it is why."""

    def __init__(self, message: str, clarity: Clarity) -> None:
        super().__init__(message)
        self.clarity = clarity


@dataclass(frozen=True)
class Ailment:
    """A construct that can't be captured.

    Attributes:
        sign: A regular expression found in the error.
        construct: What it is.
        remedy: A change that would work.
        line: A regular expression found in the user's line, where the error alone doesn't tell.
        written: How the construct is spelled, to find its line where the error has none; INPUT
            stands for the name of any argument of the forward.
    """

    sign: str
    construct: str
    remedy: str
    line: str = ""
    written: str = ""

    def fits(self, text: str, line: str) -> bool:
        """Whether the error, and the user's line, show this construct."""
        found = re.search(self.sign, text, re.IGNORECASE) is not None
        return found and re.search(self.line, line) is not None


FIXED_BATCH = Ailment(
    r"is not a constant|constant.*batch|specialized|marked batch as dynamic|"
    r"Constraints violated",
    "an operation that fixes the batch size",
    "use x.shape[0] instead of a number, and -1 in view and reshape; in place of a Python loop "
    "over the rows compute on all of them at once, self.score(x) for [self.score(r) for r in x]",
    written=r"\bfor .+ in ((range|enumerate|zip)\()?(len\()?INPUT(\.shape\[0\]|\.size\(0\)|[]),:])|"
    r"\.split\(.*\.tolist\(",
)
#: An error of what only values say, in any of torch's words.
_VALUES = (
    r"GuardOnDataDependentSymNode|data-dependent|Could not extract specialized integer|"
    r"unhashable type: non-nested SymInt|"
    r"symbolically traced variables cannot be used as inputs to control flow"
)

_BY_LENGTHS = Ailment(
    _VALUES,
    "a Python loop or a split by lengths that only the values tell",
    "pad to a fixed length and mask, torch.arange(x.shape[1]) < lengths[:, None]; or give ids "
    "one after another with their offsets to nn.EmbeddingBag",
    line=r"\bsplit\(|\brange\(|\[[^\]]*:\s*int\(",
)

AILMENTS = (
    Ailment(
        _VALUES,
        "a Python loop over packed batch sizes",
        "run the cell over the padded sequence for a fixed number of steps, for t in "
        "range(x.shape[1]), and keep the state of rows that have ended: "
        "h = torch.where((t < lengths)[:, None], cell(x[:, t], h), h)",
        line=r"batch_sizes|[Pp]acked",
    ),
    _BY_LENGTHS,
    replace(_BY_LENGTHS, sign="Constraints violated", line=r"\.split\("),
    Ailment(
        _VALUES,
        "one_hot without num_classes, which is as wide as the batch's largest id",
        "say how many there are, F.one_hot(ids, num_classes=10)",
        line=r"one_hot\(",
    ),
    Ailment(
        _VALUES,
        "a tensor turned into a Python number",
        "keep it a tensor: choose with torch.where, look up with index_select or gather; a number "
        "that is always the same belongs in __init__",
        line=r"^(?!\s*(if|elif|while|assert)\b).*(\bint\(|\bfloat\(|\bbool\(|\.item\(|\.tolist\()",
    ),
    Ailment(
        r"Size-like symbols: u\d",
        "control flow that depends on how many rows or ids a mask keeps",
        "keep every row, compute on all of them, and choose with torch.where(mask, …) at the end; "
        "rows selected by a mask (x[mask], masked_select, nonzero) have no fixed number",
    ),
    Ailment(
        _VALUES,
        "control flow that depends on a tensor's values",
        "compute both sides and choose per row with torch.where, or decide by a Python constant",
    ),
    FIXED_BATCH,
    Ailment(
        r"\.numpy\(\)|numpy|scipy|sklearn|pandas",
        "another library's computation inside forward",
        "precompute it in __init__ as a buffer, or write it in torch",
        line=r"scipy|sklearn|pandas",
    ),
    Ailment(
        r"\.numpy\(\)|numpy",
        "numpy inside forward",
        "use the torch function of the same name; precompute constants in __init__ as buffers",
    ),
    Ailment(
        r"\.item\(\)|_local_scalar_dense|Cannot convert symbols? to int",
        "a tensor turned into a Python number",
        "keep it a tensor, or compute it in __init__",
    ),
    Ailment(
        r"functorch tensor",
        "a transformation of functions, such as a gradient, inside forward",
        "write its result out in plain torch operators, a gradient as a formula, or take it only "
        "in training",
        written=r"\bfunc\.\w*(grad|jac|hess|vmap|jvp|vjp)|\b(vmap|grad|jacrev|jacfwd)\(",
    ),
    Ailment(
        r"(?<!non-)nested",
        "a NestedTensor",
        "pass values and lengths, or values and offsets, as two tensors",
    ),
    Ailment(
        r"aten\.nonzero|aten\.unique|masked_select|dynamic.output.shape|DynamicOutputShape",
        "an operator whose result has as many rows as its input's values say",
        "keep every row and zero those that don't count: x * mask, or torch.where",
    ),
    Ailment(
        r"deepcopy|pickle|__torch_function__|vmap|functorch",
        "a transformation of functions inside forward",
        "write its result out in plain torch operators",
        written=r"\bvmap\(|functorch|\bcopy\.deepcopy\(|\bdeepcopy\(",
    ),
    Ailment(
        r"torch\.load|open\(|No such file",
        "reading a file inside forward",
        "read it in __init__ and keep it as a buffer",
    ),
    Ailment(
        r"on the same device|Unhandled FakeTensor Device|not on the expected device|cuda",
        "tensors on several devices",
        "make tensors in forward on the input's device: torch.zeros(…, device=x.device), and leave "
        "out x.cuda() and x.to('cuda:0'), which name one",
    ),
    Ailment(
        r"setattr|assign.*attribute|was assigned during export|mutat",
        "a tensor kept on the model during forward",
        "return it, or keep it only in training: `if self.training: self.loss = …`",
    ),
    Ailment(
        r"backward|requires_grad|autograd\.grad|grad_fn|TensorWrapper|"
        r"fake tensor in the exported program",
        "gradients inside forward",
        "write the gradient out as a formula, or take it only in training",
        written=r"\.backward\(|autograd\.grad\(|func\.\w*(grad|jac|hess)|\.grad\b",
    ),
    Ailment(
        r"torch\.classes|quantized::|PackedParams",
        "a layer that torch has quantized",
        "capture the float model: which layers take a lower format is decided on data afterwards",
    ),
    Ailment(
        r"torch\.jit|ScriptModule|ScriptFunction",
        "a TorchScript module",
        "capture the Python module it was scripted from",
    ),
    Ailment(
        r"sparse|to_dense|SparseTensor",
        "a sparse tensor",
        "pass ids and values as two padded tensors, or look ids up with nn.EmbeddingBag",
    ),
    Ailment(
        r"recursion|maximum depth",
        "a forward that calls itself",
        "write the recursion as a loop over a fixed number of layers",
    ),
    Ailment(
        r"pack_padded_sequence|_pack_padded|_packed_sequence",
        "packed sequences",
        "run the recurrent layer on the padded sequence and mask its output",
    ),
)


def remedy_for(error: BaseException) -> str:
    """What to change, for an error of the model's own whose cause is known; else empty."""
    known = _ailment(error, user_line(error))
    return f"{known.construct}. What to change: {known.remedy}" if known else ""


def diagnose(error: BaseException, model: nn.Module) -> DiagnosedError:
    """A capture failure as a message a user can act on."""
    where = user_line(error)
    if not where and re.search(FIXED_BATCH.sign, str(error)):
        where = _written(model, FIXED_BATCH.written)
    ailment = _ailment(error, where)
    name = type(model).__name__
    first = str(error).strip().split("\n", 1)[0]
    if isinstance(error, RankcError):
        return DiagnosedError(f"{name} can't be captured{where}: {error}", Clarity.OURS)
    if ailment is None:
        message = f"{name} can't be captured{where}: {type(error).__name__}: {first}"
        return DiagnosedError(message, Clarity.UNKNOWN)
    where = where or _written(model, ailment.written)
    condition = also = ""
    if ailment.construct.startswith("control flow"):
        condition = _condition(where)
        if _only_complains(where):
            also = "; a check that only complains belongs in front of the model, or in training"
    return DiagnosedError(
        f"{name} can't be captured{where}: {ailment.construct}{condition}. "
        f"What to change: {ailment.remedy}{also}. ({first})",
        Clarity.LINE if where else Clarity.CONSTRUCT,
    )


def _ailment(error: BaseException, where: str) -> Ailment | None:
    text, line = f"{type(error).__name__}: {error}", where.partition("`")[2]
    return next((a for a in AILMENTS if a.fits(text, line)), None)


def _condition(where: str) -> str:
    """What a branch asks, from its line: ``, `x.mean() > 0` ``."""
    line = where.partition("`")[2].removesuffix("`")
    asked = re.search(r"^(?:if|elif|while|assert) (.+?):(?: |$)|\bif (.+?) else\b", line)
    return f", `{asked[1] or asked[2]}`" if asked else ""


def _only_complains(where: str) -> bool:
    """Whether a branch raises, warns or prints and does nothing else, by its two lines."""
    found = re.match(r" at (.+):(\d+) `(.+)`$", where)
    if found is None:
        return False
    body = found[3].partition("#")[0].rpartition(":")[2].strip() or linecache.getline(
        found[1], int(found[2]) + 1
    )
    return re.match(r"\s*(raise|print|warnings|logg\w+)\b", body) is not None


def _written(model: nn.Module, spelling: str) -> str:
    """`` at file:line`` and the source of the first line of the model that is spelled so."""
    if not spelling:
        return ""
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        try:
            lines, start = inspect.getsourcelines(kind.forward)
            file = inspect.getsourcefile(kind.forward) or ""
            names = "|".join(list(inspect.signature(kind.forward).parameters)[1:])
        except (OSError, TypeError, ValueError):
            continue
        for number, line in enumerate(lines if file and not is_library(file) else ()):
            if re.search(spelling.replace("INPUT", f"(?:{names})"), line):
                return f" at {file}:{start + number} `{line.strip()}`"
    return ""


def randomness(graph: fx.Graph, output: str) -> str:
    """The message for scores that change from call to call; empty if no operator is to blame."""
    for node in graph.nodes:
        if node.op != "call_function" or not is_random(node):
            continue
        if "dropout" in str(node.target):
            remedy = (
                "F.dropout(x, p) drops in eval mode too: pass training=self.training, or use "
                "nn.Dropout"
            )
        elif any(word in str(node.target) for word in ("uniform", "normal")):
            remedy = (
                "make layers and parameters in __init__, where they keep their weights; draw "
                "random numbers only in training: `if self.training:`"
            )
        else:
            remedy = "draw random numbers only in training: `if self.training:`"
        return (
            f"output {output!r} depends on randomness, also in eval mode: {located(node)} draws "
            f"random numbers. What to change: {remedy}."
        )
    return ""


def is_random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers."""
    if str(node.target).startswith("aten.dropout"):
        return len(node.args) > 2 and node.args[2] is True
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags and "attention" not in str(node.target)


def number_read(graph: fx.Graph) -> str:
    """The message for a Python number of a feature that scores hang on; empty if there is none.

    One that only sizes are made of is none: ``ids[:, : int(lengths.max())]`` leaves out padding.
    """
    for node in graph.nodes:
        if node.op != "call_function" or "_local_scalar_dense" not in str(node.target):
            continue
        features = _features_of(node)
        if features and _weighs(node):
            names = ", ".join(map(repr, features))
            return (
                f"{located(node)} makes one Python number of {names}, for all rows of a batch. "
                "What to change: keep it a tensor with a value for each row, x * n.unsqueeze(1) in "
                "place of x * float(n[0]), and torch.where(n > 0, a, b) in place of a choice by "
                "bool(n[0]); a number that is always the same belongs in __init__."
            )
    return ""


def _features_of(node: fx.Node) -> tuple[str, ...]:
    """The features that a value is made of."""
    found, waiting = [], [node]
    seen = {node}
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
                if source.op == "placeholder":
                    found.append(str(source.target))
    return tuple(sorted(found))


#: What takes numbers for the sizes of its result.
_SIZED = Move.SLICE | Move.SPLIT | Move.RESHAPE | Move.EXPAND | Move.REPEAT


def _weighs(number: fx.Node) -> bool:
    """Whether a Python number is more than a size: anything's value is made of it."""
    for user in number.users:
        name = str(user.target).removeprefix("aten.").lstrip("_").split(".")[0]
        if name.startswith(("assert", "sym_constrain", "arange")) or moves(user, _SIZED):
            continue
        if isinstance(user.meta.get("val"), torch.Tensor) or _weighs(user):
            return True
    return False


def mixed_rows(node: fx.Node, output: str) -> str:
    """The message for a score that depends on the other rows: ``node`` is where they first mix."""
    name = str(node.target)
    if "batch_norm" in name:
        why = "normalizes by the batch's own mean and variance"
        remedy = (
            "keep running statistics: nn.BatchNorm1d with track_running_stats=True, made in "
            "__init__ and trained; F.batch_norm with training=self.training"
        )
    elif any(word in name for word in (".mean", ".sum", ".max", ".amax", ".min", ".var", ".std")):
        why = "reduces over the rows"
        remedy = "reduce over the features (dim=1), or keep a statistic of the training data"
    elif "softmax" in name:
        why = "normalizes over the rows"
        remedy = "give the dimension of the features, or of the candidates within a row"
    elif any(word in name for word in ("attention", "bmm", "matmul", ".mm")):
        why = "multiplies rows with one another"
        remedy = "make the batch the first dimension, as in MultiheadAttention(batch_first=True)"
    elif any(word in name for word in (".sort", ".topk", ".cumsum", ".roll", ".flip")):
        why = "orders the rows, or moves along them"
        remedy = "give the dimension of the sequence or of the features"
    else:
        why = "gives the first rows another value when more rows follow"
        remedy = "score each row from its own features alone"
    return (
        f"output {output!r} depends on the other rows of the batch: {located(node)} {why}. "
        f"What to change: {remedy}."
    )


def located(node: fx.Node) -> str:
    """An operator with its place in the user's code: ``aten.mean.dim (mean) at model.py:12``."""
    facts = facts_of(node)
    where = f" at {facts.source}" if facts.source else ""
    module = f" in {facts.site!r}" if facts.site else ""
    source = ""
    file, _, number = facts.source.rpartition(":")
    if number.isdigit():
        line = linecache.getline(file, int(number)).strip()
        source = f" `{line}`" if line else ""
    return f"{node.target} ({node.name}){module}{where}{source}"


def user_line(error: BaseException) -> str:
    """`` at file:line`` and the source of the innermost frame outside torch and rankc."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not is_library(frame.filename):
            source = f" `{frame.line}`" if frame.line else ""
            return f" at {frame.filename}:{frame.lineno}{source}"
    for found in reversed(re.findall(r'File "([^"]+)", line (\d+)', str(error))):
        if not is_library(found[0]):
            source = linecache.getline(found[0], int(found[1])).strip()
            return f" at {found[0]}:{found[1]}" + (f" `{source}`" if source else "")
    return ""


def is_library(filename: str) -> bool:
    """Whether a frame is torch's or rankc's own, not the user's."""
    return filename.startswith(_LIBRARIES)
