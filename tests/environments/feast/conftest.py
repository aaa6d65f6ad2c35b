"""What holds for every test beside Feast."""

from __future__ import annotations

from hypothesis import settings

from tests.no_skip import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
