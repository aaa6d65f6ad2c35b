"""Tests with a long form: with OTEL_AUDIT_TESTS_LONG=1 they do the same some five to a hundred times as often."""

from __future__ import annotations

import os
from typing import Final

import pytest

__all__ = ["LONG", "give_time"]

LONG: Final = os.environ.get("OTEL_AUDIT_TESTS_LONG") == "1"
_TIMEOUT_S: Final = 4 * 3600


def give_time(item: pytest.Item) -> None:
    """Let a long form take hours, whatever its usual form may take."""
    if LONG:
        item.add_marker(pytest.mark.timeout(_TIMEOUT_S), append=False)
