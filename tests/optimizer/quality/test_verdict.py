"""Verdicts as text and JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rankc.optimizer.quality.budget import Budget
from rankc.optimizer.quality.gate import judge
from rankc.optimizer.quality.verdict import Verdict
from scipy import special

ROWS = 20_000


def judged(noise: float | NDArray[np.float64], limits: Budget, **more: Any) -> Verdict:
    """The verdict on a calibrated model whose logits moved by some noise."""
    random = np.random.default_rng(0)
    user = random.integers(0, ROWS // 20, ROWS)
    logits = -1.0 + 1.4 * random.normal(size=ROWS)
    labels = (random.random(ROWS) < special.expit(logits)).astype(np.float64)
    after = logits + noise * random.normal(size=ROWS)
    return judge({"ctr": logits}, {"ctr": after}, {"ctr": labels}, limits, group=user, **more)


def test_verdicts_survive_json() -> None:
    limits = Budget(auc=1e-3, gauc=1e-3, calibration=0.01, recall_at=(3, 0.9))
    occupation = np.array([f"job{row % 20}" for row in range(ROWS)])
    region = np.where(np.arange(ROWS) < 25, "tiny", "rest")
    verdict = judged(
        np.where(occupation == "job7", 1.0, 0.002),
        limits,
        cohorts={"occupation": occupation, "region": region},
    )
    assert {"fail", "pass", "unknown"} <= {cohort.status.value for cohort in verdict.cohorts}
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert Verdict.from_json(json.loads(text)) == verdict
    assert hash(Verdict.from_json(json.loads(text))) == hash(verdict)


def test_unverified_is_in_capitals_and_survives_json() -> None:
    verdict = Verdict.unverified("no data was given")
    assert str(verdict) == "UNVERIFIED: no rows to measure on\n  - no data was given"
    assert (verdict.labels, verdict.rows, verdict.worst_delta_ne) == ("none", 0, None)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_a_verdict_reads_in_a_few_lines() -> None:
    text = str(judged(0.01, Budget(ne=5e-4), cohorts={"half": np.arange(ROWS) % 2}))
    head, task, blocks, cohort = text.splitlines()
    assert head == "PASS on 20,000 rows (labels, 95 % confidence)"
    assert re.match(r"  ctr: ΔNE [+-]0\.\d{4} % \[.*\], logit shift 0\.00\d+ of their", task)
    assert re.match(r"  ctr by time: ΔNE ([+-]0\.\d{3},? ){8}% in 8 blocks of 2,500 rows", blocks)
    assert cohort.startswith("  worst cohort half=")
