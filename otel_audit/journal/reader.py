"""Reading a stream back by offset: one way for live traffic, a backlog, and what a crashed process left.

A segment as an onlooker reads it: forwards and backwards, without any lock.

Nothing is opened that a writer or exporter locks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from otel_audit.errors import JournalUnreadable
from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles, is_at
from otel_audit.journal.line import FORMAT_VERSION, is_system, seq_reader

__all__ = [
    "Chunk",
    "Line",
    "Piece",
    "StreamReader",
    "has_lines_after",
    "lines_behind",
    "pieces",
    "pieces_backwards",
    "place_of",
    "stream_header",
    "whole_bytes",
]


_BLOCK_BYTES: Final = 1 << 20
_LINE_MAX_BYTES: Final = 4 << 20  # far above any line that is written; what is longer is damage


class Piece(NamedTuple):
    """The bytes between two newlines, which may be a line of the chain or damage, and the offset behind them."""

    content: bytes
    end: int


def whole_bytes(path: Path) -> int:
    """How many bytes of a segment are behind a newline: what is after them, its writer may still be at.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as segment:
        end = segment.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            found = _read(segment, start, end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def pieces(path: Path, offset: int = 0) -> Iterator[Piece]:
    """What is between the newlines of a segment, from the offset on. A last piece without a newline is left alone.

    Memory stays flat, also when damage made a piece of any length: that one is passed over.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as segment:
        segment.seek(offset)
        rest, skipping = b"", False
        while block := segment.read(_BLOCK_BYTES):
            *whole, rest = (rest + block).split(b"\n")
            for content in whole:
                offset += len(content) + 1
                if not skipping:
                    yield Piece(content, offset)
                skipping = False
            if len(rest) > _LINE_MAX_BYTES:
                offset += len(rest)
                rest, skipping = b"", True


def pieces_backwards(path: Path, end: int) -> Iterator[bytes]:
    """The contents of the same pieces from the last to the first; `end` is what `whole_bytes` gave.

    Raises:
        OSError: it cannot be read.
    """
    if not end:
        return
    with path.open("rb") as segment:
        rest, skipping, start = b"", False, end - 1
        while start:
            start, stop = max(0, start - _BLOCK_BYTES), start
            rest, *whole = (_read(segment, start, stop - start) + rest).split(b"\n")
            for content in reversed(whole):
                if not skipping:
                    yield content
                skipping = False
            if len(rest) > _LINE_MAX_BYTES:
                rest, skipping = b"", True
        if not skipping:
            yield rest


def _read(segment: BinaryIO, offset: int, length: int) -> bytes:
    segment.seek(offset)
    return segment.read(length)


_HEADER_MAX_BYTES = 1 << 20
_LINE_BYTES = 1024  # what a line is taken for before one was read
_TAIL_BYTES = 260  # more than the longest tail of a line
_BEGINNING = re.compile(rb'\{"(?:event_type|system)":')


class Line(NamedTuple):
    """One whole line of a stream, without its newline, and the position behind it."""

    content: bytes
    seq: int
    system: bool
    end: Position


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read gave: whole lines of one segment, and how many pieces between them are no lines of the chain.

    `end` is the position behind all of it; it may have moved although there are no lines. `more`: a limit ended the
    read, or another segment follows, so there is probably more behind it.
    """

    header: Mapping[str, Any]
    lines: tuple[Line, ...]
    end: Position
    damaged: int = 0
    more: bool = False

    def up_to(self, seq: int, begin: Position) -> Chunk:
        """The part that ends with the line of this number; `begin` is where the whole began."""
        if not self.lines or self.lines[-1].seq <= seq:
            return self
        lines = tuple(line for line in self.lines if line.seq <= seq)
        return Chunk(self.header, lines, lines[-1].end if lines else begin)


class StreamReader:
    """Reads whole lines of one stream from any position on. For one thread at a time; writers are not disturbed."""

    def __init__(self, files: StreamFiles) -> None:
        self.files = files
        self._number = 0
        self._descriptor = -1
        self._header: Mapping[str, Any] = {}
        self._seq_of = seq_reader(files.stream_id)
        self._line_bytes = _LINE_BYTES
        self._found: tuple[Position | None, int] = (None, 0)  # where to go on in a file that was cut, at this size

    def read(self, position: Position, *, max_lines: int, max_bytes: int, until: Position | None = None) -> Chunk:
        """The next lines; none when there is nothing more to read now, or nothing before `until`.

        At least one line is read if there is one, however long. Damage is passed over and counted. A last piece
        without a newline is left alone: its writer may still be at it.

        Raises:
            OSError: the file cannot be read.
            JournalUnreadable: its format is not known.
        """
        number = self._open(position.segment)
        if number is None:
            return Chunk({}, (), position)
        if number != position.segment:
            position = Position(number, 0, position.seq)
        if until is not None and until.segment < number:
            return Chunk({}, (), position)
        place = self._place_of(position)
        is_cut = place is not None or not position.offset
        position = place or position
        left = until.offset - position.offset if until is not None and until.segment == number else None
        # No more than these lines will take: what is read beyond them would be read again the next time.
        wanted = min(max_bytes, max_lines * self._line_bytes)
        data, filled = self._whole_lines(position.offset, wanted, left)
        if not data and self._is_replaced():
            self.close()
            return self.read(place_of(self.files, position), max_lines=max_lines, max_bytes=max_bytes, until=until)
        closed = None
        if not data and left is None and (closed := self.files.segment_from(number + 1)) is not None:
            # Read again now that a later segment is known: only what is read after that is all there is. Looked for
            # only at the end of this one, since it lists the directory where a number is missing.
            data, filled = self._whole_lines(position.offset, wanted, None)
        if not data and closed is not None:
            torn = os.fstat(self._descriptor).st_size > position.offset
            return Chunk(self._header, (), Position(closed, 0, position.seq), int(torn))
        chunk = self._parse(data, filled, position, max_lines, is_cut=is_cut)
        if left is not None and until is not None and os.fstat(self._descriptor).st_size < until.offset:
            # In a file that was cut the writer's offset says nothing of what is durable, but the number does.
            return chunk.up_to(until.seq, position)
        return chunk

    def sync(self) -> None:
        """What was read of the open segment is durable.

        Raises:
            OSError: it may not be.
        """
        if self._descriptor >= 0:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        descriptor, self._descriptor, self._number = self._descriptor, -1, 0
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self, wanted: int) -> int | None:
        """Have the segment open, or the next one that exists; its number."""
        if self._number == wanted and self._descriptor >= 0:
            return wanted
        while (number := self.files.segment_from(wanted)) is not None:
            if number == self._number:
                return number
            self.close()
            try:
                self._descriptor = os.open(self.files.segment(number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # retention removed it in this moment
            self._number = number
            self._header = {}
        return number

    def _is_replaced(self) -> bool:
        """True when another file stands where the open one stood: its writer put back what somebody had removed."""
        path = self.files.segment(self._number)
        return path.exists() and not is_at(path, self._descriptor)

    def _place_of(self, position: Position) -> Position | None:
        """Where to go on in a file that somebody has cut since the position was reached; None if nobody has."""
        size = os.fstat(self._descriptor).st_size
        is_known = not position.offset or _ends_line(self._descriptor, self.files.stream_id, position)
        if is_known or (not position.seq and position.offset <= size):
            return None
        if (position, size) != self._found:  # else the file would be read again at every look
            self._found = (place_of(self.files, position), size)
        return self._found[0]

    def _whole_lines(self, offset: int, max_bytes: int, left: int | None) -> tuple[bytes, bool]:
        """Bytes from the offset to the last newline within `max_bytes`, or to the first one if that is further.

        Also whether there were at least as many bytes as were asked for. `left`: how many may be read at all.
        """
        if left is not None and left <= max_bytes:
            data = os.pread(self._descriptor, max(0, left), offset)
            return data[: data.rfind(b"\n") + 1], False
        data = os.pread(self._descriptor, max_bytes, offset)
        end = data.rfind(b"\n") + 1
        while not end and len(data) == max_bytes:
            max_bytes *= 2
            data = os.pread(self._descriptor, max_bytes, offset)
            end = data.find(b"\n") + 1
        return data[:end], len(data) == max_bytes

    def _parse(self, data: bytes, filled: bool, position: Position, max_lines: int, *, is_cut: bool) -> Chunk:
        *pieces, rest = data.split(b"\n", max_lines)
        segment, offset, seq = position
        lines: list[Line] = []
        for content in pieces:
            offset += len(content) + 1
            found = self._seq_of(content)
            if found is not None:
                if found != seq + 1 or (is_cut and not lines):
                    content = _whole(content)
                seq = found
                lines.append(Line(content, seq, is_system(content), Position(segment, offset, seq)))
        if lines:
            self._line_bytes = 1 + (offset - position.offset) * 5 // (4 * len(pieces))
            self._header = self._header or self._known(self._read_header())
        # A reader that took the end of a segment for the end of the stream would rest once for each of a backlog.
        more = filled or rest != b"" or (data != b"" and self.files.segment(segment + 1).exists())
        return Chunk(self._header, tuple(lines), Position(segment, offset, seq), len(pieces) - len(lines), more)

    def _known(self, header: Mapping[str, Any]) -> Mapping[str, Any]:
        """The header, if its format is known: what another version means by a line could be sent or counted wrong."""
        written = header.get("format", FORMAT_VERSION)
        if written != FORMAT_VERSION:
            raise JournalUnreadable(
                f"{self.files.segment(self._number)}: expected a segment of format {FORMAT_VERSION}, got {written!r}; "
                "it was written by another version of otel-audit: use that one"
            )
        return header

    def _read_header(self) -> Mapping[str, Any]:
        """The header of the open segment; another one of the stream when that is damaged: they name one writer."""
        return _header(os.pread(self._descriptor, _HEADER_MAX_BYTES, 0)) or stream_header(self.files)


def _whole(content: bytes) -> bytes:
    """The line behind what was left of one that somebody cut off: the writer has appended to it."""
    for beginning in _BEGINNING.finditer(content):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(content[beginning.start() :])
            return content[beginning.start() :]
    return content


def place_of(files: StreamFiles, position: Position) -> Position:
    """Where the lines behind a position begin: there, or elsewhere in a segment that somebody cut.

    Raises:
        OSError: the segment cannot be read.
    """
    path = files.segment(position.segment)
    if not position.offset:
        return position
    with path.open("rb", buffering=0) as segment:
        if _ends_line(segment.fileno(), files.stream_id, position):
            return position
    seq_of, end = seq_reader(files.stream_id), 0
    for content, end in pieces(path):  # the last one is used behind the loop
        if (seq_of(content) or 0) > position.seq:
            return Position(position.segment, end - len(_whole(content)) - 1, position.seq)
    return Position(position.segment, end, position.seq)


def _ends_line(descriptor: int, stream_id: str, position: Position) -> bool:
    """True if the line of this number still ends here."""
    start = max(0, position.offset - _TAIL_BYTES)
    before = os.pread(descriptor, position.offset - start, start)
    tail = before[:-1].rpartition(b"\n")[2]
    own = b',"stream_id":"%b","seq":%d' % (stream_id.encode(), position.seq)
    return (
        start + len(before) == position.offset
        and before.endswith(b"\n")
        and (own + b"," in tail or tail.endswith(own + b"}"))
    )


def has_lines_after(files: StreamFiles, position: Position) -> bool:
    """True when a whole line of the stream stands behind this position."""
    number = files.segment_from(position.segment)
    if number is None:
        return False
    if number != position.segment or files.segment_from(number + 1) is not None:
        return True
    offset = place_of(files, position).offset
    with files.segment(number).open("rb") as segment:
        segment.seek(offset)
        while block := segment.read(1 << 16):
            if b"\n" in block:
                return True
    return False


def lines_behind(files: StreamFiles, position: Position) -> Iterator[Line]:
    """The lines that stand behind a position in its segment.

    Raises:
        OSError: it cannot be read.
    """
    reader = StreamReader(files)
    try:
        while position.segment == (chunk := reader.read(position, max_lines=1 << 16, max_bytes=1 << 20)).end.segment:
            yield from chunk.lines
            if chunk.end == position:
                return
            position = chunk.end
    finally:
        reader.close()


def stream_header(files: StreamFiles, numbers: Sequence[int] | None = None) -> Mapping[str, Any]:
    """The oldest segment header of a stream that can be read; empty when none can. `numbers`: if they are known."""
    if numbers is None:  # the first one is nearly always there: to list thousands of files takes milliseconds
        return stream_header(files, [1]) or stream_header(files, files.segments())
    for number in numbers:
        with contextlib.suppress(OSError), files.segment(number).open("rb") as segment:
            header = _header(segment.readline(_HEADER_MAX_BYTES))
            if header:
                return header
    return {}


def _header(data: bytes) -> Mapping[str, Any]:
    try:
        header = json.loads(data.partition(b"\n")[0])["segment"]
    except (ValueError, KeyError, TypeError):
        return {}
    return header if isinstance(header, dict) else {}
