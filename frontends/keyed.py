"""torchrec's operators in plain torch, while a model is captured.

torchrec calls operators of fbgemm, which no exporter knows, and reads sizes off the values of
lengths, which no graph can. Here the same is computed by ATen, and sizes are taken from the parts
that a ``KeyedJaggedTensor`` was put together of. The captured program is held against the model as
torchrec runs it, as after every route.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..optimizer.errors import CaptureError
from ..optimizer.ir.keyed import keyed_jagged

_TENSORS = "torchrec.sparse.jagged_tensor"
_REGROUP = "torchrec.modules.regroup"


@contextlib.contextmanager
def plain_torchrec() -> Iterator[None]:
    """Inside, torchrec's tensors and fbgemm's operators run as ATen; nothing if they aren't there.

    Raises:
        CaptureError: A form whose sizes only the values tell; what to change.
    """
    tensors: Any = sys.modules.get(_TENSORS)
    with contextlib.ExitStack() as stack:
        if hasattr(torch.ops.fbgemm, "asynchronous_complete_cumsum"):
            for name, compute in _OPERATORS.items():
                operator = _Operator(getattr(torch.ops.fbgemm, name), compute)
                stack.enter_context(mock.patch.object(torch.ops.fbgemm, name, operator))
        if tensors is not None:
            kind = tensors.KeyedJaggedTensor
            sizes = _Sizes(tensors._maybe_compute_length_per_key, kind.__init__)
            for target, name, instead in (
                (kind, "__init__", sizes.remembering()),
                (kind, "__getitem__", lambda self, key: self.to_dict()[key]),
                (kind, "permute", _permute),
                (kind, "split", _split),
                (tensors, "_maybe_compute_length_per_key", sizes.known),
                # Its other branch warns that capture is slow, which it is only for torchrec's own.
                (tensors, "is_non_strict_exporting", lambda: False),
                (tensors, "_all_keys_used_once", lambda keyed_tensors, groups: False),
                (tensors.JaggedTensor, "to_padded_dense", _padded(tensors.JaggedTensor)),
            ):
                stack.enter_context(mock.patch.object(target, name, instead))
        regroup: Any = sys.modules.get(_REGROUP)
        if regroup is not None:
            stack.enter_context(mock.patch.object(regroup.KTRegroupAsDict, "forward", _regroup))
        yield


class _Operator:
    """An operator that computes something else when called; its overloads are as before."""

    def __init__(self, real: Any, compute: Callable[..., Any]) -> None:
        self._real = real
        self._compute = compute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The computation in ATen."""
        return self._compute(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Sizes:
    """How many ids each key has: known of the inputs, and of what a model makes of all of them."""

    def __init__(self, real: Callable[..., Any], init: Callable[..., None]) -> None:
        self._real = real
        self._init = init
        self._seen: list[dict[str, Any]] = []

    def remembering(self) -> Callable[..., None]:
        """The class's constructor, which notes the sizes it is given."""

        def init(tensor: Any, *args: Any, **kwargs: Any) -> None:
            self._init(tensor, *args, **kwargs)
            if tensor._length_per_key is not None:
                sizes = zip(tensor._keys, tensor._length_per_key, strict=True)
                self._seen.append(dict(sizes))

        return init

    def known(self, keys: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """The sizes these keys had before, if they add up to the values; else torchrec's answer."""
        given = dict(zip(_LENGTH_ARGUMENTS, args, strict=False)) | kwargs
        values = given["values"]
        if given["length_per_key"] is not None or values is None:
            return self._real(keys, *args, **kwargs)
        for seen in reversed(self._seen):
            same = set(keys) == set(seen)
            sizes = [seen[key] for key in keys] if same else list(seen.values())
            if len(sizes) == len(keys) and str(sum(sizes)) == str(values.shape[0]):
                return sizes
        return self._real(keys, *args, **kwargs)


_LENGTH_ARGUMENTS = (
    "stride",
    "stride_per_key",
    "variable_stride_per_key",
    "length_per_key",
    "lengths",
    "offsets",
    "values",
)


def _permute(self: Any, indices: Sequence[int], *_: Any, **__: Any) -> Any:
    parts, keys = self.to_dict(), self.keys()
    return keyed_jagged([(keys[index], parts[keys[index]]) for index in indices])


def _split(self: Any, segments: Sequence[int]) -> list[Any]:
    parts, keys = self.to_dict(), iter(self.keys())
    named = [[next(keys) for _ in range(segment)] for segment in segments]
    return [keyed_jagged([(key, parts[key]) for key in group]) for group in named]


def _regroup(self: Any, keyed_tensors: Sequence[Any]) -> dict[str, Tensor]:
    tensors: Any = sys.modules[_TENSORS]
    groups = tensors._regroup_keyed_tensors(keyed_tensors, self._groups)
    return dict(zip(self._keys, self.embedding_cast(groups), strict=True))


def _padded(kind: Any) -> Callable[..., Tensor]:
    real = kind.to_padded_dense

    def to_padded_dense(
        self: Any, desired_length: int | None = None, padding_value: float = 0.0
    ) -> Tensor:
        if desired_length is None:
            raise CaptureError(
                "to_padded_dense() pads to the longest row of the batch, which differs from batch "
                "to batch. Pass the length: to_padded_dense(desired_length=50)."
            )
        padded: Tensor = real(self, desired_length, padding_value)
        return padded

    return to_padded_dense


# --- fbgemm's operators ---------------------------------------------------------------------------


def _complete_cumsum(lengths: Tensor) -> Tensor:
    sums = lengths.cumsum(-1, dtype=lengths.dtype)
    return torch.cat([lengths.new_zeros(*lengths.shape[:-1], 1), sums], -1)


def _inclusive_cumsum(lengths: Tensor) -> Tensor:
    return lengths.cumsum(-1, dtype=lengths.dtype)


def _exclusive_cumsum(lengths: Tensor) -> Tensor:
    return lengths.cumsum(-1, dtype=lengths.dtype) - lengths


def _jagged_to_padded_dense(
    values: Tensor, offsets: Sequence[Tensor], max_lengths: Sequence[int], padding_value: float = 0
) -> Tensor:
    """Rows of ``max_lengths[0]`` values: shorter ones are filled up, longer ones cut."""
    if len(offsets) != 1:
        raise CaptureError(
            f"jagged_to_padded_dense over {len(offsets)} nested lists. Pad one list at a time."
        )
    bounds = offsets[0].to(torch.int64)
    places = bounds[:-1, None] + torch.arange(max_lengths[0], device=values.device)
    inside = places < bounds[1:, None]
    # The row that pads goes in front: an index of it is in range even where there are no values.
    filled = torch.cat([values.new_full((1, *values.shape[1:]), padding_value), values])
    return filled[torch.where(inside, places + 1, torch.zeros_like(places))]


def _jagged_2d_to_dense(values: Tensor, offsets: Tensor, max_sequence_length: int) -> Tensor:
    return _jagged_to_padded_dense(values, [offsets], [max_sequence_length])


def _jagged_1d_to_dense(
    values: Tensor, offsets: Tensor, max_sequence_length: int, padding_value: float
) -> Tensor:
    return _jagged_to_padded_dense(values, [offsets], [max_sequence_length], padding_value)


def _segments(offsets: Tensor, size: Any) -> Tensor:
    """Which row each of ``size`` values belongs to, int64 ``[size]``; offsets with or without end.

    Counts, at every value, the rows that began up to there.
    """
    marks = torch.zeros(size + 1, dtype=torch.int64, device=offsets.device)
    ones = torch.ones_like(offsets, dtype=torch.int64)
    marks = marks.index_put((offsets.to(torch.int64),), ones, accumulate=True)
    return marks.cumsum(0)[:-1] - 1


def _offsets_range(offsets: Tensor, range_size: Any) -> Tensor:
    """Each value's position within its row, ``[range_size]``."""
    starts = offsets.index_select(0, _segments(offsets, range_size))
    return torch.arange(range_size, dtype=offsets.dtype, device=offsets.device) - starts


def _dense_to_jagged(
    dense: Tensor,
    x_offsets: Sequence[Tensor],
    total_L: Any = None,  # noqa: N803, fbgemm's own name
) -> tuple[Tensor, Sequence[Tensor]]:
    """The values within each row's length, one row after another, ``[total_L, …]``."""
    if len(x_offsets) != 1 or total_L is None:
        raise CaptureError(
            "dense_to_jagged gives as many values as the offsets' last value says. Pass total_L, "
            "the number of values of the input: total_L=values.shape[0]."
        )
    bounds = x_offsets[0].to(torch.int64)
    rows, within = _segments(bounds, total_L), _offsets_range(bounds, total_L)
    flat = dense.reshape(-1, *dense.shape[2:])
    return flat.index_select(0, rows * dense.shape[1] + within), x_offsets


def _group_index_select(inputs: Sequence[Tensor], indices: Sequence[Tensor]) -> list[Tensor]:
    return [rows.index_select(0, index) for rows, index in zip(inputs, indices, strict=True)]


_OPERATORS: dict[str, Callable[..., Any]] = {
    "asynchronous_complete_cumsum": _complete_cumsum,
    "asynchronous_inclusive_cumsum": _inclusive_cumsum,
    "asynchronous_exclusive_cumsum": _exclusive_cumsum,
    "jagged_to_padded_dense": _jagged_to_padded_dense,
    "jagged_2d_to_dense": _jagged_2d_to_dense,
    "jagged_1d_to_dense": _jagged_1d_to_dense,
    "dense_to_jagged": _dense_to_jagged,
    "offsets_range": _offsets_range,
    "group_index_select_dim0": _group_index_select,
}
