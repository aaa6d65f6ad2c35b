"""No test of this environment is skipped in silence."""

from __future__ import annotations

from tests.no_skip import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]
