"""The example a model is captured with: its arguments' names, its tensors, its rows."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Collection, Iterable, Mapping, Sequence
from inspect import Parameter
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..optimizer.data.delimiters import Ragged, row_count
from ..optimizer.data.ragged import bounds_of, delimiter_of, take
from ..optimizer.errors import CaptureError, SignatureError
from ..optimizer.ir.structure import Structure

#: Example rows during capture; an odd number, so that it isn't mistaken for a width.
_EXAMPLE_ROWS = 23
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what spreads it over devices."""
    while isinstance(model, (nn.DataParallel, DistributedDataParallel)):
        model = model.module
    return model


def forward_arguments(model: nn.Module, example: Any = None) -> tuple[str, ...]:
    """The names of what ``forward`` takes.

    Args:
        model: The model.
        example: How it is called, which names what ``*args`` and ``**kwargs`` take: by place and
            by key. What the example doesn't use of them is left out.

    Raises:
        CaptureError: Only the example would tell the names and there is none, or TorchScript.
    """
    model = unwrapped(model)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except ValueError as error:
        raise CaptureError(
            f"{type(model).__name__} doesn't say what its forward takes, as TorchScript modules "
            "don't. Capture the Python module it was made from, or wrap it in a module whose "
            "forward names its arguments."
        ) from error
    names = [p.name for p in parameters if p.kind not in _VARIABLE]
    open_ended = {p.kind: p for p in parameters if p.kind in _VARIABLE}
    by_key = Parameter.VAR_KEYWORD in open_ended and isinstance(example, Mapping)
    if by_key and (not names or set(names) & set(example)):
        return (*names, *(key for key in example if key not in names))
    several = open_ended.get(Parameter.VAR_POSITIONAL)
    if several is not None and example is not None:
        plain = isinstance(example, (tuple, list)) and not hasattr(example, "_fields")
        given, taken = len(example) if plain else 1, len(_by_place(parameters))
        first = [f"{several.name}_{i}" for i in range(given - taken)]
        return (*names[:taken], *first, *names[taken:])
    if open_ended and not names:
        raise CaptureError(
            f"forward of {type(model).__name__} takes {' and '.join(map(str, open_ended.values()))}"
            "; its inputs have no names. Give an example of a call, inputs=(…) or inputs={…}, or "
            "wrap the model in a module whose forward names its arguments."
        )
    return tuple(names)


def arguments_by_place(
    model: nn.Module, arguments: Sequence[str], example: Any
) -> tuple[tuple[str, ...], ...]:
    """Which of the arguments, the first ones, are given by place: how to call, best first.

    Hooks and decorators see a call as it is made, so that the model is called as the example was
    given: a tuple by place, a dict by name. The other way is tried where the model refuses the
    first; what can't be given by name never is.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    several = next((p.name for p in parameters if p.kind is Parameter.VAR_POSITIONAL), "")
    least = sum(p.kind is Parameter.POSITIONAL_ONLY for p in parameters)
    if several and f"{several}_0" in arguments:
        least = max(i + 1 for i, n in enumerate(arguments) if n.startswith(f"{several}_"))
    named = {p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    most = next((i for i, name in enumerate(arguments) if name in named), len(arguments))
    if not several and any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        most = min(most, len(_by_place(parameters)))
    counts = (least, max(least, most))
    if not isinstance(example, Mapping):
        counts = counts[::-1]
    return tuple(dict.fromkeys(tuple(arguments[:count]) for count in counts))


def _by_place(parameters: Iterable[Parameter]) -> list[str]:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds]


def example_of(model: nn.Module, inputs: Any) -> Any:
    """The example given, or the one the model makes.

    Raises:
        CaptureError: There is neither.
    """
    if inputs is not None:
        return inputs
    make = getattr(model, "example_inputs", None)
    if make is None:
        raise CaptureError(
            f"{type(model).__name__} needs an example to be captured: give inputs=(…) as the model "
            "takes them, give data=, or add an example_inputs() method to the model."
        )
    return make() if callable(make) else make


def example_tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The example's tensors, which must have one row each per scored row."""
    leaves = {name: torch.as_tensor(value) for name, value in found.items()}
    if not leaves:
        raise SignatureError("the example holds no tensors.")
    for name, leaf in leaves.items():
        if leaf.is_nested:
            raise SignatureError(
                f"input {name!r} of the example is a NestedTensor, which ONNX has no form for. "
                "Pass its rows padded to one length, x.to_padded_tensor(0), and their lengths."
            )
        if leaf.layout is not torch.strided:
            raise SignatureError(
                f"input {name!r} of the example is {str(leaf.layout).removeprefix('torch.')}. Pass "
                "ids and values as two padded tensors, or x.to_dense()."
            )
        if leaf.device.type != "cpu":
            raise SignatureError(
                f"input {name!r} of the example is on {leaf.device}; models are captured on the "
                "CPU. Pass x.cpu()."
            )
        if leaf.dim() == 0:
            raise SignatureError(
                f"input {name!r} of the example is a single number. Give it as a Python number, "
                "which becomes a constant of the program, or as a tensor of one value per row."
            )
    return leaves


def delimited(leaves: Mapping[str, Tensor], ragged: Sequence[Ragged]) -> tuple[Ragged, ...]:
    """Which of the example's tensors say where the rows of others begin, if that explains all.

    Args:
        leaves: The example's tensors.
        ragged: What says it.

    Raises:
        SignatureError: No rows, or numbers of rows that no delimiter explains.
    """
    explained = {name for one in ragged for name in (one.delimiter, *one.values)}
    sizes = {name: len(leaf) for name, leaf in leaves.items() if name not in explained}
    rows = row_count(leaves, ragged)
    if rows == 0 or (not ragged and 0 in sizes.values()):
        raise SignatureError("the example has no rows.")
    odd = any(size != rows for size in sizes.values())
    if odd or len({one.rows(leaves) for one in ragged}) > 1:
        sizes = {name: len(leaf) for name, leaf in leaves.items()}
        raise SignatureError(
            f"the example's inputs have different numbers of rows: {sizes}. The first dimension "
            "of every input is the row; what all rows share belongs in a buffer of the model. Ids "
            "whose number differs from row to row need offsets or lengths, a vector of integers, "
            "among the inputs."
        )
    return tuple(ragged)


def as_rows(
    leaves: Mapping[str, Tensor], ragged: Sequence[Ragged], widths: Collection[int] = ()
) -> dict[str, Tensor]:
    """The example's rows, repeated to a batch that can't be mistaken for another size.

    The last row gets more ids where their number could be: the number of rows, a width, or 0 or
    1, which torch.export takes for constants.

    Args:
        leaves: The example's tensors.
        ragged: Which of them delimit the rows of which.
        widths: Sizes of the model's weights.
    """
    known = {*widths, *(size for leaf in leaves.values() for size in leaf.shape[1:]), 0, 1}
    size = next(size for size in count(_EXAMPLE_ROWS, 2) if size not in known)
    rows = take(leaves, ragged, torch.arange(size) % row_count(leaves, ragged))
    known |= {size, size + 1}
    for one in ragged:
        held = len(rows[one.values[0]])
        extra = next(more for more in count() if held + more not in known)
        if extra == 0:
            continue
        lengths = bounds_of(one, rows).diff()
        lengths[-1] += extra
        rows[one.delimiter] = delimiter_of(one, lengths, rows[one.delimiter].dtype)
        for name in one.values:
            values = rows[name]
            last = values[-1:] if held else values.new_zeros(1, *values.shape[1:])
            rows[name] = torch.cat([values, last.expand(extra, *values.shape[1:])])
    return rows


def short_names(
    structure: Structure, leaves: dict[str, Tensor]
) -> tuple[Structure, dict[str, Tensor]]:
    """Drops the one argument's name from in front of the names of what it holds."""
    names = list(leaves)
    prefixes = {name.split("_", 1)[0] for name in names}
    template = structure.to_json()
    if len(template["keys"]) != 1 or len(names) < 2 or len(prefixes) != 1:
        return structure, leaves
    prefix = template["keys"][0] + "_"
    short = {name: name.removeprefix(prefix) for name in names}
    valid = all(
        s.isidentifier() and not keyword.iskeyword(s) and s != "self" for s in short.values()
    )
    if not valid or len(set(short.values())) != len(names):
        return structure, leaves
    return structure.rename(short), {short[name]: leaf for name, leaf in leaves.items()}
