"""Where the events of a trail in memory go: every exporter, the metrics, a real collector."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from otel_audit.configuration import configure
from otel_audit.delivery.jsonl import JsonlExporter
from otel_audit.errors import ConfigError
from otel_audit.settings import Settings
from otel_audit.trail import Stats, Trail
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.memory_mode.trail import DOWN, MIB, arrived, chained, ids, kept, log, recording, settings_for
from tests.metrics.reader import Reader
from tests.servers import Collector, poll


def test_with_a_copy_in_a_file_a_line_waits_for_both(server: AuditedServer, tmp_path: Path, memory_disk: Path) -> None:
    is_up = threading.Event()
    server.judge = lambda names: None if is_up.is_set() else DOWN
    copy = tmp_path / "copy.jsonl"
    exporters = [exporter_to(server), JsonlExporter(copy, delay_s=0.05)]
    with recording(settings_for(server, memory_disk), exporters=exporters) as audit:
        receipts = log(audit, *range(20))
        poll(lambda: copy.exists() and copy.read_bytes().count(b"\n"), until=lambda count: count == 20, what="the copy")
        assert audit.stats().exported == 0

        is_up.set()
        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(20, 0, 0, 0)
    assert kept(receipts) == ids(next(iter(arrived(server).values())))


def test_the_console_shows_events_that_are_in_memory_only(
    server: AuditedServer, memory_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recording(settings_for(server, memory_disk, export="console")) as audit:
        audit.log_authn(outcome="failure", detail="shown on the console")

    assert "shown on the console" in capsys.readouterr().err
    assert audit.stats() == Stats(1, 0, 0, 0)


def test_any_exporter_of_the_sdk_has_the_events(monkeypatch: pytest.MonkeyPatch, memory_disk: Path) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DURABILITY", "memory")
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(memory_disk))
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    with configure(exporters=[exporter]) as audit:
        log(audit, "a", "b")
        assert audit.flush(timeout_s=20).complete

        records = exporter.get_finished_logs()
    assert [record.log_record.event_name for record in records] == ["audit.segment", "test", "test"]


def test_memory_without_an_exporter_is_refused_at_the_start(server: AuditedServer, memory_disk: Path) -> None:
    with pytest.raises(ConfigError, match="expected an exporter beside memory"):
        Trail(settings_for(server, memory_disk), exporters=[])


def test_the_metrics_have_the_same_numbers_and_a_reason_for_each_loss(server: AuditedServer, memory_disk: Path) -> None:
    reader = Reader()
    settings = settings_for(server, memory_disk, queue_bytes=MIB)
    with recording(settings, metrics=reader.metrics) as audit:
        log(audit, *range(4))
        assert audit.flush(timeout_s=20).complete
        server.judge = lambda names: DOWN
        log(audit, *range(1000), detail="x" * 2000)
        seen = reader.values()
        stats = audit.stats()

    assert seen["audit.records.dropped"]["directory limit"] == stats.dropped > 100
    assert seen["audit.records.emitted"][""] == stats.emitted == 1004
    assert seen["audit.records.exported"]["otlp"] == stats.exported == 4
    assert seen["audit.queue.depth"]["otlp"] == stats.pending
    assert seen["audit.records.quarantined"]["otlp"] == 0


@pytest.mark.processes
def test_a_real_collector_has_every_event_of_a_service_in_memory(collector: Collector, memory_disk: Path) -> None:
    overrides = {"endpoint": collector.http_endpoint, "protocol": "http/protobuf", "directory": memory_disk}
    settings = Settings.load({}, {"durability": "memory", **overrides})
    with recording(settings) as audit:
        names = kept(log(audit, *range(1000)))
        assert audit.flush(timeout_s=20).complete

        records = collector.wait_for_archive(1001)
    lines = [record.body.encode() for record in records]
    assert ids(chained(sorted(lines, key=lambda line: int(json.loads(line)["seq"])))) == names
