"""A line of the journal: one JSON object whose last keys are the journal's own.

Because they come last, a reader finds them with one pattern, and never re-serialises to verify: the stored bytes are
hashed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from otel_audit import ids

__all__ = [
    "FORMAT_VERSION",
    "GAP",
    "SEGMENT",
    "Tail",
    "digest",
    "is_system",
    "seq_reader",
    "system_body",
    "system_event",
]

FORMAT_VERSION = 1  # of the lines of a segment, as its header says; raised when an older reader would get them wrong
SEGMENT = "segment"
GAP = "gap"

_SYSTEM_PREFIX = b'{"system":'  # an event of the application always begins with {"event_type":
_TAIL = re.compile(
    rb',"time_ns":(?P<time_ns>-?\d+),"observed_ns":(?P<observed_ns>\d+)'
    rb',"stream_id":"(?P<stream_id>[0-9a-f-]{36})","seq":(?P<seq>\d+)(?:,"prev_hash":"(?P<prev_hash>[0-9a-f]{64})")?\}\Z'
)
_TAIL_BYTES = 260  # more than the longest tail


@dataclass(frozen=True, slots=True)
class Tail:
    """The journal's own keys of one line."""

    time_ns: int
    observed_ns: int
    stream_id: str
    seq: int
    prev_hash: str | None

    @classmethod
    def of(cls, line: bytes) -> Tail | None:
        """The tail of a line without its newline; None when these bytes are no line of a journal."""
        match = _TAIL.search(line, max(0, len(line) - _TAIL_BYTES))
        if match is None or line[:1] != b"{":
            return None
        time_ns, observed_ns, stream_id, seq, prev_hash = match.groups()
        return cls(
            int(time_ns), int(observed_ns), stream_id.decode(), int(seq), prev_hash.decode() if prev_hash else None
        )


def seq_reader(stream_id: str) -> Callable[[bytes], int | None]:
    """A function that gives the number of a line of this stream; None for bytes that are no line of it.

    It accepts what `Tail.of` accepts, and costs a quarter: it is called for every line that is exported.
    """
    search = re.compile(
        rb',"time_ns":-?\d+,"observed_ns":\d+,"stream_id":"%b","seq":(\d+)(?:,"prev_hash":"[0-9a-f]{64}")?\}\Z'
        % re.escape(stream_id.encode())
    ).search

    def seq_of(line: bytes) -> int | None:
        match = search(line, max(0, len(line) - _TAIL_BYTES))
        return int(match[1]) if match is not None and line.startswith(b"{") else None

    return seq_of


def digest(line: bytes) -> str:
    """Hex SHA-256 of a line without its newline: the `prev_hash` of the next one."""
    return sha256(line).hexdigest()


def is_system(line: bytes) -> bool:
    """True for a line that the journal made itself: a segment header or a gap."""
    return line.startswith(_SYSTEM_PREFIX)


def system_event(kind: str, content: Mapping[str, Any], observed_ns: int) -> bytes:
    """A system event as a JSON object. It has the shape of an audit event, so that every reader can show it."""
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
    """A system event as `OpenStream.write` takes it: without its closing brace, its times last."""
    return b'%b,"time_ns":%d,"observed_ns":%d' % (
        system_event(kind, content, observed_ns)[:-1],
        observed_ns,
        observed_ns,
    )
