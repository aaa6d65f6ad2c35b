"""Where a logger hands its events: the sink interface of Feast's audit logger, and the three sinks that it has.

Source: Feast 0.67 `audit_logger`. The journal with its delivery is a sink too: `otel_audit.trail.Trail`.
"""

from __future__ import annotations

import abc
import json
import logging
import os
import sys
from typing import Final, Protocol

__all__ = ["OWN_LINE", "AuditSink", "FileAuditSink", "JsonlEvent", "LoggerAuditSink", "StdoutAuditSink"]


OWN_LINE: Final = "_otel_audit_line"
"""An attribute of the log records that `LoggerAuditSink` makes, by which our own handler tells that they are events."""


class JsonlEvent(Protocol):
    """An event that can be written as a JSON line: ours, and Feast's own."""

    def to_jsonl(self) -> str:
        """One compact JSON object without a newline."""


class AuditSink(abc.ABC):
    """A destination of audit events. `AuditLogger` calls it under a lock, one event at a time."""

    @abc.abstractmethod
    def emit(self, event: JsonlEvent) -> None:
        """Take one event. What is raised here is counted by the logger as a loss."""

    def close(self) -> None:  # noqa: B027 - to close nothing is right for most sinks, and Feast's contract
        """Let go of what the sink holds."""


class StdoutAuditSink(AuditSink):
    """JSON lines on stdout. Not for an MCP server over stdio: its stdout carries the protocol.

    Characters that the encoding of stdout does not have are written as JSON's escapes.
    """

    def emit(self, event: JsonlEvent) -> None:
        """See `AuditSink`."""
        line = event.to_jsonl()
        try:
            sys.stdout.write(line + "\n")
        except UnicodeEncodeError:
            sys.stdout.write(json.dumps(json.loads(line), separators=(",", ":")) + "\n")
        sys.stdout.flush()


class FileAuditSink(AuditSink):
    """JSON lines at the end of a file, each in the file when `emit` returns. UTF-8 whatever the locale.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, file_path: str | os.PathLike[str]) -> None:
        self._file = open(file_path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until `close`

    def emit(self, event: JsonlEvent) -> None:
        """See `AuditSink`."""
        self._file.write(event.to_jsonl() + "\n")

    def close(self) -> None:
        """The file is closed."""
        self._file.close()


class LoggerAuditSink(AuditSink):
    """JSON lines through `logging`, at INFO. `AuditHandler` leaves them alone: they have been recorded."""

    def __init__(self, logger_name: str = "feast.audit") -> None:
        self._logger = logging.getLogger(logger_name)

    def emit(self, event: JsonlEvent) -> None:
        """See `AuditSink`."""
        self._logger.info(event.to_jsonl(), extra={OWN_LINE: True})
