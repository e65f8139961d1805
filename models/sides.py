"""Flat rows as two-sided models take them: the user's features, the item's, and a history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from .encoding import UNKNOWN
from .rows import Ints, RankingData, Rows


@dataclass(frozen=True)
class Sides:
    """Which columns of some data describe whom.

    Attributes:
        user_ids: positions of the user's id columns.
        item_ids: positions of the item's id columns, the item itself first.
        user_dense: positions of the user's dense columns.
        item_dense: positions of the item's dense columns.
        history: positions of the columns that hold the history.
        cardinalities: rows of the table of each id column.
    """

    user_ids: tuple[int, ...]
    item_ids: tuple[int, ...]
    user_dense: tuple[int, ...]
    item_dense: tuple[int, ...]
    history: tuple[int, ...]
    cardinalities: tuple[int, ...]

    @property
    def user_cardinalities(self) -> tuple[int, ...]:
        """Rows of the user's tables."""
        return tuple(self.cardinalities[column] for column in self.user_ids)

    @property
    def item_cardinalities(self) -> tuple[int, ...]:
        """Rows of the item's tables."""
        return tuple(self.cardinalities[column] for column in self.item_ids)

    def __call__(self, dense: Tensor, ids: Tensor) -> tuple[dict[str, Tensor]]:
        """The arguments of `EarlyStage` and `TwoSided`, from `[B, n_dense]` and `[B, n_ids]`."""
        features = {
            "user_dense": dense[:, list(self.user_dense)],
            "user_ids": ids[:, list(self.user_ids)],
            "user_history": ids[:, list(self.history)],
            "item_dense": dense[:, list(self.item_dense)],
            "item_ids": ids[:, list(self.item_ids)],
        }
        return (features,)


def two_sides(
    data: RankingData, item: str, item_names: Sequence[str], history: int
) -> tuple[RankingData, Sides]:
    """Tells the item's columns from the user's, and gives each row its user's latest items.

    Args:
        data: rows in order of time, with a group: the user.
        item: the id column that is the item itself.
        item_names: other columns, ids and dense, that describe the item; the rest is the user's.
        history: how many items a history has; columns that many are added to the ids.
    """
    own = {item, *item_names}
    unknown = own - {*data.id_names, *data.dense_names}
    if unknown:
        raise ValueError(f"no columns {sorted(unknown)} in {data.name}")
    count, place = len(data.id_names), data.id_names.index(item)
    groups = [part.group for part in (data.train, data.test)]
    if groups[0] is None or groups[1] is None:
        raise ValueError(f"{data.name} has no group, so no row has a history")
    items = np.concatenate([data.train.ids[:, place], data.test.ids[:, place]])
    latest = _latest(np.concatenate(groups), items, history)  # type: ignore[arg-type]
    cut = len(data.train)
    ids = [column for column in range(count) if data.id_names[column] in own and column != place]
    dense = range(len(data.dense_names))
    sides = Sides(
        user_ids=tuple(c for c in range(count) if data.id_names[c] not in own),
        item_ids=(place, *ids),
        user_dense=tuple(c for c in dense if data.dense_names[c] not in own),
        item_dense=tuple(c for c in dense if data.dense_names[c] in own),
        history=tuple(range(count, count + history)),
        cardinalities=data.cardinalities,
    )
    rows = data.cardinalities[place]
    more = replace(
        data,
        train=_with_columns(data.train, latest[:cut]),
        test=_with_columns(data.test, latest[cut:]),
        id_names=(*data.id_names, *(f"{item}_before_{i}" for i in range(history))),
        cardinalities=(*data.cardinalities, *[rows] * history),
    )
    return more, sides


def _latest(group: Ints, items: Ints, length: int) -> Ints:
    """For each row the last `length` items of its group before it, the latest first, 0 after."""
    found = np.full((len(items), length), UNKNOWN, dtype=np.int64)
    order = np.argsort(group, kind="stable")
    sorted_group, sorted_items = group[order], items[order]
    for back in range(1, length + 1):
        same = sorted_group[back:] == sorted_group[:-back]
        found[order[back:][same], back - 1] = sorted_items[:-back][same]
    return found


def _with_columns(rows: Rows, columns: Ints) -> Rows:
    return replace(rows, ids=np.concatenate([rows.ids, columns], axis=1))
