"""Sort the lines of many streams by stream and number, on disk and in constant memory.

Portions of some megabytes are sorted and written one after the other to an unnamed temporary file. To read a stream,
all portions that contain it are merged.

Source: external merge sort (Knuth, The Art of Computer Programming, volume 3, section 5.4).
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from otel_audit.journal.line import Line
from otel_audit.stores.store import Content, DamagedBytes, ForeignRecord, Remains, Stored

__all__ = ["SortedLines", "SortingStore"]

_PORTION_BYTES: Final = 32 << 20
_ENTRY_BYTES: Final = 200  # the memory of an entry besides its bytes
_READ_BYTES: Final = 256 << 10  # per read and portion, or less if there are many: all hold as much as one portion
_READ_MIN_BYTES: Final = 4 << 10
_HEAD: Final = struct.Struct("<QIQI?")


class _Entry(NamedTuple):
    """A line, or the remains of one. Entries sort by number, then by place, in their order of arrival."""

    seq: int
    segment: int
    offset: int
    is_line: bool
    content: bytes  # for remains, the place, a newline and the body


class _Run(NamedTuple):
    """The entries of one stream in one portion of the file."""

    offset: int
    end: int
    last_seq: int


class SortedLines:
    """Lines sorted by stream and number. Add all of them before reading the first. For one thread."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[_Entry]] = {}
        self._waiting_bytes = 0
        self._runs: dict[str, list[_Run]] = {}
        self._file: IO[bytes] | None = None

    def add(self, stored: tuple[str, Line] | Remains) -> None:
        """Add one line or the remains of one.

        Raises:
            OSError: the directory for temporary files is full.
        """
        if isinstance(stored, Remains):
            stream_id, content = stored.stream_id, b"%b\n%b" % (stored.place.encode("utf-8", "replace"), stored.body)
            entry = _Entry(stored.seq, 0, 0, False, content)
        else:
            stream_id, line = stored
            entry = _Entry(line.seq, line.segment, line.offset, True, line.content)
        self._waiting.setdefault(stream_id, []).append(entry)
        self._waiting_bytes += len(entry.content) + _ENTRY_BYTES
        if self._waiting_bytes >= _PORTION_BYTES:
            self._write()

    def streams(self) -> Sequence[str]:
        """Return the ids of all streams, oldest first."""
        return sorted(self._runs.keys() | self._waiting.keys())

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Line | Remains]:
        """Yield the lines of a stream after number `after`. Equal copies are yielded once, differing copies each."""
        behind = [run for run in self._runs.get(stream_id, ()) if run.last_seq > after]
        read_bytes = max(_READ_MIN_BYTES, min(_READ_BYTES, _PORTION_BYTES // max(1, len(behind))))
        runs = [self._entries(run, read_bytes) for run in behind]
        waiting = sorted(self._waiting.get(stream_id, ()))
        entries = merge(*runs, waiting) if runs else iter(waiting)
        for seq, copies in groupby(entries, key=lambda entry: entry.seq):
            if seq > after:
                yield from _distinct(stream_id, copies)

    def close(self) -> None:
        """Close the file, which removes it."""
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        """Sort the entries in memory, and append them to the file."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=_READ_BYTES)  # noqa: SIM115  open until `close`
        file = self._file
        for stream_id, entries in self._waiting.items():
            begin = file.tell()
            for seq, segment, offset, is_line, content in sorted(entries):
                file.write(_HEAD.pack(seq, segment, offset, len(content), is_line))
                file.write(content)
            self._runs.setdefault(stream_id, []).append(_Run(begin, file.tell(), seq))
        file.flush()
        self._waiting, self._waiting_bytes = {}, 0

    def _entries(self, run: _Run, read_bytes: int) -> Iterator[_Entry]:
        assert self._file is not None  # runs exist only in a file
        descriptor, (offset, end, _), data, place = self._file.fileno(), run, b"", 0
        while offset < end or place < len(data):
            held = len(data) - place
            needed = _HEAD.size if held < _HEAD.size else _HEAD.size + _length_at(data, place)
            if held < needed:
                more = os.pread(descriptor, min(end - offset, max(read_bytes, needed)), offset)
                data, place, offset = data[place:] + more, 0, offset + len(more)
                if not more:
                    raise OSError(None, "expected the temporary file as it was written, got one that was cut")
                continue
            seq, segment, line_offset, length, is_line = _HEAD.unpack_from(data, place)
            place += _HEAD.size
            yield _Entry(seq, segment, line_offset, is_line, data[place : place + length])
            place += length


def _length_at(data: bytes, place: int) -> int:
    length: int = _HEAD.unpack_from(data, place)[3]
    return length


def _distinct(stream_id: str, copies: Iterable[_Entry]) -> Iterator[Line | Remains]:
    """Yield the copies of one line, each distinct content once."""
    first: bytes | None = None
    others: set[bytes] = set()
    for seq, segment, offset, is_line, content in copies:
        body = content if is_line else content.partition(b"\n")[2]
        if body == first or body in others:
            continue
        if first is None:
            first = body
        else:
            others.add(body)
        if is_line:
            yield Line(body, seq, segment, offset)
        else:
            yield Remains(stream_id, seq, body, content.partition(b"\n")[0].decode())


class SortingStore:
    """A store whose records are in no order. On first use, it is read once and its lines are sorted.

    See `Store`. A subclass provides `kind`, `where` and `contents`.
    """

    def __init__(self) -> None:
        self._sorted: SortedLines | None = None

    def contents(self) -> Iterator[Stored]:
        """Yield everything once, in the order of the store."""
        raise NotImplementedError

    def streams(self) -> Sequence[str]:
        """Return the ids of the streams, oldest first."""
        return self._lines().streams()

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Content]:
        """Yield the lines of one stream after number `after`, by number."""
        return self._lines().lines_of(stream_id, after)

    def others(self) -> Iterator[ForeignRecord | DamagedBytes]:
        """Yield the records and bytes that belong to no stream."""
        return (each for each in self.contents() if isinstance(each, ForeignRecord | DamagedBytes))

    def close(self) -> None:
        """Remove the temporary file."""
        if self._sorted is not None:
            self._sorted.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lines(self) -> SortedLines:
        if self._sorted is None:
            lines = SortedLines()
            for each in self.contents():
                if not isinstance(each, ForeignRecord | DamagedBytes):
                    lines.add(each)
            self._sorted = lines
        return self._sorted
