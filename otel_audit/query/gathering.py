"""Gather the files for DuckDB: segments of journals in place, and the lines of everything else in a temporary file.

If a segment's writer may still append to it, its whole lines are copied, so that every scan sees the same. Other
segments are held open, so that retention may remove them in the meantime.

If a segment holds anything other than whole lines, the journal's reader reads it, since that recognises torn lines.
DuckDB finds out whether a segment is whole, by the same scan as in a query: its result must include every byte.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from otel_audit.journal.line import SEGMENT, Line, last_line_in, system_start
from otel_audit.journal.line_file import BLOCK_BYTES, last_newline
from otel_audit.journal.reader import header_of, service_in, stream_header
from otel_audit.query.lines import Run
from otel_audit.stores.directory import TORN, DirectoryStore
from otel_audit.stores.loki import LokiStore
from otel_audit.stores.store import DamagedBytes, ForeignRecord, Sought, Store, Stored
from otel_audit.stores.victorialogs import VictoriaLogsStore

__all__ = ["Gathered", "HeldFiles", "Segment", "Spool"]

_HEADER: Final = system_start(SEGMENT)
_PATTERN: Final = re.compile(r"[*?\[]")
_COPIED_MAX_BYTES: Final = 256 << 20  # far above the default size of a segment
_READING: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # otherwise a pipe among the segments would block
_decode: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class Gathered:
    """Counts of what the sources hold in addition to events.

    `damaged` counts pieces of bytes that are not a line, and `others` records of other programs. `unfinished` counts
    last lines without an end in streams whose writer may be alive. They are being written, or their writer was killed.
    `removed` counts segments that retention removed before they could be read.
    """

    damaged: int = 0
    others: int = 0
    unfinished: int = 0
    removed: int = 0

    def unread(self) -> Iterator[str]:
        """Yield a sentence for each kind of thing that was not read as an event."""
        if self.damaged:
            yield f"{self.damaged} damaged pieces were passed over, which may hold events: see `otel-audit verify`"
        if self.unfinished:
            yield (
                f"{self.unfinished} lines have no end yet and were passed over: "
                "they are being written, or their writer was killed"
            )
        if self.removed:
            yield f"{self.removed} segments were not read: retention removed them meanwhile"
        if self.others:
            yield f"{self.others} records of other programs were passed over"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a journal. `file` is the name by which DuckDB reads `size_bytes` of it."""

    store: DirectoryStore
    stream_id: str
    number: int
    file: str
    size_bytes: int
    is_open: bool

    def is_whole(self, runs: Sequence[Run]) -> bool:
        """Return True if each of its bytes is in a line of its stream that DuckDB takes for JSON."""
        return [(run.stream_id, run.size_bytes) for run in runs] == [(self.stream_id, self.size_bytes)]


class HeldFiles:
    """Holds the segments of journals open, and keeps copies of growing ones in `directory`. Close it afterwards."""

    def __init__(self, directory: Path, gathered: Gathered) -> None:
        self._directory = directory
        self._gathered = gathered
        self._descriptors: list[int] = []
        self._copies = 0
        self._links = 0
        self.removed_names: list[str] = []
        """The names under which the system lists the held files after their removal."""
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2

    def add_journal(self, store: DirectoryStore, spool: Spool) -> list[Segment]:
        """Return the segments of a journal that are not empty, and add the services of its streams to the spool."""
        found = []
        for stream_id, files in store.files().items():
            spool.name_service(stream_id, service_in(stream_header(files)))
            numbers = files.segments()
            for number in numbers:
                # A writer holds its lock while it is alive, and the ledger's lock file is never removed.
                is_open = number == numbers[-1] and files.writer_lock.exists()
                try:
                    file, size_bytes = (self._copy if is_open else self._hold)(files.segment(number))
                except FileNotFoundError:
                    self._gathered.removed += 1
                    continue
                if size_bytes:
                    found.append(Segment(store, stream_id, number, file, size_bytes, is_open))
        return found

    def name_of(self, path: Path) -> str:
        """Return a name of a file by which DuckDB reads it alone. It takes one with `*`, `?` or `[` for a pattern."""
        name = str(path.absolute())
        if _PATTERN.search(name) is None:
            return name
        link = self._directory / f"link-{self._links}"
        self._links += 1
        link.symlink_to(name)
        return str(link)

    def close(self) -> None:
        """Close the files. The copies are removed with their directory."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _hold(self, path: Path) -> tuple[str, int]:
        """Return the name and the size of a file that stays readable after its removal."""
        if len(self._descriptors) >= self._most:
            return self.name_of(path), path.stat().st_size
        try:
            descriptor = os.open(path, _READING)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._most = len(self._descriptors)
            return self._hold(path)
        self._descriptors.append(descriptor)
        self.removed_names.append(f"{path.resolve()} (deleted)")  # Source: proc(5), /proc/PID/fd
        return f"/dev/fd/{descriptor}", os.fstat(descriptor).st_size

    def _copy(self, path: Path) -> tuple[str, int]:
        """Return the name and the size of a copy of the whole lines of a file that may grow."""
        descriptor = os.open(path, _READING)
        try:
            size = os.fstat(descriptor).st_size
            end = last_newline(descriptor, size) + 1
            self._gathered.unfinished += end < size
            if size > _COPIED_MAX_BYTES:
                return self._hold(path)  # if it grows in the meantime it is not whole, and the spool takes its lines
            copy = self._directory / f"{self._copies}.jsonl"
            self._copies += 1
            with open(copy, "xb") as file:
                offsets = range(0, end, BLOCK_BYTES)
                file.writelines(os.pread(descriptor, min(BLOCK_BYTES, end - each), each) for each in offsets)
        finally:
            os.close(descriptor)
        return str(copy), end


class Spool:
    """Takes the lines that DuckDB does not read in place, and counts everything that is not a line.

    Each line is preceded by the place of its stream in `services`, and by a byte that JSON never contains. The service
    is in a segment header, which may come after lines of its stream. `passed` is called with the bytes of each line.
    """

    def __init__(self, file: IO[bytes], gathered: Gathered, passed: Callable[[int], None]) -> None:
        self._file = file
        self._gathered = gathered
        self._passed = passed
        self._places: dict[str, int] = {}
        self.services: list[str] = []
        self.lines = 0

    def add_store(self, store: Store) -> None:
        """Take everything in a store."""
        self._add(store.contents())

    def add_found(self, store: LokiStore | VictoriaLogsStore, sought: Sought) -> None:
        """Take the result of a log store. Each record names the service, since the header may not be in the result."""
        for stored, service in store.search(sought):
            if isinstance(stored, tuple) and isinstance(stored[1], Line):
                self.name_service(stored[0], service)
            self._add([stored])

    def add_segment(self, segment: Segment) -> None:
        """Take one segment of a journal."""
        is_there = False
        for each in segment.store.segment(segment.stream_id, segment.number):
            is_there = True
            if isinstance(each, Line):
                self._add_line(segment.stream_id, each.content)
            # The unfinished line at the end of an open segment was counted when its whole lines were copied.
            elif not (segment.is_open and isinstance(each, DamagedBytes) and each.reason.startswith(TORN)):
                self._gathered.damaged += 1
        self._gathered.removed += not is_there

    def _add(self, contents: Iterable[Stored]) -> None:
        for each in contents:
            match each:
                case (str() as stream_id, Line() as line):
                    self._add_line(stream_id, line.content)
                case ForeignRecord():
                    self._gathered.others += 1
                case _:
                    self._gathered.damaged += 1

    def _add_line(self, stream_id: str, line: bytes) -> None:
        self._passed(len(line) + 1)
        if not _is_json(line):
            self._gathered.damaged += 1
            line = last_line_in(line)  # its writer may have continued after the remains of another one
            if not _is_json(line):
                return
        place = self._place_of(stream_id)
        if line.startswith(_HEADER):
            self.name_service(stream_id, service_in(header_of(line)))
        self._file.write(b"%d\x01%b\n" % (place, line))
        self.lines += 1

    def name_service(self, stream_id: str, service: str) -> None:
        """Record which service writes a stream. The header may be readable only in another copy of the stream."""
        place = self._place_of(stream_id)
        self.services[place] = self.services[place] or service

    def service_of(self, stream_id: str) -> str:
        """Return the service that writes a stream, or an empty text if no header names it."""
        return self.services[self._place_of(stream_id)]

    def _place_of(self, stream_id: str) -> int:
        place = self._places.setdefault(stream_id, len(self.services))
        if place == len(self.services):
            self.services.append("")
        return place


def _is_json(line: bytes) -> bool:
    try:
        _decode(line)
        line.decode()
    except (ValueError, RecursionError):
        return False
    return True
