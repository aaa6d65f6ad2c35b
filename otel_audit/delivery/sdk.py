"""The console and the JSONL file as exporters of the OTel SDK, for a stock `LoggerProvider`."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from typing import TextIO

import msgspec
from rich.text import Text

from otel_audit.delivery.console import Terminal
from otel_audit.delivery.jsonl import JsonlFile, as_given
from otel_audit.delivery.otel_logs import LogRecordExporter, LogRecordExportResult, ReadableLogRecord
from otel_audit.delivery.view import LineView
from otel_audit.journal.line import Tail, is_system

__all__ = ["AuditConsoleLogExporter", "AuditJsonlLogExporter"]


class AuditConsoleLogExporter(LogRecordExporter):
    """Shows records on stderr, or on the stream given: audit events readable, any other record as its JSON.

    Source: OpenTelemetry specification, "LogRecordExporter". Any thread.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
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

    Lines that the journal makes itself are left out. `mode` is that of a new file.
    Source: OpenTelemetry specification, "LogRecordExporter". Any thread.
    """

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o600) -> None:
        self._file = JsonlFile(path, mode=mode)
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
