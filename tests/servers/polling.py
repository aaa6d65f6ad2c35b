"""Waiting for a fact, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PATIENCE_S", "poll"]

_T = TypeVar("_T")
_INTERVAL_S = 0.05
PATIENCE_S = 120.0  # two cores, a whole test run and much else beside it


def poll(
    observe: Callable[[], _T], *, until: Callable[[_T], bool] = bool, timeout_s: float = PATIENCE_S, what: str
) -> _T:
    """The first observation for which `until` holds.

    Raises:
        AssertionError: it did not hold within `timeout_s` seconds; says what was waited for and what was last seen.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        seen = observe()
        if until(seen):
            return seen
        if time.monotonic() >= deadline:
            raise AssertionError(f"expected {what} within {timeout_s:g} s, last seen: {repr(seen)[:500]}")
        time.sleep(_INTERVAL_S)
