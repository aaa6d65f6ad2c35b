"""The one reader of a stream: live traffic, a backlog and what a crashed process left are read the same way.

`StreamReader` goes on from any position, as an exporter does, over the borders of segments. `segment_lines` reads one
segment from its beginning or its end, as an onlooker does. Both give every whole line of the stream as a `Line`, and
say where the bytes stand that are none as `Damage`. Memory stays flat, whatever a file holds.

Nothing that a writer or exporter locks is opened, so nobody is kept out and nothing is set free by reading.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from otel_audit.errors import JournalUnreadable
from otel_audit.journal.files import StreamFiles, is_at
from otel_audit.journal.line import (
    FORMAT_VERSION,
    TAIL,
    TAIL_BYTES,
    Damage,
    Line,
    Position,
    last_line_in,
    names_line,
)
from otel_audit.journal.line_file import (
    Block,
    blocks,
    blocks_backwards,
    find_newline,
    last_newline,
    opened,
    read_block,
)

__all__ = [
    "Chunk",
    "Damage",
    "Line",
    "StreamReader",
    "has_lines_after",
    "header_of",
    "lines_before",
    "lines_behind",
    "place_of",
    "segment_lines",
    "segment_lines_backwards",
    "stream_header",
]

_HEADER_BYTES: Final = 4096  # most headers
_HEADER_MAX_BYTES: Final = 1 << 20
_LINE_BYTES: Final = 1024  # what a line is taken for before one was read


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read gave: whole lines of one segment, and what stands between them that is no line of the stream.

    `end` is the position behind all of it; it may have moved although there are no lines. `more`: a limit ended the
    read, or another segment follows, so there is probably more behind it.
    """

    header: Mapping[str, Any]
    lines: tuple[Line, ...]
    end: Position
    damage: tuple[Damage, ...] = ()
    more: bool = False

    @property
    def damaged(self) -> int:
        """How many pieces between newlines are no lines of the stream."""
        return len(self.damage)

    def up_to(self, seq: int, begin: Position) -> Chunk:
        """Return the part that ends with the line of this number; `begin` is where the whole began."""
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
        self._line_bytes = _LINE_BYTES
        self._found: tuple[Position | None, int] = (None, 0)  # where to go on in a file that was cut, at this size
        self._searched = (0, 0)  # behind this offset there is no newline up to the other one

    def read(self, position: Position, *, max_lines: int, max_bytes: int, until: Position | None = None) -> Chunk:
        """Return the next lines; none when there is nothing more to read now, or nothing before `until`.

        At least one line is read if there is one, however long. Damage is passed over. A last piece without a newline
        is left alone: its writer may still be at it.

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
        stop = until.offset if until is not None and until.segment == number else None
        # No more than these lines will take: what is read beyond them would be read again the next time.
        wanted = min(max_bytes, max_lines * self._line_bytes)
        block = self._block(position.offset, wanted, stop)
        if block.end == position.offset:
            if self._is_replaced():
                self.close()
                return self.read(place_of(self.files, position), max_lines=max_lines, max_bytes=max_bytes, until=until)
            closed = None if stop is not None else self.files.segment_from(number + 1)
            if closed is not None:
                # Read again now that a later segment is known: only what is read after that is all there is.
                block = self._block(position.offset, wanted, None)
                if block.end == position.offset:
                    return self._left_behind(position, closed)
        chunk = self._parse(block, position, max_lines, stop, is_cut=is_cut)
        if stop is not None and until is not None and os.fstat(self._descriptor).st_size < until.offset:
            # In a file that was cut the writer's offset says nothing of what is durable, but the number does.
            return chunk.up_to(until.seq, position)
        return chunk

    def sync(self) -> None:
        """Make durable what was read of the open segment.

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
            self._searched = (0, 0)
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

    def _block(self, offset: int, max_bytes: int, stop: int | None) -> Block:
        """Read from the offset on. What has no newline yet, and may be long, is searched for one only once."""
        searched_from, searched = self._searched
        size = os.fstat(self._descriptor).st_size
        known = searched if searched_from == offset and searched <= size else 0
        block = read_block(self._descriptor, offset, max_bytes, stop=stop, searched=known)
        if block.end == offset and stop is None:
            self._searched = (offset, size)
        return block

    def _left_behind(self, position: Position, closed: int) -> Chunk:
        """Go on with the next segment; what stands behind the last newline of this one will never be a line."""
        torn = os.fstat(self._descriptor).st_size - position.offset
        damage = (Damage(position.segment, position.offset, torn),) if torn > 0 else ()
        return Chunk(self._header, (), Position(closed, 0, position.seq), damage)

    def _parse(self, block: Block, begin: Position, max_lines: int, stop: int | None, *, is_cut: bool) -> Chunk:
        found, end = _lines_in(block, begin, self.files.stream_id, max_lines, is_cut=is_cut)
        lines = tuple(each for each in found if type(each) is Line)
        damage = tuple(each for each in found if type(each) is Damage) if len(lines) < len(found) else ()
        if lines:
            self._line_bytes = 1 + (end.offset - begin.offset) * 5 // (4 * len(found))
            self._header = self._header or self._known(self._read_header())
        # A reader that took the end of a segment for the end of the stream would rest once for each of a backlog.
        more = bool(found) and (
            end.offset < (os.fstat(self._descriptor).st_size if stop is None else stop)
            or self.files.segment(begin.segment + 1).exists()
        )
        return Chunk(self._header, lines, end, damage, more)

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
        return header_of(os.pread(self._descriptor, _HEADER_MAX_BYTES, 0)) or stream_header(self.files)


def segment_lines(files: StreamFiles, number: int, after: Position | None = None) -> Iterator[Line | Damage]:
    """Yield what stands in a segment, in its order: from its beginning on, or behind a position in it.

    Raises:
        OSError: it cannot be read.
    """
    place = Position(number) if after is None else place_of(files, after)
    is_cut = place != after or not place.offset
    with opened(files.segment(number)) as descriptor:
        for block in blocks(descriptor, place.offset):
            found, place = _lines_in(block, place, files.stream_id, is_cut=is_cut)
            is_cut = False
            yield from found


def segment_lines_backwards(files: StreamFiles, number: int, end: int | None = None) -> Iterator[Line | Damage]:
    """Yield what stands in a segment from its last line to its first; before the offset `end`, if it is given.

    Raises:
        OSError: it cannot be read.
    """
    with opened(files.segment(number)) as descriptor:
        if end is None:
            end = last_newline(descriptor, os.fstat(descriptor).st_size) + 1
        for block in blocks_backwards(descriptor, end):
            found, _ = _lines_in(block, Position(number, block.offset), files.stream_id, is_cut=True)
            yield from reversed(found)


def _lines_in(
    block: Block, begin: Position, stream_id: str, max_pieces: int = -1, *, is_cut: bool = False
) -> tuple[list[Line | Damage], Position]:
    """Return what stands between the newlines of a block, and the position behind it.

    `is_cut`: the first line may stand behind the remains of another one, whatever its number is.
    """
    segment, offset, seq = begin
    if not block.data:
        length = block.end - offset - 1
        return ([Damage(segment, offset, length)], Position(segment, block.end, seq)) if length >= 0 else ([], begin)
    found: list[Line | Damage] = []
    search, own = TAIL.search, stream_id.encode()
    pieces = block.data.split(b"\n", max_pieces)
    del pieces[-1]  # what is behind the last newline that counts
    for content in pieces:
        length = len(content)
        match = search(content, max(0, length - TAIL_BYTES))
        if match is None or match[3] != own or content[0] != 0x7B:  # {
            found.append(Damage(segment, offset, length))
        else:
            number = int(match[4])
            if number != seq + 1 or is_cut:
                content = last_line_in(content)
            seq, is_cut = number, False
            found.append(Line(content, seq, segment, offset + length - len(content)))
        offset += length + 1
    return found, Position(segment, offset, seq)


def place_of(files: StreamFiles, position: Position) -> Position:
    """Return where the lines behind a position begin: there, or elsewhere in a segment that somebody cut.

    Raises:
        OSError: the segment cannot be read.
    """
    if not position.offset:
        return position
    with opened(files.segment(position.segment)) as descriptor:
        if _ends_line(descriptor, files.stream_id, position):
            return position
    end = 0
    for each in segment_lines(files, position.segment):
        if isinstance(each, Damage):
            end = each.offset + each.length + 1
        elif each.seq > position.seq:
            return Position(position.segment, each.offset, position.seq)
        else:
            end = each.end.offset
    return Position(position.segment, end, position.seq)


def _ends_line(descriptor: int, stream_id: str, position: Position) -> bool:
    """True if the line of this number still ends here."""
    start = max(0, position.offset - TAIL_BYTES)
    before = os.pread(descriptor, position.offset - start, start)
    return start + len(before) == position.offset and names_line(before, stream_id, position.seq)


def has_lines_after(files: StreamFiles, position: Position) -> bool:
    """Return True when a whole line of the stream stands behind this position.

    Raises:
        OSError: its files cannot be read.
    """
    number = files.segment_from(position.segment)
    if number is None:
        return False
    if number != position.segment or files.segment_from(number + 1) is not None:
        return True
    offset = place_of(files, position).offset
    with opened(files.segment(number)) as descriptor:
        return find_newline(descriptor, offset) >= 0


def lines_behind(files: StreamFiles, position: Position) -> Iterator[Line]:
    """Yield the lines that stand behind a position in its segment; none if it is gone.

    Raises:
        OSError: it cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        for each in segment_lines(files, position.segment, position):
            if isinstance(each, Line):
                yield each


def lines_before(files: StreamFiles, number: int, end: int | None = None) -> Iterator[Line]:
    """Yield the lines of a segment, the last one first; none if it is gone. Those before `end`, if it is given.

    Raises:
        OSError: it cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        for each in segment_lines_backwards(files, number, end):
            if isinstance(each, Line):
                yield each


def stream_header(files: StreamFiles, numbers: Sequence[int] | None = None) -> Mapping[str, Any]:
    """Return the oldest segment header of a stream that can be read; empty when none can.

    `numbers` are those of its segments, if they are known.
    """
    if numbers is None:  # the first one is nearly always there: to list thousands of files takes milliseconds
        return stream_header(files, [1]) or stream_header(files, files.segments())
    for number in numbers:
        with contextlib.suppress(OSError), opened(files.segment(number)) as descriptor:
            line = os.pread(descriptor, _HEADER_BYTES, 0)
            if b"\n" not in line:
                line = os.pread(descriptor, _HEADER_MAX_BYTES, 0)
            if header := header_of(line):
                return header
    return {}


def header_of(data: bytes) -> Mapping[str, Any]:
    """Return the `segment` object of these bytes' first line; empty if it is no header."""
    try:
        header = json.loads(data.partition(b"\n")[0])["segment"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}
