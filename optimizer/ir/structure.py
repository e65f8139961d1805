"""How a user's nested inputs and outputs map to a flat list of named tensors.

A program's graph takes and returns flat tensors. Users call models with dicts, lists, named tuples
and dataclasses, by position or by keyword. A `Structure` remembers that nesting; it is plain data
(JSON), so an artifact can rebuild a model's own output type without torch.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from ..errors import SignatureError
from . import keyed

_SCALARS = (type(None), bool, int, float, str)
#: How deep a nesting that is read from a file may be.
_DEEPEST = 64
#: ``module:Class``; a class inside a function has ``<locals>`` in its name.
_CLASS_NAME = re.compile(r"[\w.]+:[\w.<>]+")

#: Classes met in this process: one defined inside a function can't be found by its name.
_CLASSES: dict[str, type] = {}


@dataclass(frozen=True)
class Leaf:
    """A tensor's place."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A value that isn't a tensor: it is part of the call, not of the data."""

    value: Any


Key = str | int


@dataclass(frozen=True)
class Branch:
    """A container.

    ``kind`` is dict, list, tuple, or ``module:Class`` of a named tuple, of a dataclass or of one of
    torchrec's tensors (`keyed`). ``keys`` are the dict's keys or the fields' names, empty for lists
    and tuples.
    """

    kind: str
    keys: tuple[Key, ...]
    items: tuple[Leaf | Constant | Branch, ...]


Template = Leaf | Constant | Branch


@dataclass(frozen=True)
class Structure:
    """A nesting of named leaves.

    Attributes:
        template: The nesting.
    """

    template: Template

    @classmethod
    def of(cls, value: Any, root: str, is_leaf: Callable[[Any], bool]) -> Structure:
        """The structure of ``value``.

        Args:
            value: Nested dicts, lists, tuples, named tuples and dataclasses of tensors.
            root: The name of a lone leaf, and the prefix where a path has no name of its own.
            is_leaf: Tells a tensor from a container.

        Raises:
            SignatureError: An object that is neither a known container nor a tensor.
        """
        return cls(_build(value, (), _Names(root), is_leaf))

    @property
    def names(self) -> tuple[str, ...]:
        """The leaves' names, in order."""
        return tuple(leaf.name for leaf in _leaves(self.template))

    def rename(self, names: Mapping[str, str]) -> Structure:
        """A copy with leaves renamed."""
        return Structure(_rename(self.template, names))

    def keep(self, names: Collection[str]) -> Structure:
        """The structure less other leaves.

        Dicts lose their keys. Where a list, a tuple or a class would lose something, what is left
        would be counted otherwise: all becomes one dict of leaves by name, or the one leaf left.
        """
        kept = _keep(self.template, names)
        if kept is not None:
            return Structure(kept)
        left = tuple(name for name in self.names if name in names)
        leaves = tuple(map(Leaf, left))
        return Structure(leaves[0] if len(leaves) == 1 else Branch("dict", left, leaves))

    def with_input(
        self, name: str, arguments: tuple[str, ...]
    ) -> tuple[Structure, tuple[str, ...]]:
        """Arguments with one more leaf: in the one dict that is all of them, or by itself.

        Args:
            name: The leaf.
            arguments: The names of the arguments, which are this structure's keys.
        """
        assert isinstance(self.template, Branch)
        inner = self.template.items[0]
        if len(arguments) == 1 and isinstance(inner, Branch) and inner.kind == "dict":
            whole = replace(self.template, items=(_plus(inner, name),))
            return Structure(whole), arguments
        return Structure(_plus(self.template, name)), (*arguments, name)

    def with_output(self, name: str) -> Structure:
        """The structure with one more leaf: a dict's key, or the last of a list or a tuple.

        A lone leaf becomes a tuple of both, and what is of a class a dict.
        """
        if isinstance(self.template, Branch) and self.template.kind in ("dict", "list", "tuple"):
            return Structure(_plus(self.template, name))
        if isinstance(self.template, Branch):
            names = (*self.names, name)
            return Structure(Branch("dict", names, tuple(map(Leaf, names))))
        return Structure(Branch("tuple", (), (self.template, Leaf(name))))

    def flatten(self, value: Any, optional: Collection[str] = ()) -> dict[str, Any]:
        """The leaves of ``value``, which must be nested like this structure.

        Args:
            value: Nested tensors.
            optional: Names of leaves that may be missing from a dict or from the arguments.

        Raises:
            SignatureError: A key, position or field is missing or unexpected; the message names it.
        """
        found: dict[str, Any] = {}
        _match(self.template, value, "inputs", found, optional)
        return found

    def unflatten(self, leaves: Mapping[str, Any]) -> Any:
        """The nested value with these leaves."""
        return _restore(self.template, leaves)

    def to_json(self) -> Any:
        """Plain dicts and lists; `from_json` reads them back."""
        return _to_json(self.template)

    @classmethod
    def from_json(cls, data: Any) -> Structure:
        """The structure that `to_json` wrote."""
        return cls(_from_json(data))


class _Names:
    """Gives every leaf a valid, unique name made of its path."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.taken: set[str] = set()

    def of(self, path: tuple[str, ...]) -> str:
        text = "_".join(path) if path else self.root
        name = re.sub(r"\W+", "_", text).strip("_") or self.root
        if not name.isidentifier() or keyword.iskeyword(name) or name == "self":
            name = f"{self.root}_{name}"
        unique, count = name, 1
        while unique in self.taken:
            count += 1
            unique = f"{name}_{count}"
        self.taken.add(unique)
        return unique


def _class_name(value: Any) -> str:
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    _CLASSES[name] = kind
    return name


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _children(value: Any) -> tuple[str, tuple[Key, ...], list[Any]] | None:
    """Kind, keys and items of a container, or None."""
    jagged = keyed.taken_apart(value)
    if jagged is not None:
        return jagged
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, (str, int))]
        if odd:
            raise SignatureError(f"a dict's keys must be strings or integers, got {odd[0]!r}.")
        return "dict", tuple(value), list(value.values())
    if _is_named_tuple(value):
        return _class_name(value), tuple(value._fields), list(value)
    if isinstance(value, list):
        return "list", (), value
    if isinstance(value, tuple):
        return "tuple", (), list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
        return _class_name(value), names, [getattr(value, name) for name in names]
    return None


def _build(
    value: Any, path: tuple[str, ...], names: _Names, is_leaf: Callable[[Any], bool]
) -> Template:
    if is_leaf(value):
        return Leaf(names.of(path))
    if isinstance(value, _SCALARS):
        return Constant(value)
    parts = _children(value)
    if parts is None:
        raise SignatureError(
            f"{'.'.join(path) or names.root} is a {type(value).__name__}, which is neither a "
            "tensor nor a dict, list, tuple, named tuple or dataclass of tensors. "
            "Pass the tensors it holds, or make it a dataclass."
        )
    kind, keys, items = parts
    labels = keys or tuple(range(len(items)))
    return Branch(
        kind,
        keys,
        tuple(
            _build(item, (*path, str(label)), names, is_leaf)
            for label, item in zip(labels, items, strict=True)
        ),
    )


def _leaves(template: Template) -> Iterator[Leaf]:
    if isinstance(template, Leaf):
        yield template
    elif isinstance(template, Branch):
        for item in template.items:
            yield from _leaves(item)


def _rename(template: Template, names: Mapping[str, str]) -> Template:
    if isinstance(template, Leaf):
        return Leaf(names.get(template.name, template.name))
    if isinstance(template, Branch):
        items = tuple(_rename(item, names) for item in template.items)
        return Branch(template.kind, template.keys, items)
    return template


def _keep(template: Branch | Leaf | Constant, names: Collection[str]) -> Template | None:
    """The template with other leaves taken out of its dicts; None if they are elsewhere too."""
    if isinstance(template, Leaf):
        return template if template.name in names else None
    if isinstance(template, Constant):
        return template
    keys, items = [], []
    for key, item in zip(template.keys or range(len(template.items)), template.items, strict=True):
        leaves = list(_leaves(item))
        if template.kind == "dict" and leaves and not any(leaf.name in names for leaf in leaves):
            continue
        kept = _keep(item, names)
        if kept is None:
            return None
        keys.append(key)
        items.append(kept)
    return Branch(template.kind, tuple(keys) if template.keys else (), tuple(items))


def _match(
    template: Template, value: Any, where: str, found: dict[str, Any], optional: Collection[str]
) -> None:
    if isinstance(template, Leaf):
        found[template.name] = value
        return
    if isinstance(template, Constant):
        if not isinstance(value, _SCALARS) or value != template.value:
            raise SignatureError(
                f"{where} was {template.value!r} when the model was captured and is part of the "
                f"program; got {value!r}. Capture again with that value."
            )
        return
    for label, item, child in _align(template, value, where, optional):
        _match(item, child, f"{where}{label}", found, optional)


def _align(
    template: Branch, value: Any, where: str, optional: Collection[str]
) -> Iterator[tuple[str, Template, Any]]:
    parts = _children(value)
    if parts is None:
        raise SignatureError(f"{where} should be a {template.kind}, got {type(value).__name__}.")
    _, keys, items = parts
    if template.keys:
        given = dict(zip(keys, items, strict=True)) if keys else {}
        if not keys and len(items) == len(template.keys):
            given = dict(zip(template.keys, items, strict=True))
        pairs = list(zip(template.keys, template.items, strict=True))
        left_out = {key for key, item in pairs if key not in given and _may_miss(item, optional)}
        missing = [key for key in template.keys if key not in given and key not in left_out]
        extra = [key for key in given if key not in template.keys]
        if missing or extra:
            raise SignatureError(
                f"{where} has the wrong names: "
                + "; ".join(
                    f"{what} {sorted(which, key=str)}"
                    for what, which in (("missing", missing), ("unexpected", extra))
                    if which
                )
                + f". Expected {list(template.keys)}."
            )
        for key, item in pairs:
            if key not in left_out:
                yield f"[{key!r}]", item, given[key]
        return
    if keys and template.kind in ("list", "tuple"):
        raise SignatureError(f"{where} should be a {template.kind}, got {type(value).__name__}.")
    if len(items) != len(template.items):
        raise SignatureError(f"{where} should have {len(template.items)} items, got {len(items)}.")
    for index, (item, child) in enumerate(zip(template.items, items, strict=True)):
        yield f"[{index}]", item, child


def _plus(template: Branch, name: str) -> Branch:
    keys = (*template.keys, name) if template.kind == "dict" else ()
    return Branch(template.kind, keys, (*template.items, Leaf(name)))


def _may_miss(template: Template, optional: Collection[str]) -> bool:
    """Whether all leaves of a part may be missing."""
    names = [leaf.name for leaf in _leaves(template)]
    return bool(names) and all(name in optional for name in names)


def _restore(template: Template, leaves: Mapping[str, Any]) -> Any:
    if isinstance(template, Leaf):
        return leaves[template.name]
    if isinstance(template, Constant):
        return template.value
    items = [_restore(item, leaves) for item in template.items]
    if template.kind == "list":
        return items
    if template.kind == "tuple":
        return tuple(items)
    if template.kind == "dict":
        return dict(zip(template.keys, items, strict=True))
    return _rebuild(template.kind, template.keys, items)


def _rebuild(kind: str, keys: Sequence[Key], items: Sequence[Any]) -> Any:
    """An instance of the user's class, or a plain dict where the class wasn't imported."""
    values = {str(key): item for key, item in zip(keys, items, strict=True)}
    if kind in keyed.KINDS:
        made = keyed.put_together(kind, keys, items)
        return values if made is None else made
    found = _CLASSES.get(kind) or _find_class(kind)
    if found is None or not _takes(found, values):
        return values
    if not dataclasses.is_dataclass(found):
        return found(**values)
    # A field with init=False is no argument of the class; it is set afterwards.
    taken = {field.name for field in dataclasses.fields(found) if field.init}
    made = found(**{name: item for name, item in values.items() if name in taken})
    for name in values.keys() - taken:
        object.__setattr__(made, name, values[name])
    return made


def _find_class(kind: str) -> type | None:
    """A class of a module that was imported already: a name from a file imports nothing."""
    module, _, name = kind.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # Not getattr: a module's or a metaclass's own may run code.
        known = vars(found) if isinstance(found, (type, ModuleType)) else {}
        found = known.get(part)
    return found if isinstance(found, type) else None


def _takes(found: type, values: Mapping[str, Any]) -> bool:
    """Whether it is a dataclass or a named tuple of just these fields, so that it can be called."""
    if dataclasses.is_dataclass(found):
        return {field.name for field in dataclasses.fields(found)} == values.keys()
    fields = getattr(found, "_fields", None)
    return issubclass(found, tuple) and isinstance(fields, tuple) and set(fields) == values.keys()


def _to_json(template: Template) -> Any:
    if isinstance(template, Leaf):
        return {"leaf": template.name}
    if isinstance(template, Constant):
        return {"constant": template.value}
    return {
        "kind": template.kind,
        "keys": list(template.keys),
        "items": [_to_json(item) for item in template.items],
    }


def _from_json(data: Any, depth: int = 0) -> Template:
    """The template that `_to_json` wrote.

    Raises:
        TypeError: A name that is no text.
        ValueError: It is none.
    """
    if not isinstance(data, Mapping) or depth > _DEEPEST:
        raise ValueError(f"{reprlib.repr(data)} is no nesting of tensors")
    if "leaf" in data:
        return Leaf(_text(data["leaf"]))
    if "constant" in data:
        if not isinstance(data["constant"], _SCALARS):
            raise ValueError(f"{reprlib.repr(data['constant'])} is no constant")
        return Constant(data["constant"])
    kind, keys = _text(data["kind"]), tuple(data["keys"])
    items = tuple(_from_json(item, depth + 1) for item in data["items"])
    plain = kind in ("dict", "list", "tuple")
    if not plain and not _CLASS_NAME.fullmatch(kind):
        raise ValueError(f"{reprlib.repr(kind)} is no container")
    named = kind not in ("list", "tuple")
    if len(keys) != (len(items) if named else 0) or len({*keys}) != len(keys):
        raise ValueError(f"a {kind} of {len(items)} has the keys {reprlib.repr(keys)}")
    if not all(isinstance(key, (str, int)) for key in keys):
        raise ValueError(f"a {kind} has the keys {reprlib.repr(keys)}")
    return Branch(kind, keys, items)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{reprlib.repr(value)} is no name")
    return value


def bind_arguments(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Positional and keyword arguments as one dict, in the order of ``names``."""
    if len(args) > len(names):
        raise SignatureError(
            f"the model takes {len(names)} arguments {list(names)}, got {len(args)}."
        )
    bound = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in bound:
            raise SignatureError(f"argument {name!r} was given twice.")
        bound[name] = value
    return bound
