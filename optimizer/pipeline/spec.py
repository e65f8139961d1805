"""A pass and its options as text: ``name{option=value}``."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

from ..errors import PipelineError

if TYPE_CHECKING:
    pass

_SPEC = re.compile(r"^(?P<name>[a-z0-9][a-z0-9-]*)\s*(?:\{(?P<options>.*)\})?$", re.DOTALL)


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


def coerce(pass_name: str, key: str, value: Any, default: Any) -> Any:
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
