"""Gather what DuckDB reads: segments of journals as they are, and the lines of everything else in a temporary file.

A segment that its writer may still append to, or in which anything but whole lines stands, is read by the reader of
the journal, which knows what is torn. Whether a segment is whole is asked of DuckDB, by the same scan that a query
makes: no byte of the file may be missing in what it gives back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from otel_audit.journal.line import SEGMENT, Line, last_line_in, system_start
from otel_audit.journal.reader import header_of, service_in, stream_header
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.store import Content, ForeignRecord, Store, Stored

__all__ = ["Gathered", "Segment", "Spool", "closed_segments"]

_HEADER: Final = system_start(SEGMENT)
_decode: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class Gathered:
    """Counts of what is no event in the sources: damaged pieces of bytes, and records of other programs (`others`)."""

    damaged: int = 0
    others: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a journal that nobody appends to any more."""

    store: DirectoryStore
    stream_id: str
    number: int
    service: str
    path: Path
    size_bytes: int


class Spool:
    """Takes the lines that DuckDB does not read where they lie, and counts what is no line.

    Before each line stands the place of its stream in `services`, and a byte that is in no JSON. The service is known
    from a segment header, which may come behind lines of its stream.
    """

    def __init__(self, file: IO[bytes], gathered: Gathered) -> None:
        self._file = file
        self._gathered = gathered
        self._places: dict[str, int] = {}
        self.services: list[str] = []
        self.lines = 0

    def add_store(self, store: Store) -> None:
        """Take all of a store."""
        self._add(store.contents())

    def add_segment(self, store: DirectoryStore, stream_id: str, number: int) -> None:
        """Take one segment of a journal."""
        self._add((stream_id, each) if isinstance(each, Line) else each for each in store.segment(stream_id, number))

    def _add(self, contents: Iterable[Stored | Content]) -> None:
        for each in contents:
            match each:
                case (str() as stream_id, Line() as line):
                    self._add_line(stream_id, line.content)
                case ForeignRecord():
                    self._gathered.others += 1
                case _:
                    self._gathered.damaged += 1

    def _add_line(self, stream_id: str, line: bytes) -> None:
        if not _is_json(line):
            self._gathered.damaged += 1
            line = last_line_in(line)  # its writer may have gone on behind the remains of another one
            if not _is_json(line):
                return
        place = self._place_of(stream_id)
        if line.startswith(_HEADER) and not self.services[place]:
            self.services[place] = service_in(header_of(line))
        self._file.write(b"%d\x01%b\n" % (place, line))
        self.lines += 1

    def name_service(self, stream_id: str, service: str) -> None:
        """Record which service writes a stream."""
        self.services[self._place_of(stream_id)] = service

    def _place_of(self, stream_id: str) -> int:
        place = self._places.setdefault(stream_id, len(self.services))
        if place == len(self.services):
            self.services.append("")
        return place


def closed_segments(store: DirectoryStore, spool: Spool) -> list[Segment]:
    """Return the segments of a journal that nobody appends to; the lines of all others are in the spool."""
    closed = []
    for stream_id, files in store.files().items():
        service = service_in(stream_header(files))
        spool.name_service(stream_id, service)
        numbers = files.segments()
        for number in numbers:
            path = files.segment(number)
            # The writer has its lock as long as it lives; a ledger has one for good.
            if number == numbers[-1] and files.writer_lock.exists():
                spool.add_segment(store, stream_id, number)
            else:
                closed.append(Segment(store, stream_id, number, service, path, _size_of(path)))
    return [each for each in closed if each.size_bytes]


def _is_json(line: bytes) -> bool:
    try:
        _decode(line)
        line.decode()
    except (ValueError, RecursionError):
        return False
    return True


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # removed since the directory was listed
