"""The shape of the Criteo Terabyte data, on which the published models are sized.

The click logs themselves can't be redistributed; only their counts are here.
"""

from __future__ import annotations

DENSE_FEATURES = 13

# Distinct ids per feature as MLPerf's DLRM has them (--max-ind-range=40000000).
# fmt: off
TERABYTE_CARDINALITIES: tuple[int, ...] = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)

# The same, and the ids per feature and row, as MLPerf's multi-hot DLRM-DCNv2 has them.
MULTIHOT_CARDINALITIES: tuple[int, ...] = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
    2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)
MULTIHOT_BAG_SIZES: tuple[int, ...] = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1,
)
# fmt: on


def bounded_cardinalities(
    max_rows: int, cardinalities: tuple[int, ...] = TERABYTE_CARDINALITIES
) -> tuple[int, ...]:
    """Caps every table at `max_rows`: the whole set would take about 90 GiB at 128 columns."""
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, got {max_rows}")
    return tuple(min(rows, max_rows) for rows in cardinalities)
