"""The interface to a trail, wherever it is stored.

A store returns journal lines as `Line`, with the bytes that the journal hashed. Everything else is reported as what it
is: the remains of a line, a foreign record, or damaged bytes. Nothing is skipped silently.

A store other than a journal holds records in their order of arrival: mixed from many streams, with copies, and with
late ones after newer ones. `lines_of` still returns the lines of one stream in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from otel_audit.errors import AuditError
from otel_audit.journal.line import Line, stream_and_seq
from otel_audit.records import attributes as keys

__all__ = [
    "Content",
    "DamagedBytes",
    "ForeignRecord",
    "Kind",
    "Remains",
    "Sought",
    "Store",
    "StoreUnreadable",
    "Stored",
    "pattern_of",
    "stored_record",
]

_INT64_MAX: Final = 2**63 - 1


class Kind(StrEnum):
    """The kind of a store. The lines of an event log have no chain, so nothing can be proven about them."""

    JOURNAL = "journal"
    ARCHIVE = "collector archive"
    EVENT_LOG = "event log"
    PACKED = "packed trail"
    LOKI = "Loki"
    VICTORIALOGS = "VictoriaLogs"


class StoreUnreadable(AuditError):
    """A log store cannot be queried, or its response is not what the query asked for."""


class DamagedBytes(NamedTuple):
    """Bytes that belong to no record: their place in a file's content, and their hex SHA-256."""

    file: str
    offset: int
    length: int
    hash: str
    reason: str


class Remains(NamedTuple):
    """A record that names a line but whose body is not that line, since it was cut or changed on its way."""

    stream_id: str
    seq: int
    body: bytes
    place: str


class ForeignRecord(NamedTuple):
    """A record that neither is a journal line nor names one. An application sent it, maybe through a journal.

    Records of the plain logs API are sent without their journal line, so their numbers are missing from the stream.
    """

    event_name: str
    time_ns: int
    place: str


Content = Line | Remains | DamagedBytes
"""The content of one stream."""
Stored = tuple[str, Line] | Remains | ForeignRecord | DamagedBytes
"""The content of a store in its own order. A line comes with the id of its stream."""


class Sought(NamedTuple):
    """A query for a log store: the lines in a time range, whose end is excluded, that match all patterns.

    Each pattern is an RE2 expression over the line, in printable ASCII and without quotes. `services` is an expression
    over the whole name of the service, or empty. `stream_id` is that of the lines, or empty. Their numbers begin at
    `first`, and end before `end` unless it is None.
    """

    patterns: Sequence[str] = ()
    services: str = ""
    since_ns: int | None = None
    until_ns: int | None = None
    stream_id: str = ""
    first: int = 0
    end: int | None = None

    def within(self, since_ns: int, until_ns: int) -> tuple[int, int]:
        """Return the part of a span of time that is asked for."""
        since_ns = since_ns if self.since_ns is None else max(since_ns, self.since_ns)
        return since_ns, until_ns if self.until_ns is None else min(until_ns, self.until_ns)


def pattern_of(text: str) -> str:
    """Return the RE2 expression for a text, as `Sought` takes it."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}" for char in text)


class Store(Protocol):
    """A stored trail. For one thread. Close it, since it may sort its lines in a temporary file.

    Raises, in every method:
        OSError: the files cannot be read.
        StoreUnreadable: a log store cannot be queried, or its response cannot be understood.
    """

    @property
    def kind(self) -> Kind:
        """The kind of the store."""

    @property
    def where(self) -> str:
        """The place of the store for display: a path, or a URL without its password."""

    def contents(self) -> Iterator[Stored]:
        """Yield everything once, in the order of the store and in constant memory."""

    def streams(self) -> Sequence[str]:
        """Return the ids of the streams, oldest first. The ledger of a directory is one of them."""

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Content]:
        """Yield the lines of one stream after number `after`.

        A journal yields them in the order of its files, including the torn end of a segment. Other stores yield them by
        number: equal copies once, differing copies each.
        """

    def others(self) -> Iterator[ForeignRecord | DamagedBytes]:
        """Yield the records and bytes that belong to no stream."""

    def close(self) -> None:
        """Remove the temporary files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def stored_record(
    body: bytes | None,
    attributes: Callable[[], Mapping[str, object]],
    *,
    event_name: str,
    time_ns: int | str,
    place: str,
    segment: int = 1,
    offset: int = 0,
) -> tuple[str, Line] | Remains | ForeignRecord:
    """Classify a record of a store. Its attributes are read only if its body is not a journal line.

    The body is trusted over the attributes, since the body is what the journal hashed.
    """
    if body is not None and (said := stream_and_seq(body)) is not None and 0 < said[1] <= _INT64_MAX:
        return said[0], Line(body, said[1], segment, offset)
    named = attributes()
    stream_id, seq = named.get(keys.SEQUENCE_STREAM_ID), _whole(named.get(keys.SEQUENCE_NUMBER))
    if isinstance(stream_id, str) and stream_id and 0 < seq <= _INT64_MAX:
        return Remains(stream_id, seq, body or b"", place)
    return ForeignRecord(event_name, _whole(time_ns), place)


def _whole(value: object) -> int:
    """Return a number that may be given as a string, or 0 if it is not a number."""
    try:
        return int(value) if isinstance(value, str | int | float) else 0
    except (ValueError, OverflowError):
        return 0
