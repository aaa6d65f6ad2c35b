"""The journal behind the OTel SDK's own `LoggerProvider`: as a log record processor, and as a logs exporter.

What the plain logs API emits is journalled, chained and exported unchanged: nothing is added to it, redacted or cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource

from otel_audit.configuration import open_trail
from otel_audit.delivery.foreign_events import ForeignEvents
from otel_audit.delivery.otel_logs import (
    LogRecordExporter,
    LogRecordExportResult,
    LogRecordProcessor,
    ReadableLogRecord,
    ReadWriteLogRecord,
)
from otel_audit.delivery.sdk_exporter import MadeOrMaker
from otel_audit.delivery.suppression import is_exporting
from otel_audit.errors import AuditUnavailable
from otel_audit.settings import OnLoss
from otel_audit.trail import Trail

__all__ = ["AuditLogExporter", "AuditLogRecordProcessor"]


class _Recorder:
    """From a record of the SDK to a line, and what both plug-ins of the SDK have in common. `trail` has the numbers."""

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        trail.hold(self)
        self._events = ForeignEvents()

    def _record(self, record: ReadableLogRecord | ReadWriteLogRecord) -> bool:
        """True when the record is in the journal; a loss is counted and said.

        Raises:
            AuditUnavailable: only with `on_loss=closed`.
        """
        try:
            is_vital = self.trail.settings.on_loss is OnLoss.CLOSED  # a record says nothing of an outcome
            self.trail.journal.append(*self._events.event(record), is_vital)
        except AuditUnavailable as error:
            if self.trail.settings.on_loss is OnLoss.CLOSED:
                raise
            self.trail.notices.say("sync" if error.in_journal else "loss", error.told_of("log records"))
            return error.in_journal
        return True

    def shutdown(self) -> None:
        """Deliver within the setting `close_timeout_s`. A later record is journalled still, for the next owner."""
        self.trail.give_back(self)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """True when every exporter has what was recorded before this call."""
        return self.trail.flush(timeout_millis / 1000).complete


class AuditLogRecordProcessor(_Recorder, LogRecordProcessor):
    """Puts log records on disk before `emit` returns, and delivers them from there. Any thread; fork-safe.

    Without arguments everything comes from the environment. `exporters`: those of the SDK that take the place of the
    environment's; a class or function that makes one works after a fork too. `overrides` come first, by the setting's
    name; `resource` is that of the writer in the journal, each record keeps its own.

    Source: OpenTelemetry specification, "LogRecordProcessor".

    Raises:
        ConfigError: a setting is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """

    def __init__(self, *exporters: MadeOrMaker, resource: Resource | None = None, **overrides: Any) -> None:
        super().__init__(open_trail(exporters, resource, overrides))

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Return once the record is in the journal. What an export of ours logs about itself is left out.

        Raises:
            AuditUnavailable: only with `on_loss=closed`: the record is not known to be durable.
        """
        if not is_exporting():
            self._record(log_record)

    def enabled(self, *, context: Context | None = None, **about: Any) -> bool:
        """False for what an export of ours logs about itself."""
        return not is_exporting()


class AuditLogExporter(_Recorder, LogRecordExporter):
    """Puts log records on disk and delivers them from there: `OTEL_LOGS_EXPORTER=otel_audit`, or in OTEL_CONFIG_FILE.

    What stands before it may lose records: the SDK's batch processor keeps them in memory for a second, and drops the
    oldest of more than its queue holds. `AuditLogRecordProcessor` has nothing before it, the SDK's simple processor
    nothing that keeps records. `overrides` come first, by the setting's name.

    Source: OpenTelemetry specification, "LogRecordExporter"; entry point `opentelemetry_logs_exporter`.

    Raises:
        ConfigError: a setting is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """

    def __init__(self, **overrides: Any) -> None:
        super().__init__(open_trail((), None, overrides))

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """`SUCCESS` once all records are in the journal."""
        try:
            recorded = [self._record(record) for record in batch]
        except AuditUnavailable:
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS if all(recorded) else LogRecordExportResult.FAILURE
