"""What damage a plan may do on soft labels, so that it passes on rows that prove."""

from __future__ import annotations

import math

from scipy.stats import norm


def rows_to_use(share: float, limit: float, entropy: float, confidence: float) -> int:
    """How many rows must judge so that a plan may use a share of the budget; see `allowance`."""
    z = float(norm.ppf(0.5 + confidence / 2.0))
    per_row = 2.0 * z * z * share / (max(entropy, 1e-12) * limit)
    return math.ceil(per_row / (1.0 - share) ** 2)


def allowance(
    limit: float,
    rows: int,
    entropy: float,
    confidence: float,
    estimate: float = 0.0,
    margin: float = 0.0,
) -> float:
    """The soft damage whose upper confidence bound, once labels are looked at, is at the limit.

    With labels a shift δ of the logits moves the loss by (p − y)·δ + p(1 − p)·δ²/2 per row. The
    second term is the soft damage d (times the entropy H); the first has mean zero for a calibrated
    model and variance p(1 − p)·δ². A program that already differs by an estimate e with margin m
    has the bound e + d + √(m² + z²·2d / (N·H)) on N rows. Solved for d.

    Args:
        limit: The budget: largest upper bound of ΔNE.
        rows: How many rows will judge.
        entropy: The original's mean log loss, in nats.
        confidence: Two-sided, of the interval.
        estimate: ΔNE of what the damage is added to.
        margin: Half the width of its interval.
    """
    room = limit - estimate
    if room <= margin:
        return 0.0
    z = float(norm.ppf(0.5 + confidence / 2.0))
    noise = z * z * 2.0 / (max(rows, 1) * max(entropy, 1e-12))
    half = room + noise / 2.0
    return half - math.sqrt(max(half * half - room * room + margin * margin, 0.0))
