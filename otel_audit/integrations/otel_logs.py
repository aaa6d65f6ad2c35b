"""Plug-ins for the `LoggerProvider` of the OTel SDK.

`AuditLogRecordProcessor` and `AuditLogExporter` put the journal behind it: records of the plain logs API are
journalled, chained and exported unchanged, with nothing added, redacted or cut. `AuditConsoleLogExporter` and
`AuditJsonlLogExporter` work without a journal and show records, or append them to a file, as our own exporters do.
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
    """The common part of both plug-ins with a journal, which writes SDK records to `trail`."""

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        trail.hold(self)
        self._events = ForeignEvents()

    def _record(self, record: ReadableLogRecord | ReadWriteLogRecord) -> bool:
        """Write the record and return True if it is in the journal. A loss is counted and reported.

        Raises:
            AuditUnavailable: only with `on_loss=closed`.
        """
        try:
            is_vital = self.trail.settings.on_loss is OnLoss.CLOSED  # a record has no outcome
            self.trail.journal.append(*self._events.event(record), is_vital)
        except AuditUnavailable as error:
            if self.trail.settings.on_loss is OnLoss.CLOSED:
                raise
            self.trail.notices.say("sync" if error.in_journal else "loss", error.told_of("log records"))
            return error.in_journal
        return True

    def shutdown(self) -> None:
        """Deliver within the setting `close_timeout_s`. Later records are still journalled, for the next owner."""
        self.trail.give_back(self)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait, and return True once every exporter has all records made before this call."""
        return self.trail.flush(timeout_millis / 1000).complete


class AuditLogRecordProcessor(_Recorder, LogRecordProcessor):
    """Write log records to disk before `emit` returns, and deliver them from there. Any thread; fork-safe.

    Without arguments, all settings come from the environment. `exporters` are SDK exporters, used instead of those that
    the environment names; pass a class or function that makes one if the process forks. `overrides` are settings by
    name, which take precedence. `resource` describes the writer in the journal; each record keeps its own resource.

    Source: OpenTelemetry specification, "LogRecordProcessor".

    Raises:
        ConfigError: a setting is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """

    def __init__(self, *exporters: MadeOrMaker, resource: Resource | None = None, **overrides: Any) -> None:
        super().__init__(open_trail(exporters, resource, overrides))

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Return once the record is in the journal. Records that our own exports log are left out.

        Raises:
            AuditUnavailable: only with `on_loss=closed`: the record may not be durable.
        """
        if not is_exporting():
            self._record(log_record)

    def enabled(self, *, context: Context | None = None, **about: Any) -> bool:
        """Return False for records that our own exports log."""
        return not is_exporting()


class AuditLogExporter(_Recorder, LogRecordExporter):
    """Write log records to disk and deliver them from there: `OTEL_LOGS_EXPORTER=otel_audit`, or in OTEL_CONFIG_FILE.

    The SDK's batch processor before it may lose records: it keeps them in memory for a second, and drops the oldest if
    its queue overflows. `AuditLogRecordProcessor` avoids that, and so does the SDK's simple processor. `overrides` are
    settings by name, which take precedence.

    Source: OpenTelemetry specification, "LogRecordExporter"; entry point `opentelemetry_logs_exporter`.

    Raises:
        ConfigError: a setting is wrong. Nothing was started.
        JournalUnwritable: the directory cannot be written. Nothing was started.
    """

    def __init__(self, **overrides: Any) -> None:
        super().__init__(open_trail((), None, overrides))

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Return `SUCCESS` once all records are in the journal."""
        try:
            recorded = [self._record(record) for record in batch]
        except AuditUnavailable:
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS if all(recorded) else LogRecordExportResult.FAILURE


class AuditConsoleLogExporter(LogRecordExporter):
    """Show records on stderr or the given stream: audit events in readable form, all other records as JSON.

    It is also `OTEL_LOGS_EXPORTER=otel_audit_console`. Any thread.
    Source: OpenTelemetry specification, "LogRecordExporter"; entry point `opentelemetry_logs_exporter`.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        # Not at the top: `rich` is slow to load, and the journal does not need it.
        from otel_audit.delivery.console import Terminal

        self._terminal = Terminal(stream)
        self._lock = threading.Lock()
        self._is_shut_down = False

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Show the records. Return `FAILURE` if the stream refuses them, or after `shutdown`."""
        if self._is_shut_down:
            return LogRecordExportResult.FAILURE
        try:
            with self._lock:
                self._terminal.write(lambda view: [_shown(view, record) for record in batch])
        except OSError:
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Show no further records."""
        self._is_shut_down = True

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return True, since nothing is held back."""
        return True


class AuditJsonlLogExporter(LogRecordExporter):
    """Append records to a JSONL file: audit events as their caller gave them, all other records as JSON.

    Lines that the journal writes itself are left out. `path` and `mode`, the mode of a new file, default to the
    settings `jsonl_path` and `file_mode`. It is also `OTEL_LOGS_EXPORTER=otel_audit_jsonl`. Any thread.
    Source: OpenTelemetry specification, "LogRecordExporter"; entry point `opentelemetry_logs_exporter`.

    Raises:
        ConfigError: one of these two settings is wrong.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, mode: int | None = None) -> None:
        if path is None:
            settings = Settings.load(os.environ, {"export": "jsonl"})
            path, mode = settings.jsonl_path, settings.file_mode if mode is None else mode
        self._file = JsonlFile(path, mode=0o600 if mode is None else mode)
        self._is_shut_down = False

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Append the records. Return `FAILURE` after `shutdown`, or if that fails: then the file has none of them."""
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
        """Close the file. Later records are not written."""
        self._is_shut_down = True
        self._file.close()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return True, since nothing is held back."""
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
    """Return the body if it is a journal line, else None."""
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
        # A body that JSON cannot represent, or a record without a time, must not cost the rest of its batch.
        log = record.log_record
        told = {
            "body": repr(log.body),
            "event_name": log.event_name or "",
            "severity_text": log.severity_text,
            "timestamp": log.timestamp,
            "unreadable": f"{type(error).__name__}: {error}",
        }
        return json.dumps(told, default=repr)
