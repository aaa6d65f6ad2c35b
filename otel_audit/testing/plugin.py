"""The fixtures. pytest finds them by the entry point `pytest11`, in every test suite of an environment.

So this module imports nothing but pytest, has no hooks and no options, and no fixture is used without being asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from otel_audit.logger import AuditLogger
    from otel_audit.testing.collector import LoopbackCollector
    from otel_audit.testing.coverage import AuditCoverage
    from otel_audit.testing.events import AuditEvents

__all__ = ["audit_collector", "audit_coverage", "audit_events", "audit_trail"]


@pytest.fixture
def audit_trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AuditLogger]:
    """An audit logger with a real journal in `tmp_path`, a fixed clock and fixed ids. Nothing is delivered.

    A logger that the application makes with `otel_audit.configure()` during the test writes into the same trail.
    """
    from otel_audit.testing.trail import trail_for_test

    with trail_for_test(tmp_path / "audit", monkeypatch) as audit:
        yield audit


@pytest.fixture
def audit_events(audit_trail: AuditLogger) -> AuditEvents:
    """The events of `audit_trail`."""
    from otel_audit.testing.events import AuditEvents

    return AuditEvents.of(audit_trail)


@pytest.fixture
def audit_coverage(audit_events: AuditEvents) -> AuditCoverage:
    """Checks that every route of an application, or every tool of an MCP server, leaves an event in `audit_trail`."""
    from otel_audit.testing.coverage import AuditCoverage

    return AuditCoverage(audit_events)


@pytest.fixture
def audit_collector() -> Iterator[LoopbackCollector]:
    """An OTLP collector on loopback that keeps what it accepts."""
    from otel_audit.testing.collector import LoopbackCollector

    with LoopbackCollector() as collector:
        yield collector
