"""Sinks, which receive a logger's events: the interface of Feast's audit logger and its three implementations.

Source: Feast 0.67 `audit_logger`. `otel_audit.trail.Trail`, a journal with its delivery, is a sink too.
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
"""An attribute that marks the log records of `LoggerAuditSink`, so that our own handler does not record them again."""


class JsonlEvent(Protocol):
    """An event that can be written as a JSON line, whether ours or Feast's."""

    def to_jsonl(self) -> str:
        """Return one compact JSON object without a newline."""


class AuditSink(abc.ABC):
    """A destination of audit events. `AuditLogger` calls it under a lock, one event at a time."""

    @abc.abstractmethod
    def emit(self, event: JsonlEvent) -> None:
        """Take one event. If this raises, the logger counts the event as lost."""

    def close(self) -> None:  # noqa: B027 - Feast's contract: most sinks have nothing to close
        """Release whatever the sink holds open."""


class StdoutAuditSink(AuditSink):
    """Write JSON lines to stdout. Do not use it in an MCP server over stdio, where stdout carries the protocol.

    Characters that stdout cannot encode are written as JSON escapes.
    """

    def emit(self, event: JsonlEvent) -> None:
        """Write the event as one line and flush it."""
        line = event.to_jsonl()
        try:
            sys.stdout.write(line + "\n")
        except UnicodeEncodeError:
            sys.stdout.write(json.dumps(json.loads(line), separators=(",", ":")) + "\n")
        sys.stdout.flush()


class FileAuditSink(AuditSink):
    """Append JSON lines to a file, in UTF-8 whatever the locale.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, file_path: str | os.PathLike[str]) -> None:
        self._file = open(file_path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until `close`

    def emit(self, event: JsonlEvent) -> None:
        """Append the event. Its line has reached the operating system when this returns."""
        self._file.write(event.to_jsonl() + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LoggerAuditSink(AuditSink):
    """Write JSON lines through `logging`, at level INFO. `AuditHandler` passes over them, as they are audit events."""

    def __init__(self, logger_name: str = "feast.audit") -> None:
        self._logger = logging.getLogger(logger_name)

    def emit(self, event: JsonlEvent) -> None:
        """Log the event as one message."""
        self._logger.info(event.to_jsonl(), extra={OWN_LINE: True})
