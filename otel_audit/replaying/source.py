"""Read the records at a path, from a journal, a collector's archive or a log of events.

A `ReplaySource` reads its files in order. The kind of file determines what is in a line. Records leave it in portions,
each with a mark after which a later run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.line import seq_reader
from otel_audit.journal.reader import header_of, stream_header
from otel_audit.records.encoding import UnreadableLine, read_line
from otel_audit.replaying.sending import JournalLine, Parcel, Piece, Place, Request, Trouble
from otel_audit.stores.archive import read_archive_line, records_in
from otel_audit.stores.compression import compression_of
from otel_audit.stores.event_log import EventLog
from otel_audit.stores.lines import LONGER_THAN_HELD, Mark, NumberedLine, first_line, is_marked, numbered_lines
from otel_audit.stores.location import NothingStored, files_in, kind_of
from otel_audit.stores.store import Kind

__all__ = [
    "ArchiveFile",
    "EventLogFile",
    "Found",
    "LineFile",
    "ParcelLimits",
    "Portion",
    "ReplaySource",
    "SegmentFile",
]


class Found(NamedTuple):
    """The content of one line: pieces to send, and for other parts the reason why they are none."""

    pieces: Sequence[Piece] = ()
    unreadable: Sequence[str] = ()


class LineFile(Protocol):
    """A file whose lines are sent."""

    def read(self, line: NumberedLine, content: bytes) -> Found:
        """Return the content of this line, which is not empty."""


class SegmentFile:
    """A segment.

    Its lines are sent unchanged, with its header, or with another one of the stream if that is damaged.
    """

    def __init__(self, path: Path, stream_id: str) -> None:
        self._name = path.name
        self._header = header_of(first_line(path)) or stream_header(StreamFiles(path.parent, stream_id))
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
    """A log of events. `header` names the sender, unless this is a single segment, which has its own."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        first = first_line(path)
        self._name = path.name
        self._header = header_of(first) or header
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


@dataclass(frozen=True, slots=True)
class ParcelLimits:
    """The limits of a parcel. A single line may exceed them."""

    records: int = 512
    bytes: int = 3 << 20


@dataclass(frozen=True, slots=True)
class Portion:
    """A parcel, with everything else that was found on the way. The next one begins after `mark` of file `file_id`.

    `unfinished` is the last line of the file, if it is not whole. It is not passed, since it may be whole the next
    time.
    """

    file_id: str
    mark: Mark
    size_bytes: int
    parcel: Parcel | None = None
    unreadable: Sequence[Trouble] = ()
    unfinished: Trouble | None = None


class ReplaySource:
    """The records at a path.

    `header` names the sender of events that have no header of their own.

    Raises:
        NothingStored: there are none.
        OSError: a file cannot be read.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._header = header
        self.kind = kind_of(path)
        if self.kind is Kind.PACKED:
            raise NothingStored(
                f"{path}: expected a journal, a collector archive or a log of events, got packed files; "
                "send what they were packed from"
            )
        self._files = _files_of(path, self.kind)

    @property
    def identity(self) -> str:
        """Return an id of the records. That of a file survives renaming, that of a directory new files."""
        if self.path.is_dir():
            return _digest(b"directory", str(self.path.resolve()).encode("utf-8", "surrogateescape"))
        return _file_id(self.path)

    def size_bytes(self) -> int | None:
        """Return the size of all files now, or None if one is compressed, since its content has an unknown size."""
        if any(compression_of(path) for path in self._files):
            return None
        return sum(path.stat().st_size for path in self._files)

    def passed_bytes(self, marks: Mapping[str, Mark]) -> int:
        """Return how many bytes lie before the marks of the files."""
        return sum(marks.get(_file_id(path), Mark()).offset for path in self._files) if marks else 0

    def goes_on(self, marks: Mapping[str, Mark]) -> bool:
        """Return True if each mark was made in its own file, and not in one that only begins alike.

        Raises:
            OSError: a file cannot be read.
        """
        return not marks or all(is_marked(path, marks.get(_file_id(path), Mark())) for path in self._files)

    def portions(self, marks: Mapping[str, Mark], limits: ParcelLimits) -> Iterator[Portion]:
        """Yield everything after the marks, file by file. Whatever is appended meanwhile is left out.

        A copy of a file goes on where the file ended, such as the compressed one beside its original.

        Raises:
            OSError: a file cannot be read.
        """
        passed = dict(marks)
        for path in self._files:
            file_id = _file_id(path)
            for portion in _Portions(path, file_id, passed.get(file_id, Mark()), limits).of(self._open(path)):
                passed[file_id] = portion.mark
                yield portion

    def _open(self, path: Path) -> LineFile:
        match self.kind:
            case Kind.JOURNAL:
                return SegmentFile(path, path.name.partition(".")[0])
            case Kind.ARCHIVE:
                return ArchiveFile(path)
            case _:
                return EventLogFile(path, self._header)


class _Portions:
    """The portions of one file after a mark."""

    def __init__(self, path: Path, file_id: str, mark: Mark, limits: ParcelLimits) -> None:
        self._path = path
        self._file_id = file_id
        self._mark = self._start = mark
        self._limits = limits
        self._pieces: list[Piece] = []
        self._records = self._bytes = 0
        self._unreadable: list[Trouble] = []

    def of(self, file: LineFile) -> Iterator[Portion]:
        unfinished = None
        for line in numbered_lines(self._path, self._mark):
            if line.content is None:
                troubles = [self._trouble(line, LONGER_THAN_HELD)]
            elif line.content.strip():
                found = file.read(line, line.content)
                records, size_bytes = _measure(found.pieces)
                if self._pieces and self._is_full(records, size_bytes):
                    yield self._portion()
                troubles = [self._trouble(line, reason) for reason in found.unreadable]
                self._pieces += found.pieces
                self._records, self._bytes = self._records + records, self._bytes + size_bytes
            else:
                troubles = []
            if line.damage:
                troubles = [self._trouble(line, line.damage)]
            if troubles and line.content is not None and not line.ended:
                unfinished = troubles[0]
                break
            self._unreadable += troubles
            self._mark = line.end
            if len(self._unreadable) >= self._limits.records:
                yield self._portion()
        if self._pieces or self._unreadable or unfinished or self._mark != self._start:
            yield self._portion(unfinished)

    def _is_full(self, records: int, size_bytes: int) -> bool:
        return self._records + records > self._limits.records or self._bytes + size_bytes > self._limits.bytes

    def _trouble(self, line: NumberedLine, reason: str) -> Trouble:
        return Trouble(Place(self._path.name, line.end.line), reason)

    def _portion(self, unfinished: Trouble | None = None) -> Portion:
        portion = Portion(
            self._file_id,
            self._mark,
            self._mark.offset - self._start.offset,
            Parcel(self._pieces) if self._pieces else None,
            self._unreadable,
            unfinished,
        )
        self._start = self._mark
        self._pieces, self._unreadable = [], []
        self._records = self._bytes = 0
        return portion


def _measure(pieces: Sequence[Piece]) -> tuple[int, int]:
    return sum(piece.records for piece in pieces), sum(piece.size_bytes for piece in pieces)


def _files_of(path: Path, kind: Kind) -> Sequence[Path]:
    if kind is not Kind.JOURNAL:
        return files_in(path)
    return [
        StreamFiles(path, stream_id).segment(number)
        for stream_id, numbers in segments_in(path).items()
        for number in numbers
    ]


def _file_id(path: Path) -> str:
    return _digest(b"file", first_line(path))


def _digest(kind: bytes, content: bytes) -> str:
    return sha256(b"%b\n%b" % (kind, content)).hexdigest()[:32]
