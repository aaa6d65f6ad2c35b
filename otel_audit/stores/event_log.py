"""A log of events, one JSON object per line: Feast's audit log, or our own JSONL export, read as journal lines.

Fields that a record needs and the line lacks are derived from the log itself, so every reading gives the same ids:

* `stream_id` comes from the first line, so a copy or a renamed file is the same stream.
* `seq` is the number of the line.
* `event_id` comes from the stream, the number and the bytes of the line.
* `time_ns` comes from `timestamp`, and is 0, for unknown, if that is not a time. `observed_ns` is the same: nobody
  knows when the event was first observed, and the time of reading would differ each time.

Source: RFC 9562, section 5.8 and appendix B.2: UUIDv8, name-based with SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from otel_audit.fast_line import time_ns_of
from otel_audit.records.encoding import UnreadableLine, read_line, read_object
from otel_audit.stores.lines import LONGER_THAN_HELD, first_line, hash_of, numbered_lines
from otel_audit.stores.sorting import SortingStore
from otel_audit.stores.store import DamagedBytes, Kind, Stored, stored_record

__all__ = ["EventLog", "EventLogStore"]

_JOURNAL_KEYS: Final = frozenset({"time_ns", "observed_ns", "stream_id", "seq", "prev_hash"})
_decode_raw: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class EventLog:
    """A converter from the lines of one log, identified by its `first_line`, to journal lines."""

    def __init__(self, first_line: bytes) -> None:
        self.stream_id = _uuid(b"otel-audit-log-v1", first_line)

    def line(self, content: bytes, number: int) -> bytes:
        """Return the journal line for line `number`, from 1. A line that already is a journal line stays as it is.

        Raises:
            UnreadableLine: the line is not an event.
        """
        content = content.strip()
        event = _event(content)
        if _is_journal_line(content):
            return content
        replaced = _JOURNAL_KEYS if _has_id(event) else _JOURNAL_KEYS | {"event_id"}
        body = _without(content, replaced) if replaced & event.keys() else content[:-1].rstrip()
        line = b'%b%b,"time_ns":%d,"observed_ns":%d,"stream_id":"%b","seq":%d}' % (
            body,
            b"" if _has_id(event) else b',"event_id":"%b"' % self._id_of(content, number).encode(),
            *(_time_ns(event),) * 2,
            self.stream_id.encode(),
            number,
        )
        read_line(line)
        return line

    def _id_of(self, content: bytes, number: int) -> str:
        return _uuid(b"otel-audit-event-v1", self.stream_id.encode(), b"%d" % number, content)


class EventLogStore(SortingStore):
    """The lines of one log as journal lines. See `Store`. Lines that were converted here prove nothing."""

    kind = Kind.EVENT_LOG

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.where = str(path)
        self._path = path

    def contents(self) -> Iterator[Stored]:
        """See `Store`."""
        log, offset = EventLog(first_line(self._path)), 0
        for line in numbered_lines(self._path):
            length, reason = line.end.offset - line.ended - offset, LONGER_THAN_HELD
            stored: Stored | None = None
            if line.content is not None:
                stored, reason = self._stored(log, line.content, line.end.line, offset)
            if stored is not None:
                yield stored
            elif line.damage or line.content is None or line.content.strip():
                yield DamagedBytes(
                    self._path.name, offset, length, hash_of(self._path, offset, length), line.damage or reason
                )
            offset = line.end.offset

    def _stored(self, log: EventLog, content: bytes, number: int, offset: int) -> tuple[Stored | None, str]:
        try:
            made = log.line(content, number)
        except UnreadableLine as error:
            return None, error.reason
        place = f"{self._path.name}, byte {offset}"
        return stored_record(made, dict, event_name="", time_ns=0, place=place, offset=offset), ""


def _event(content: bytes) -> Mapping[str, Any]:
    event = read_object(content)
    if type(event.get("event_type")) is not str:
        raise UnreadableLine(f"expected str, got {type(event.get('event_type')).__name__} - at `$.event_type`")
    return event


def _is_journal_line(content: bytes) -> bool:
    try:
        read_line(content)
    except UnreadableLine:
        return False
    return True


def _has_id(event: Mapping[str, Any]) -> bool:
    return type(event.get("event_id")) is str and event["event_id"] != ""


def _without(content: bytes, keys: frozenset[str]) -> bytes:
    """Return the object without these keys and its closing brace. The bytes of all other values are unchanged."""
    fields = (b"%b:%b" % (msgspec.json.encode(k), v) for k, v in _decode_raw(content).items() if k not in keys)
    return b"{%b" % b",".join(fields)


def _time_ns(event: Mapping[str, Any]) -> int:
    timestamp = event.get("timestamp")
    return (time_ns_of(timestamp) or 0) if type(timestamp) is str else 0


def _uuid(*name: bytes) -> str:
    octets = bytearray(sha256(b"\n".join(name)).digest()[:16])
    octets[6] = octets[6] & 0x0F | 0x80
    octets[8] = octets[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(octets)))
