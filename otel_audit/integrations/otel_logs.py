"""What plugs into the OTel SDK's own `LoggerProvider`.

`AuditLogRecordProcessor` and `AuditLogExporter` put the journal behind it: what the plain logs API emits is journalled,
chained and exported unchanged. Nothing is added to it, redacted or cut. `AuditConsoleLogExporter` and
`AuditJsonlLogExporter` have no journal: they show records, or append them to a file, as our own exporters do.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource

from otel_audit.configuration import open_trail
from otel_audit.delivery.jsonl import JsonlFile, as_given
from otel_audit.delivery.sdk_exporter import MadeOrMaker
from otel_audit.delivery.suppression import is_exporting
from otel_audit.errors import AuditUnavailable
from otel_audit.journal.line import Tail, is_system
from otel_audit.records.sdk import (
    ForeignEvents,
    LogRecordExporter,
    LogRecordExportResult,
    LogRecordProcessor,
    ReadableLogRecord,
    ReadWriteLogRecord,
)
from otel_audit.settings import OnLoss, Settings
from otel_audit.trail import Trail

if TYPE_CHECKING:
    from rich.text import Text

    from otel_audit.delivery.console import LineView

__all__ = ["AuditConsoleLogExporter", "AuditJsonlLogExporter", "AuditLogExporter", "AuditLogRecordProcessor"]


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


class AuditConsoleLogExporter(LogRecordExporter):
    """Shows records on stderr, or on the stream given: audit events readable, any other record as its JSON.

    By name it is `OTEL_LOGS_EXPORTER=otel_audit_console`. Any thread.
    Source: OpenTelemetry specification, "LogRecordExporter"; entry point `opentelemetry_logs_exporter`.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        # Not at the top: `rich` takes a while to load, and the journal needs none of it.
        from otel_audit.delivery.console import Terminal

        self._terminal = Terminal(stream)
        self._lock = threading.Lock()
        self._is_shut_down = False

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Show the records. `FAILURE` when the stream does not take them, or after `shutdown`."""
        if self._is_shut_down:
            return LogRecordExportResult.FAILURE
        try:
            with self._lock:
                self._terminal.write(lambda view: [_shown(view, record) for record in batch])
        except OSError:
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Later records are not shown."""
        self._is_shut_down = True

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """True: nothing is held back."""
        return True


class AuditJsonlLogExporter(LogRecordExporter):
    """Appends records to a JSONL file: audit events as their caller gave them, any other record as its JSON.

    Lines that the journal makes itself are left out. Without `path` and `mode`, the file and the mode of a new one are
    those of the settings `jsonl_path` and `file_mode`. By name it is `OTEL_LOGS_EXPORTER=otel_audit_jsonl`. Any thread.
    Source: OpenTelemetry specification, "LogRecordExporter"; entry point `opentelemetry_logs_exporter`.

    Raises:
        ConfigError: a setting that is asked is wrong.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, mode: int | None = None) -> None:
        if path is None:
            settings = Settings.load(os.environ, {"export": "jsonl"})
            path, mode = settings.jsonl_path, settings.file_mode if mode is None else mode
        self._file = JsonlFile(path, mode=0o600 if mode is None else mode)
        self._is_shut_down = False

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Append the records. `FAILURE` when the file does not take them: then it has none; or after `shutdown`."""
        if self._is_shut_down:
            return LogRecordExportResult.FAILURE
        lines = [line for record in batch if (line := _written(record)) is not None]
        try:
            if lines:
                self._file.append(lines)
        except OSError:
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """The file is let go of; later records are not written."""
        self._is_shut_down = True
        self._file.close()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """True: nothing is held back."""
        return True


def _shown(view: LineView, record: ReadableLogRecord) -> Text | None:
    line = _journal_line(record)
    return view.show(line) if line is not None else view.show_json(_json(record))


def _written(record: ReadableLogRecord) -> bytes | None:
    line = _journal_line(record)
    if line is None:
        return _json(record).encode("utf-8", "backslashreplace")
    return None if is_system(line) else as_given(line)


def _journal_line(record: ReadableLogRecord) -> bytes | None:
    """The body as a line of a journal; None when it is none."""
    body = record.log_record.body
    if not isinstance(body, str):
        return None
    try:
        line = body.encode()
        msgspec.json.decode(line)
    except (UnicodeEncodeError, msgspec.DecodeError, RecursionError):
        return None
    return line if Tail.of(line) is not None else None


def _json(record: ReadableLogRecord) -> str:
    try:
        return record.to_json(indent=None)
    except (TypeError, ValueError, AttributeError) as error:
        # A body that JSON cannot hold, or a record without a time, must not cost the rest of its batch.
        log = record.log_record
        told = {
            "body": repr(log.body),
            "event_name": log.event_name or "",
            "severity_text": log.severity_text,
            "timestamp": log.timestamp,
            "unreadable": f"{type(error).__name__}: {error}",
        }
        return json.dumps(told, default=repr)
