"""A line of the journal: one JSON object whose last keys are the journal's own.

Because these keys come last, a reader finds them with one pattern. To verify a line, its stored bytes are hashed, and
nothing is serialised again.

`Line` is used by every reader: delivery, counts, retention, `tail` and `replay`. It holds bytes and a place, and parses
nothing until asked.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from otel_audit import ids

__all__ = [
    "FORMAT_VERSION",
    "GAP",
    "SEGMENT",
    "TAIL",
    "TAIL_BYTES",
    "Damage",
    "Line",
    "Position",
    "Tail",
    "digest",
    "is_system",
    "last_line_in",
    "names_line",
    "seq_reader",
    "stream_and_seq",
    "system_body",
    "system_event",
    "system_start",
]

FORMAT_VERSION = 1  # the format of lines in each segment header; raised if older readers would misread them
SEGMENT = "segment"
GAP = "gap"

_SYSTEM_PREFIX = b'{"system":'  # an event of an application always begins with {"event_type":
# Compiled once for all streams, since one for each of thousands would take a second. The third group is the id of the
# stream, which the caller compares with the expected one, and the fourth is the number.
TAIL = re.compile(
    rb',"time_ns":(-?\d+),"observed_ns":(\d+),"stream_id":"([^"]{36})","seq":(\d+)(?:,"prev_hash":"([0-9a-f]{64})")?\}\Z'
)
_STREAM_ID = re.compile(rb"[0-9a-f-]{36}")
TAIL_BYTES = 260  # more than the longest tail
_BEGINNING = re.compile(rb'\{"(?:event_type|system)":')


class Position(NamedTuple):
    """A place between two lines. Everything before it is dealt with. `seq` is the number of the last line before it."""

    segment: int = 1
    offset: int = 0
    seq: int = 0


class Tail(msgspec.Struct, frozen=True):
    """The journal's own keys of one line."""

    time_ns: int
    observed_ns: int
    stream_id: str
    seq: int
    prev_hash: str | None

    @classmethod
    def of(cls, line: bytes) -> Tail | None:
        """Return the tail of a line without its newline, or None if these bytes are not a line of a journal."""
        match = TAIL.search(line, max(0, len(line) - TAIL_BYTES))
        if match is None or line[:1] != b"{" or not _STREAM_ID.fullmatch(match[3]):
            return None
        time_ns, observed_ns, stream_id, seq, prev_hash = match.groups()
        return cls(
            int(time_ns), int(observed_ns), stream_id.decode(), int(seq), prev_hash.decode() if prev_hash else None
        )


class Line:
    """One whole line of a stream, without its newline, with its segment and its offset there.

    It never changes. Only `seq` is read at once, to know that it is a line of its stream; the rest is read on demand.
    """

    __slots__ = ("content", "offset", "segment", "seq")

    def __init__(self, content: bytes, seq: int, segment: int = 1, offset: int = 0) -> None:
        self.content = content
        self.seq = seq
        self.segment = segment
        self.offset = offset

    def __repr__(self) -> str:
        return f"Line({self.content!r}, {self.seq}, {self.segment}, {self.offset})"

    @property
    def end(self) -> Position:
        """The position after the line."""
        return Position(self.segment, self.offset + len(self.content) + 1, self.seq)

    @property
    def system(self) -> bool:
        """True for a line that the journal made itself."""
        return self.content.startswith(_SYSTEM_PREFIX)

    @property
    def hash(self) -> str:
        """The `prev_hash` of the line that follows it."""
        return digest(self.content)

    @property
    def tail(self) -> Tail:
        """The journal's own keys.

        Raises:
            ValueError: these bytes are not a line of a journal.
        """
        tail = Tail.of(self.content)
        if tail is None:
            raise ValueError(f"expected the keys of a journal at the end of a line, got {self.content[-TAIL_BYTES:]!r}")
        return tail


class Damage(NamedTuple):
    """Bytes of a segment that are not a line of its stream, without the newline after them.

    A reader gives only their place, and `otel_audit.journal.line_file.hash_between` their hash. A writer that ends a
    segment early also gives the hash and the reason, in the header of the next one.
    """

    segment: int
    offset: int
    length: int
    sha256: str = ""
    reason: str = ""


def stream_and_seq(line: bytes) -> tuple[str, int] | None:
    """Return the id of the stream and the number of a line, or None if these bytes are not a line of a journal."""
    match = TAIL.search(line, max(0, len(line) - TAIL_BYTES))
    if match is None or line[:1] != b"{" or not _STREAM_ID.fullmatch(match[3]):
        return None
    return match[3].decode(), int(match[4])


def seq_reader(stream_id: str) -> Callable[[bytes], int | None]:
    """Return a function that returns the number of a line of this stream, or None for other bytes."""
    search, own = TAIL.search, stream_id.encode()

    def seq_of(line: bytes) -> int | None:
        match = search(line, max(0, len(line) - TAIL_BYTES))
        return int(match[4]) if match is not None and match[3] == own and line.startswith(b"{") else None

    return seq_of


def names_line(before: bytes, stream_id: str, seq: int) -> bool:
    """Return True if the line with this number ends with these bytes, of which the last is its newline.

    Bytes from the middle of the line are enough if they hold its tail.
    """
    tail = before[:-1].rpartition(b"\n")[2]
    own = b',"stream_id":"%b","seq":%d' % (stream_id.encode(), seq)
    return before.endswith(b"\n") and (own + b"," in tail or tail.endswith(own + b"}"))


def last_line_in(piece: bytes) -> bytes:
    """Return the line after the remains of one that somebody cut off, because its writer has gone on after them.

    A piece that is one whole line is returned unchanged.
    """
    starts = [beginning.start() for beginning in _BEGINNING.finditer(piece)]
    if starts == [0]:
        return piece  # the usual case for the first line of a segment, in which nothing need be parsed
    for start in starts:
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(piece[start:])
            return piece[start:]
    return piece


def digest(line: bytes) -> str:
    """Return the hex SHA-256 of a line without its newline, which is the `prev_hash` of the next one."""
    return sha256(line).hexdigest()


def is_system(line: bytes) -> bool:
    """Return True for a line that the journal made itself, such as a segment header or a gap."""
    return line.startswith(_SYSTEM_PREFIX)


def system_start(kind: str) -> bytes:
    """Return the bytes with which every line of this kind of the journal's own lines begins."""
    return b'%b"%b"' % (_SYSTEM_PREFIX, kind.encode())


def system_event(kind: str, content: Mapping[str, Any], observed_ns: int) -> bytes:
    """Return a system event as a JSON object. It has the shape of an audit event, so that every reader can show it."""
    moment = datetime.fromtimestamp(observed_ns / 1e9, UTC)
    event = {
        "system": kind,
        "event_type": f"audit.{kind}",
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": "",
        "principal": {"username": "otel_audit", "roles": [], "auth_type": "", "kind": "system"},
        "source": {"ip": "", "transport": ""},
        "action": {"mcp_tool": "", "path": ""},
        "resource": {"type": "", "name": "", "actions": []},
        "outcome": "success" if kind != GAP else "error",
        "detail": "",
        "event_id": str(ids.new_id()),
        kind: content,
    }
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def system_body(kind: str, content: Mapping[str, Any], observed_ns: int) -> bytes:
    """Return a system event as `write` of a stream takes it: without its closing brace, its times last."""
    return b'%b,"time_ns":%d,"observed_ns":%d' % (
        system_event(kind, content, observed_ns)[:-1],
        observed_ns,
        observed_ns,
    )
