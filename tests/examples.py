"""How many examples Hypothesis tries in a test: as many as it asks for, a tenth with `--hypothesis-profile=quick`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["examples"]

# Hypothesis has loaded the profile before a module of tests is imported.
_IN_A_HUNDRED = 100 if settings.default is None else settings.default.max_examples


def examples(
    count: int,
    *,
    suppress_health_check: Collection[HealthCheck] = (HealthCheck.too_slow, HealthCheck.filter_too_much),
    **others: Any,
) -> settings:
    """Return settings for `count` examples, or for the profile's share of them. A busy machine is no failure."""
    share = max(1, count * _IN_A_HUNDRED // 100)
    return settings(max_examples=share, deadline=None, suppress_health_check=suppress_health_check, **others)
