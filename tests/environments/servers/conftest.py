"""What holds for every test under gevent and uWSGI."""

from __future__ import annotations

from tests.no_skip import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]
