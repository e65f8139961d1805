"""A measure for rankc that lives in a package of its own: expected revenue at the top."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import rankc


class Revenue(rankc.Measure):
    """Bids of the three best scored of each request, times whether they were clicked."""

    name: ClassVar[str] = "revenue-at-3"
    columns: ClassVar[tuple[str, ...]] = ("bid",)
    groups: ClassVar[bool] = True
    labels: ClassVar[bool] = True

    def values(self, rows: Any) -> Any:
        """What each row brings in."""
        return np.where(rows.top(3), rows.columns["bid"] * rows.labels, 0.0)


class NotANumber(rankc.Measure):
    """A measure with a fault."""

    name: ClassVar[str] = "not-a-number"

    def values(self, rows: Any) -> Any:
        """NaN in row 7."""
        return np.where(np.arange(len(rows.scores)) == 7, np.nan, rows.probabilities)
