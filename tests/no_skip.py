"""With OTEL_AUDIT_TESTS_NO_SKIP=1, as in CI, a test that skips has failed: in green it would be taken for one that ran.

Hooks for the `conftest.py` of each environment.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Final

import pytest

__all__ = ["NO_SKIP", "pytest_make_collect_report", "pytest_runtest_makereport"]

NO_SKIP: Final = "OTEL_AUDIT_TESTS_NO_SKIP"

# As the run was started: `conftest.py` takes the tests' own variables out of `os.environ`.
_must_run: Final = os.environ.get(NO_SKIP) == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test has failed."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """So has a skipped module."""
    report = yield
    _judge(report)
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _must_run and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"expected every test to run ({NO_SKIP}=1), got {reason}"
