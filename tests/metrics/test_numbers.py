"""The numbers as OTel metrics: what a reader of the application's meter provider sees."""

from __future__ import annotations

import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric

from otel_audit.errors import AuditUnavailable, JournalFull
from otel_audit.event import AuditEvent
from otel_audit.journal.ledger.standing import LedgerState
from otel_audit.journal.room import Space
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.metrics.reader import ROOT, Reader, a_trail, emit, parts, value_of
from tests.servers import poll
from tests.servers.otlp_server import Answer, partial_success

UNAVAILABLE = Answer(503)
REFUSED = Answer(400)


def test_the_instruments_are_those_of_the_documents(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    row = re.compile(r"^\| `(audit\.[a-z.]+)` \| ([a-z -]+) \| `([^`]+)` \|", re.MULTILINE)
    documented = set(row.findall((ROOT / "docs" / "delivery.md").read_text()))

    trail = a_trail(tmp_path, reader, server, close_timeout_s=60)
    emit(trail, "one")
    trail.flush(timeout_s=60)
    collected = poll(reader.collect, until=lambda found: "audit.ledger.size" in found, what="the ledger's first note")
    trail.close()

    assert {(name, kind_of(metric), metric.unit) for name, metric in collected.items()} == documented


def test_the_last_note_of_a_ledger_is_told_while_its_trail_is_open(
    reader: Reader, tmp_path: Path, server: AuditedServer
) -> None:
    trail = a_trail(tmp_path, reader, server, close_timeout_s=60)
    emit(trail, "one")
    seen = poll(reader.values, until=lambda found: "audit.ledger.size" in found, what="the ledger's first note")
    state = LedgerState.of(tmp_path)

    assert state is not None
    assert list(seen["audit.ledger.size"]) == list(seen["audit.ledger.note.age"]) == [state.origin]
    assert 0 < seen["audit.ledger.size"][state.origin] <= state.size
    assert 0 <= seen["audit.ledger.note.age"][state.origin] <= state.age_s(time.time_ns()) + 120
    trail.close()
    assert "audit.ledger.size" not in reader.values()


def kind_of(metric: Metric) -> str:
    kind = type(metric.data).__name__
    if kind == "Sum":
        return "counter" if getattr(metric.data, "is_monotonic") else "up-down counter"  # noqa: B009
    return kind.lower()


def test_what_was_emitted_is_exported_pending_quarantined_or_dropped(
    reader: Reader, tmp_path: Path, server: AuditedServer
) -> None:
    server.judge = lambda names: REFUSED if "bad" in names else UNAVAILABLE if "late" in names else None
    trail = a_trail(tmp_path / "audit", reader, server)
    emit(trail, "one", "bad", "two", "three")
    assert trail.flush(timeout_s=20).complete
    assert parts(reader.values(), "otlp") == (3, 0, 1, 0)

    emit(trail, "late")
    assert not trail.flush(timeout_s=0.5).complete
    trail.close(timeout_s=0)
    shutil.rmtree(tmp_path / "audit")
    (tmp_path / "audit").write_text("no directory")
    with pytest.raises(AuditUnavailable):
        emit(trail, "never")

    values = reader.values()
    assert values["audit.records.emitted"] == {"": 6}
    assert parts(values, "otlp") == (3, 1, 1, 1)
    stats = trail.stats()
    assert parts(values, "otlp") == (stats.exported, stats.pending, stats.quarantined, stats.dropped)
    assert values["audit.records.dropped"] == {"disk full": 0, **trail.journal.losses}


@pytest.mark.processes
def test_what_a_full_disk_took_is_told_apart(reader: Reader, small_disk: Path) -> None:
    trail = a_trail(small_disk, reader, free_bytes=0)
    assert reader.values()["audit.records.dropped"] == {"disk full": 0}

    def fill() -> None:
        for _ in range(100_000):
            emit(trail, "x" * 300)

    with pytest.raises(JournalFull):
        fill()

    assert reader.values()["audit.records.dropped"] == {"disk full": 1}
    trail.close()


def test_the_numbers_of_one_collection_are_of_one_moment(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    trail = a_trail(tmp_path, reader, server)
    collected = threading.Event()

    def write() -> None:
        while not collected.is_set():
            emit(trail, "one")

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = [reader.values()]
    try:
        poll(
            lambda: seen.append(reader.values()),
            until=lambda _: len(seen) > 30 and seen[0]["audit.records.emitted"] != seen[-1]["audit.records.emitted"],
            what="events between two collections",
        )
    finally:
        collected.set()
        for writer in writers:
            writer.join()
    trail.close()

    assert [values["audit.records.emitted"][""] for values in seen] == [sum(parts(v, "otlp")) for v in seen]


def test_each_exporter_has_its_own_numbers(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    server.judge = lambda names: UNAVAILABLE
    with AuditedServer() as other:
        fast, slow = exporter_to(other), exporter_to(server)
        fast.name = "fast"
        trail = Trail(
            Settings.load({}, {"directory": str(tmp_path), "export": "none"}),
            exporters=[fast, slow],
            metrics=reader.metrics,
        )
        emit(trail, "one", "two")

        values = poll(
            reader.values,
            until=lambda values: parts(values, "fast")[0] == 2 and values["audit.export.blocked"]["otlp"] == 1,
            what="the export to one of them, and a failure of the other",
        )
        trail.close(timeout_s=0)

    assert parts(values, "fast") == (2, 0, 0, 0)
    assert parts(values, "otlp") == (0, 2, 0, 0)
    assert values["audit.export.blocked"] == {"fast": 0, "otlp": 1}


def test_an_exporter_is_blocked_until_its_destination_answers(
    reader: Reader, tmp_path: Path, server: AuditedServer
) -> None:
    server.judge = lambda names: UNAVAILABLE
    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one")
    poll(lambda: reader.values()["audit.export.blocked"], until=lambda seen: seen == {"otlp": 1}, what="the failure")

    server.judge = lambda names: None
    assert trail.flush(timeout_s=20).complete

    poll(lambda: reader.values()["audit.export.blocked"], until=lambda seen: seen == {"otlp": 0}, what="the success")
    trail.close()


def test_a_disk_that_is_nearly_full_is_seen_and_what_is_lost_for_it_is_counted(reader: Reader, tmp_path: Path) -> None:
    trail = a_trail(tmp_path / "a", reader)
    emit(trail, "one")
    assert reader.values()["audit.space.low"] == {"": 0}

    low = a_trail(tmp_path / "b", reader, free_bytes=Space.of(tmp_path, None).free_bytes + (1 << 30))
    with pytest.raises(JournalFull):
        low.emit(AuditEvent(event_type="two", outcome="success"))

    values = reader.values()
    assert values["audit.space.low"] == {"": 1}
    assert values["audit.records.dropped"] == {"disk full": 0, "disk nearly full": 1}
    low.close()
    trail.close()


def test_remarks_of_the_destination_are_counted(reader: Reader, tmp_path: Path, server: AuditedServer) -> None:
    server.will_answer(partial_success(0, "slow down"))
    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one")
    assert trail.flush(timeout_s=20).complete

    assert reader.values()["audit.export.warnings"] == {"otlp": 1}
    trail.close()
    assert reader.values()["audit.export.warnings"] == {"otlp": 1}


def test_each_export_has_its_duration_by_what_became_of_it(
    reader: Reader, tmp_path: Path, server: AuditedServer
) -> None:
    server.will_answer(Answer(503, delay_s=0.3), REFUSED)
    trail = a_trail(tmp_path, reader, server)
    emit(trail, "one", "two")
    assert trail.flush(timeout_s=20).complete
    trail.close()

    duration = reader.collect()["audit.export.duration"]
    counts = dict(map(value_of, duration.data.data_points))
    assert counts["unavailable otlp"] == counts["refused otlp"] == 1
    assert sum(counts.values()) == len(server.requests)
    (slow,) = (each for each in duration.data.data_points if "unavailable" in value_of(each)[0])
    assert isinstance(slow, HistogramDataPoint)
    assert 0.3 <= slow.sum < 10


def test_without_an_exporter_the_journal_is_the_destination(reader: Reader, tmp_path: Path) -> None:
    trail = a_trail(tmp_path, reader)
    emit(trail, "one", "two")

    assert parts(reader.values(), "none") == (2, 0, 0, 0)
    trail.close()
