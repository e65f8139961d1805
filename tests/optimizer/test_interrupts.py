"""Interrupts are looked for, and say which signal came."""

from __future__ import annotations

from rankc.optimizer.interrupts import Interrupts


def test_none_came() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        assert not interrupts.came
