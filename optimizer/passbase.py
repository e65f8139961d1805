"""What a pass is: a frozen dataclass whose fields are its options."""

from __future__ import annotations

import ast
import dataclasses
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .errors import PipelineError
from .ir.forms import Form

if TYPE_CHECKING:
    from .context import PassContext
    from .ir.program import Program

_SPEC = re.compile(r"^(?P<name>[a-z0-9][a-z0-9-]*)\s*(?:\{(?P<options>.*)\})?$", re.DOTALL)


class Exactness(StrEnum):
    """What a pass promises about the numbers; the pipeline holds it to that."""

    #: Bit-equal outputs.
    EXACT = "exact"
    #: Equal in exact arithmetic; error against an fp64 truth of the original's own size
    #: (`numerics.ROUNDING_SLACK`).
    ROUNDING = "rounding"
    #: Approximate: charged to the error budget, rolled back if over.
    LOSSY = "lossy"
    #: Approximate and needs finetuning; never applied silently.
    TRAINED = "trained"


class Skip(Exception):  # noqa: N818 - it is a decision, not an error
    """Raised by `Pass.check` when there is nothing to do; becomes a Missed remark."""


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a program.

    Subclass as a frozen dataclass. Fields are options and must be numbers, bools, strings or
    tuples of them, with defaults; ``spec()`` and ``parse()`` round-trip them.

    Class attributes:
        name: The pass's name in pipelines: its file's name with dashes.
        exactness: What it promises about the numbers.
        requires: The form a program must be in.
        produces: The form a program is in afterwards, if it changes.
        idempotent: Whether a second run right after changes nothing.
        keeps_contract: Whether callers see the same features and outputs as before.
        realises: The kind of the sites whose placed formats it realises, ``"linear"`` or
            ``"table"``: if it is undone, they are as they were.
        places: Whether it decides formats that other passes realise.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness] = Exactness.EXACT
    requires: ClassVar[Form] = Form.CANONICAL
    produces: ClassVar[Form | None] = None
    idempotent: ClassVar[bool] = True
    keeps_contract: ClassVar[bool] = True
    realises: ClassVar[str] = ""
    places: ClassVar[bool] = False

    def check(self, program: Program, ctx: PassContext) -> None:  # noqa: B027 - optional hook
        """Raises `Skip` with the reason when the pass can't apply to this program or target."""

    @abstractmethod
    def run(self, program: Program, ctx: PassContext) -> None:
        """Rewrites the program in place. It must be valid after, not during."""

    def spec(self) -> str:
        """The pass as pipeline text: its name and the options that differ from the defaults."""
        options = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                options.append(f"{item.name}={value!r}")
        return f"{self.name}{{{','.join(options)}}}" if options else self.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """The pass that ``spec()`` wrote.

        Raises:
            PipelineError: Malformed text, or an option the pass doesn't have.
        """
        name, options = split_spec(text)
        if name != cls.name:
            raise PipelineError(f"{text!r} names {name!r}, not {cls.name!r}")
        known = {item.name: item for item in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in options.items():
            if key not in known:
                raise PipelineError(
                    f"{cls.name} has no option {key!r}; it has {sorted(known) or 'none'}"
                )
            values[key] = _coerce(cls.name, key, value, known[key].default)
        return cls(**values)


def is_name(text: str) -> bool:
    """Whether a pass may be called that."""
    found = _SPEC.match(text)
    return found is not None and found["name"] == text


def split_spec(text: str) -> tuple[str, dict[str, Any]]:
    """A spec's name and its options.

    Raises:
        PipelineError: Malformed text.
    """
    found = _SPEC.match(text.strip())
    if found is None:
        raise PipelineError(f"{text!r} is no pass; write it as name or name{{option=value}}")
    options: dict[str, Any] = {}
    body = (found["options"] or "").strip()
    for part in split_top_level(body) if body else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise PipelineError(f"option {part!r} of {found['name']} has no value")
        if key.strip() in options:
            raise PipelineError(f"option {key.strip()!r} of {found['name']} is given twice")
        options[key.strip()] = _literal(value.strip())
    return found["name"], options


def split_top_level(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    parts, depth, current, quote, escaped = [], 0, "", "", False
    for char in text:
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "({[":
            depth += 1
        elif char in ")}]":
            depth -= 1
        if char == "," and depth == 0 and not quote:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return [*parts, current.strip()] if current.strip() else parts


def _literal(text: str) -> Any:
    """A Python literal, or the text itself where it is none (``mode=sum``)."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _coerce(pass_name: str, key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of the option's default.

    Raises:
        PipelineError: A value of another type.
    """
    if isinstance(default, bool) and isinstance(value, bool):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, float) and value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if default is None or type(value) is type(default):
        return value
    raise PipelineError(
        f"option {key} of {pass_name} is a {type(default).__name__} such as {default!r}, "
        f"got {value!r}"
    )
