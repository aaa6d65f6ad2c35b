"""Journals on disk for tests of commands, made by the real journal and delivered by the real processor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.outcomes import Accepted, Batch, ExportOutcome, Refused, Unavailable
from otel_audit.delivery.stream_export import Moved, StreamExport
from otel_audit.event import AuditEvent
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal
from otel_audit.journal.locks import host_id
from otel_audit.journal.shipment import take
from otel_audit.journal.stream import Limits
from otel_audit.settings import Durability

__all__ = ["Inbox", "a_journal", "deliver", "record"]


def a_journal(
    directory: Path,
    *,
    export: Sequence[str] = ("otlp",),
    service: str = "shop",
    segment_bytes: int = 1 << 20,
    host: str | None = None,
    durability: str = "os",
) -> Journal:
    """An open journal whose segment headers name these exporters."""
    return Journal(
        directory,
        describe=lambda: {
            "resource": {"service.name": service},
            "scope": {"name": "otel_audit", "version": "0"},
            "export": list(export),
            "host_id": host or host_id(),
            "durability": durability,
        },
        limits=Limits(segment_bytes=segment_bytes),
        durability=Durability(durability),
    )


def record(journal: Journal, *details: str) -> StreamFiles:
    """Append an event for each detail; the stream that it is in."""
    for detail in details:
        event = AuditEvent(event_type="http.request", outcome="success", detail=detail)
        now_ns = time.time_ns()
        journal.append("", event.to_jsonl().encode(), now_ns, now_ns)
    assert journal.stream is not None
    return journal.stream.files


class Inbox:
    """A destination that accepts lines, but for those with a word that it refuses, and is away when `away` says why."""

    delay_s = 0.0

    def __init__(self, name: str = "otlp", *, refuses: bytes = b"\n", away: str = "") -> None:
        self.name = name
        self.refuses = refuses
        self.away = away

    def export(self, batch: Batch) -> ExportOutcome:
        if self.away:
            return Unavailable(self.away)
        if any(self.refuses in line for line in batch.contents):
            return Refused("bad record")
        return Accepted()

    def close(self) -> None:
        pass


def deliver(files: StreamFiles, inbox: Inbox, *, steps: int = 100, batch_count: int = 512) -> None:
    """Send what the stream has, for so many batches at most, and let go of it."""
    shipment = take(files)
    assert shipment is not None
    export = StreamExport(shipment, Destination(inbox), batch_count=batch_count)
    try:
        for _ in range(steps):
            if not isinstance(export.step(), Moved):
                break
    finally:
        export.close()
        shipment.cursor.close()
        shipment.ship_lock.release()
