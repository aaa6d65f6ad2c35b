"""A journal, a real server that answers as a test says, and a clock that it moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.stream_export import StreamExport
from otel_audit.journal.journal import Journal
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.stream_export.exporting import Clock, Open, export_of
from tests.journal.writing import a_journal


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = a_journal(tmp_path)
    yield journal
    journal.close()


@pytest.fixture
def exporting(server: AuditedServer, clock: Clock) -> Iterator[Open]:
    """Opens the export of the stream of a journal to the server; all of them share one destination."""
    with ExitStack() as opened:
        destinations: list[Destination] = []

        def open_export(journal: Journal, *, timeout_s: float = 10.0, batch_count: int = 512) -> StreamExport:
            if not destinations:
                exporter = exporter_to(server, timeout_s=timeout_s)
                opened.callback(exporter.close)
                destinations.append(Destination(exporter, clock=clock))
            return opened.enter_context(export_of(journal, destinations[0], batch_count))

        yield open_export
