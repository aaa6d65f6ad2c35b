"""Reading a stream back by offset: one way for live traffic, a backlog, and what a crashed process left."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from otel_audit.errors import JournalUnreadable
from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import FORMAT_VERSION, is_system, seq_reader
from otel_audit.journal.segment_file import is_at

__all__ = ["Chunk", "Line", "StreamReader", "has_lines_after", "stream_header"]

_HEADER_MAX_BYTES = 1 << 20
_LINE_BYTES = 1024  # what a line is taken for before one was read


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


class StreamReader:
    """Reads whole lines of one stream from any position on. For one thread at a time; writers are not disturbed."""

    def __init__(self, files: StreamFiles) -> None:
        self.files = files
        self._number = 0
        self._descriptor = -1
        self._header: Mapping[str, Any] = {}
        self._seq_of = seq_reader(files.stream_id)
        self._line_bytes = _LINE_BYTES

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
        left = until.offset - position.offset if until is not None and until.segment == number else None
        # No more than these lines will take: what is read beyond them would be read again the next time.
        wanted = min(max_bytes, max_lines * self._line_bytes)
        data, filled = self._whole_lines(position.offset, wanted, left)
        if not data and self._is_replaced():
            return self.read(self._reopen(position), max_lines=max_lines, max_bytes=max_bytes, until=until)
        closed = None
        if not data and left is None and (closed := self.files.segment_from(number + 1)) is not None:
            # Read again now that a later segment is known: only what is read after that is all there is. Looked for
            # only at the end of this one, since it lists the directory where a number is missing.
            data, filled = self._whole_lines(position.offset, wanted, None)
        if not data and closed is not None:
            torn = os.fstat(self._descriptor).st_size > position.offset
            return Chunk(self._header, (), Position(closed, 0, position.seq), int(torn))
        return self._parse(data, filled, position, max_lines)

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

    def _reopen(self, position: Position) -> Position:
        """Read from the file that is there now: where the last line ended, or all of it again if it is not there."""
        self.close()
        if self._open(position.segment) == position.segment and not self._ends_a_line(position):
            return Position(position.segment, 0, position.seq)
        return position

    def _ends_a_line(self, position: Position) -> bool:
        start = max(0, position.offset - _HEADER_MAX_BYTES)
        before = os.pread(self._descriptor, position.offset - start, start)
        return before.endswith(b"\n") and self._seq_of(before[:-1].rpartition(b"\n")[2]) == position.seq

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

    def _parse(self, data: bytes, filled: bool, position: Position, max_lines: int) -> Chunk:
        *pieces, rest = data.split(b"\n", max_lines)
        segment, offset, seq = position
        lines: list[Line] = []
        for content in pieces:
            offset += len(content) + 1
            found = self._seq_of(content)
            if found is not None:
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


def has_lines_after(files: StreamFiles, position: Position) -> bool:
    """True when a whole line of the stream stands behind this position."""
    number = files.segment_from(position.segment)
    if number is None:
        return False
    if number != position.segment or files.segment_from(number + 1) is not None:
        return True
    with files.segment(number).open("rb") as segment:
        segment.seek(position.offset)
        while block := segment.read(1 << 16):
            if b"\n" in block:
                return True
    return False


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
