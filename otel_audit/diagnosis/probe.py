"""Send one real event, through a journal of its own, to the endpoint of the settings."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.delivery.outcomes import Accepted, Batch
from otel_audit.diagnosis.findings import Finding, remedy_for
from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent, Outcome
from otel_audit.journal.cursor import Position
from otel_audit.journal.files import streams_in
from otel_audit.journal.reader import StreamReader
from otel_audit.settings import Durability, ExporterName, Settings
from otel_audit.trail import Trail

__all__ = ["PROBE_EVENT_TYPE", "probe_finding"]

PROBE_EVENT_TYPE: Final = "otel_audit.doctor"
_MAX_LINES: Final = 100
_MAX_BYTES: Final = 1 << 20


def probe_finding(settings: Settings, exporter: OtlpExporter) -> Finding:
    """Ask the endpoint to accept one event of this service. This takes at most the time-out of the settings.

    Its whole stream is sent, so that nothing is missing for somebody who verifies the store.
    """
    try:
        batch = _recorded(settings)
    except (AuditUnavailable, OSError) as error:
        says = f"expected a journal for the probe in {_place(settings)}, got {error}"
        return Finding("probe", says, "set TMPDIR to a directory that can be written")
    started = time.monotonic()
    outcome = exporter.export(batch)
    took_ms = (time.monotonic() - started) * 1000
    if isinstance(outcome, Accepted):
        warning = f"; it says: {outcome.warning}" if outcome.warning else ""
        return Finding("probe", f"an event was accepted in {took_ms:.0f} ms{warning}")
    return Finding("probe", outcome.reason, remedy_for(outcome))


def _record(trail: Trail) -> None:
    trail.emit(
        AuditEvent(
            event_type=PROBE_EVENT_TYPE,
            outcome=Outcome.SUCCESS,
            detail="otel-audit doctor asks whether events are accepted",
        )
    )


def _place(settings: Settings) -> str:
    """Return a place where a journal can be tried. In memory mode no other place may be writable."""
    if settings.durability is Durability.MEMORY:
        return str(next(path for path in settings.directory.parents if path.exists()))
    return tempfile.gettempdir()


def _recorded(settings: Settings) -> Batch:
    """Return the lines that a service with these settings writes for one event."""
    with tempfile.TemporaryDirectory(prefix="otel-audit-doctor-", dir=_place(settings)) as made:
        # Without retention, whose thread would write to the directory while it is being removed.
        here = replace(
            settings,
            directory=Path(made),
            durability=Durability.FSYNC if settings.durability is Durability.FSYNC else Durability.OS,
            sources={},
            export=(ExporterName.NONE,),
            retention_days=0,
            retention_bytes=0,
            free_bytes=0,
            ledger=False,
        )
        trail = Trail(here, exporters=[])
        _record(trail)
        trail.close()
        (files,) = streams_in(here.directory)
        reader = StreamReader(files)
        try:
            chunk = reader.read(Position(), max_lines=_MAX_LINES, max_bytes=_MAX_BYTES)
        finally:
            reader.close()
        return Batch(chunk.header, chunk.lines)
