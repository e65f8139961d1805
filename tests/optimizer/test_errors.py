"""Errors that users see are of one family."""

from __future__ import annotations

import inspect

from rankc.optimizer import errors


def test_every_error_is_ours_and_explained() -> None:
    found = [
        e for e in vars(errors).values() if inspect.isclass(e) and e.__module__ == errors.__name__
    ]
    assert len(found) > 10
    assert all(issubclass(one, errors.RankcError) for one in found)
    assert all(one.__doc__ for one in found)
