"""Which ids a feature takes, shaped to compare with them."""

from __future__ import annotations

import numpy as np
from rankc.optimizer.data.limits import id_limits, id_lows, taken
from rankc.optimizer.ir.signature import Feature, FeatureKind


def test_limits_broadcast_over_the_ids() -> None:
    feature = Feature(
        "ids", FeatureKind.ID, "int64", ("batch", 2), cardinalities=(5, 7), lows=(0, 1)
    )
    ids = np.zeros((3, 2), np.int64)
    assert (ids < id_limits(feature)).shape == (3, 2)
    assert id_limits(feature).flatten().tolist() == [5, 7]
    assert id_lows(feature).flatten().tolist() == [0, 1]


def test_missing_values_are_taken_where_the_feature_has_them() -> None:
    feature = Feature("x", FeatureKind.DENSE, "float32", ("batch",), missing=("nan",))
    assert taken(feature, np.array([1.0, np.nan], np.float32)).tolist() == [False, True]
