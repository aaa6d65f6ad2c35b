"""What is in one line of a file: of a segment of a journal, of a log of events, of a collector's archive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import seq_reader
from otel_audit.journal.reader import stream_header
from otel_audit.records import UnreadableLine, read_line
from otel_audit.replaying.parcel import JournalLine, Piece, Place, Request
from otel_audit.stores.archive import read_archive_line, records_in
from otel_audit.stores.event_log import EventLog
from otel_audit.stores.numbered_lines import NumberedLine, first_line

__all__ = ["ArchiveFile", "EventLogFile", "Found", "LineFile", "SegmentFile"]


class Found(NamedTuple):
    """What is in one line: pieces to send, and why other parts of it are none."""

    pieces: Sequence[Piece] = ()
    unreadable: Sequence[str] = ()


class LineFile(Protocol):
    """A file whose lines are sent."""

    def read(self, line: NumberedLine, content: bytes) -> Found:
        """What is in this line, whose content is not empty."""


class SegmentFile:
    """A segment: its lines as they are, with its header, or another one of the stream when that is damaged."""

    def __init__(self, path: Path, stream_id: str) -> None:
        self._name = path.name
        self._header = _segment_header(first_line(path)) or stream_header(StreamFiles(path.parent, stream_id))
        self._seq_of = seq_reader(stream_id)

    def read(self, line: NumberedLine, content: bytes) -> Found:
        """See `LineFile`. A line without its newline is torn, even if it parses."""
        if not line.ended:
            return Found(unreadable=[f"expected a line that ends, got {len(content)} bytes: torn, or not yet whole"])
        if self._seq_of(content) is None:
            return Found(unreadable=[f"expected a line of the stream, got {len(content)} other bytes"])
        try:
            read_line(content)
        except UnreadableLine as error:
            return Found(unreadable=[error.reason])
        return Found([JournalLine(Place(self._name, line.end.line), self._header, content)])


class EventLogFile:
    """A log of events. `header` says who sends them; a segment that is given alone has its own."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        first = first_line(path)
        self._name = path.name
        self._header = _segment_header(first) or header
        self._log = EventLog(first)

    def read(self, line: NumberedLine, content: bytes) -> Found:
        """See `LineFile`."""
        try:
            event = self._log.line(content, line.end.line)
        except UnreadableLine as error:
            return Found(unreadable=[error.reason])
        return Found([JournalLine(Place(self._name, line.end.line), self._header, event)])


class ArchiveFile:
    """A file of a collector's archive."""

    def __init__(self, path: Path) -> None:
        self._name = path.name

    def read(self, line: NumberedLine, content: bytes) -> Found:
        """See `LineFile`."""
        read, place = read_archive_line(content), Place(self._name, line.end.line)
        return Found([Request(place, message) for message in read.requests if records_in(message)], read.unreadable)


def _segment_header(line: bytes) -> Mapping[str, Any]:
    """What the first line of a segment says of its writer; empty for any other line."""
    try:
        header = json.loads(line)["segment"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
