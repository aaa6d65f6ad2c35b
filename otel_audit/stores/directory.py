"""A journal directory as a store: everything in its streams, or the last events followed by new ones.

Reading takes no lock and opens no lock file, so it neither keeps a writer or exporter out nor releases a lock.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from otel_audit.journal.files import StreamFiles, segments_in, streams_in
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.line import SEGMENT, Line, Position, system_start
from otel_audit.journal.line_file import hash_between, opened, whole_bytes
from otel_audit.journal.reader import lines_before, lines_behind, segment_lines
from otel_audit.stores.store import Content, DamagedBytes, ForeignRecord, Kind, Stored

__all__ = ["TORN", "DirectoryStore", "Latest", "Seen"]

_HEADER: Final = system_start(SEGMENT)  # it reports no event
_MOST_AT_ONCE: Final = 5000
TORN: Final = "expected a line that ends: torn, or not yet whole"  # why the last bytes of a segment are no line


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """A line and its place among the lines of all streams, by the time at which it was recorded."""

    observed_ns: int
    stream_id: str
    seq: int
    line: bytes


class Latest:
    """Read the streams of a directory from their ends. For one thread.

    Raises, in every method:
        OSError: a file cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, Position] = {}
        self._looked_at: dict[str, tuple[int, int]] = {}  # the segment read last, and its size before that read

    def last(self, count: int) -> list[Seen]:
        """Return the last lines of all streams by time, without segment headers. `new` continues after them."""
        chosen: list[Seen] = []
        for stream_id, numbers in segments_in(self._directory).items():
            files = StreamFiles(self._directory, stream_id)
            ends = _ends(files, numbers)
            if not ends:
                continue
            newest = max(ends)
            last = next(lines_before(files, newest, ends[newest]), None)
            self._places[stream_id] = Position(newest, ends[newest], 0) if last is None else last.end
            chosen = heapq.nlargest(count, [*chosen, *islice(_backwards(files, ends), count)])
        return sorted(chosen)

    def new(self) -> list[Seen]:
        """Return lines written since the last call, by time, a few thousand at most. New streams are included."""
        found: list[Seen] = []
        for stream_id, numbers in segments_in(self._directory).items():
            files = StreamFiles(self._directory, stream_id)
            for line in islice(self._forwards(files, numbers), max(0, _MOST_AT_ONCE - len(found))):
                found += _seen(line, stream_id)
        return sorted(found)

    def _forwards(self, files: StreamFiles, numbers: Sequence[int]) -> Iterator[Line]:
        """Yield the lines after the place reached in a stream, and advance it."""
        place = self._places.setdefault(files.stream_id, Position(numbers[0]))
        for number in numbers:
            if number < place.segment:
                continue
            if number > place.segment:
                place = Position(number, 0, place.seq)
            size = _size(files, number)
            if self._looked_at.get(files.stream_id) == (number, size):
                continue  # unchanged: any damage after the place would be read again and again
            for line in lines_behind(files, place):
                self._places[files.stream_id] = place = line.end
                yield line
            self._looked_at[files.stream_id] = (number, size)


def _ends(files: StreamFiles, numbers: Sequence[int]) -> Mapping[int, int]:
    """Return the offset at which the whole lines of each segment end, oldest segment first."""
    ends: dict[int, int] = {}
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):  # removed since the directory was listed
            ends[number] = whole_bytes(files.segment(number))
    return ends


def _size(files: StreamFiles, number: int) -> int:
    try:
        return files.segment(number).stat().st_size
    except FileNotFoundError:
        return 0  # removed since the directory was listed


def _backwards(files: StreamFiles, ends: Mapping[int, int]) -> Iterator[Seen]:
    for number in reversed(ends):
        for line in lines_before(files, number, ends[number]):
            yield from _seen(line, files.stream_id)


def _seen(line: Line, stream_id: str) -> list[Seen]:
    if line.content.startswith(_HEADER):
        return []
    return [Seen(line.tail.observed_ns, stream_id, line.seq, line.content)]


class DirectoryStore:
    """The trail in a journal directory, its ledgers included. See `Store`.

    The directory may be in use. Each segment is read up to the end that it has when it is reached, and segments that
    retention removes in the meantime are left out.
    """

    kind = Kind.JOURNAL

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self._directory = directory

    def contents(self) -> Iterator[Stored]:
        """Yield everything, stream by stream."""
        for stream_id in self.streams():
            for each in self.lines_of(stream_id):
                yield (stream_id, each) if isinstance(each, Line) else each

    def streams(self) -> Sequence[str]:
        """See `Store`."""
        return sorted(self.files())

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Content]:
        """Yield the lines of one stream. Bytes after the last newline of a segment are torn, or still being written."""
        files = self.files().get(stream_id)
        for number in files.segments() if files is not None else ():
            yield from self.segment(stream_id, number, after)

    def segment(self, stream_id: str, number: int, after: int = 0) -> Iterator[Content]:
        """Yield the lines of one segment; none if it was removed since the directory was listed."""
        files = self.files().get(stream_id)
        if files is not None:
            with contextlib.suppress(FileNotFoundError):
                yield from self._segment(files, number, after)

    def others(self) -> Iterator[ForeignRecord | DamagedBytes]:
        """Yield nothing, since everything in a journal belongs to a stream."""
        return iter(())

    def close(self) -> None:
        """See `Store`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def files(self) -> Mapping[str, StreamFiles]:
        """Return the files of each stream and ledger, by its id."""
        logs = [*streams_in(self._directory), *LedgerFiles(self._directory).logs()]
        return {files.stream_id: files for files in logs}

    def _segment(self, files: StreamFiles, number: int, after: int) -> Iterator[Content]:
        path, end = files.segment(number), 0
        for each in segment_lines(files, number):
            if isinstance(each, Line):
                end = each.end.offset
                if each.seq > after:
                    yield each
            else:
                end = each.offset + each.length + 1
                yield _damaged(path, each.offset, each.length, "expected a line of the stream")
        torn = path.stat().st_size - end
        if torn > 0:
            yield _damaged(path, end, torn, TORN)


def _damaged(path: Path, offset: int, length: int, expected: str) -> DamagedBytes:
    with opened(path) as descriptor:
        _, digest = hash_between(descriptor, offset, offset + length)
    return DamagedBytes(path.name, offset, length, digest, f"{expected}, got {length} bytes")
