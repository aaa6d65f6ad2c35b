"""A trail, wherever it lies: what is read of it, and how.

A store gives back journal lines as `Line`, with the bytes that the journal hashed. Where it cannot, it says what it has
instead: the remains of a line, a record of somebody else, or damaged bytes. Nothing is passed over in silence.

A store that is no journal has its records in the order in which they arrived: of many streams, with copies, and late
ones behind others. `lines_of` gives those of one stream in the order of their numbers all the same.
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
    "Store",
    "StoreUnreadable",
    "Stored",
    "stored_record",
]

_INT64_MAX: Final = 2**63 - 1


class Kind(StrEnum):
    """What a trail lies in. The lines of an event log have no chain: nothing can be proven of them."""

    JOURNAL = "journal"
    ARCHIVE = "collector archive"
    EVENT_LOG = "event log"
    PACKED = "packed trail"
    LOKI = "Loki"
    VICTORIALOGS = "VictoriaLogs"


class StoreUnreadable(AuditError):
    """A log store cannot be asked, or its answer is not what was asked for."""


class DamagedBytes(NamedTuple):
    """Bytes that belong to no record: where they stand in what a file holds, and their SHA-256 in hex."""

    file: str
    offset: int
    length: int
    hash: str
    reason: str


class Remains(NamedTuple):
    """A record that names a line, and whose body is not that line: somebody has cut or changed it on its way."""

    stream_id: str
    seq: int
    body: bytes
    place: str


class ForeignRecord(NamedTuple):
    """A record that neither is a line of a journal nor names one: an application sent it, maybe through a journal.

    The journal line of a record of the plain logs API is not sent, so it is missing among the numbers of its stream.
    """

    event_name: str
    time_ns: int
    place: str


Content = Line | Remains | DamagedBytes
"""What is read of one stream."""
Stored = tuple[str, Line] | Remains | ForeignRecord | DamagedBytes
"""What is read of a store in its own order; a line with the id of its stream."""


class Store(Protocol):
    """A trail. One thread; to be closed, since what sorts it may be in a temporary file.

    Raises, in every method:
        OSError: it cannot be read.
        StoreUnreadable: a log store cannot be asked, or answers what cannot be understood.
    """

    @property
    def kind(self) -> Kind:
        """What it is."""

    @property
    def where(self) -> str:
        """Where it is, to be shown: a path, or a URL without its password."""

    def contents(self) -> Iterator[Stored]:
        """Yield everything once, in the order in which it lies, in constant memory."""

    def streams(self) -> Sequence[str]:
        """Return the ids of its streams, the oldest first. The ledger of a directory is one of them."""

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Content]:
        """Yield what is there of one stream behind the line of this number.

        A journal gives it in the order of its files, the torn end of a segment as well. Other stores give it by number:
        equal copies once, all that differ.
        """

    def others(self) -> Iterator[ForeignRecord | DamagedBytes]:
        """Yield what belongs to no stream."""

    def place_of(self, line: Line) -> str:
        """Return where a line stands, to be shown."""

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
    """Return what a record of a store is. Its attributes are asked for only if its body is no line of a journal.

    The body is what the journal hashed, so it is believed, and not what the attributes say beside it.
    """
    if body is not None and (said := stream_and_seq(body)) is not None and 0 < said[1] <= _INT64_MAX:
        return said[0], Line(body, said[1], segment, offset)
    named = attributes()
    stream_id, seq = named.get(keys.SEQUENCE_STREAM_ID), _whole(named.get(keys.SEQUENCE_NUMBER))
    if isinstance(stream_id, str) and stream_id and 0 < seq <= _INT64_MAX:
        return Remains(stream_id, seq, body or b"", place)
    return ForeignRecord(event_name, _whole(time_ns), place)


def _whole(value: object) -> int:
    """Return a number that may be written as a text; 0 where it is none."""
    try:
        return int(value) if isinstance(value, str | int | float) else 0
    except (ValueError, OverflowError):
        return 0
