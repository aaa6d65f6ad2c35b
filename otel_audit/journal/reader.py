"""The reader of a stream, used alike for live traffic, a backlog and the leftovers of a crashed process.

`StreamReader` continues from any position, across segments, as an exporter does. `segment_lines` reads one segment from
its beginning or its end, as an onlooker does. Both return every whole line of the stream as a `Line`, and report all
other bytes as `Damage`. Memory stays flat, whatever a file holds.

Reading opens no lock file, so it neither keeps a writer or exporter out nor releases one of their locks.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

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
    "service_in",
    "stream_header",
]

_HEADER_BYTES: Final = 4096  # most headers
_HEADER_MAX_BYTES: Final = 1 << 20


class _HeaderLine(msgspec.Struct):
    segment: dict[str, Any]


_decode: Final = msgspec.json.Decoder(_HeaderLine).decode
_LINES_AT_A_TIME: Final = 128  # as much work as building 32 records
_LINE_BYTES: Final = 1024  # the assumed length of a line before any was read


class Chunk(msgspec.Struct, frozen=True):
    """The result of one read: whole lines of one segment, and the damage between them.

    `end` is the position after all of it, and may advance even if there are no lines. If `more` is true, a limit ended
    the read or another segment follows, so there is probably more to read.
    """

    header: Mapping[str, Any]
    lines: tuple[Line, ...]
    end: Position
    damage: tuple[Damage, ...] = ()
    more: bool = False

    @property
    def damaged(self) -> int:
        """The number of pieces between newlines that are not lines of the stream."""
        return len(self.damage)

    def up_to(self, seq: int, begin: Position) -> Chunk:
        """Return the part that ends with line `seq`. `begin` is the position where this chunk began."""
        if not self.lines or self.lines[-1].seq <= seq:
            return self
        lines = tuple(line for line in self.lines if line.seq <= seq)
        return Chunk(self.header, lines, lines[-1].end if lines else begin)


class StreamReader:
    """Read whole lines of one stream from any position. For one thread at a time; writers are not disturbed.

    `give_way` is called after every 128 lines, so that an event loop of the same process is not held up.
    """

    def __init__(self, files: StreamFiles, *, give_way: Callable[[], None] | None = None) -> None:
        self.files = files
        self._give_way = give_way
        self._number = 0
        self._descriptor = -1
        self._header: Mapping[str, Any] = {}
        self._line_bytes = _LINE_BYTES
        self._found: tuple[Position | None, int] = (None, 0)  # where to continue in a cut file, and its size then
        self._searched = (0, 0)  # there is no newline between these two offsets

    def read(self, position: Position, *, max_lines: int, max_bytes: int, until: Position | None = None) -> Chunk:
        """Return the next lines; none if there is nothing more to read now, or nothing before `until`.

        If there is a line, at least one is returned, however long it is. Damage is skipped. A last piece without a
        newline is left alone, since its writer may not have finished it.

        Raises:
            OSError: the file cannot be read.
            JournalUnreadable: the format of the file is unknown.
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
        # Read no more than these lines should take: any bytes beyond them would be read again the next time.
        wanted = min(max_bytes, max_lines * self._line_bytes)
        block = self._block(position.offset, wanted, stop)
        if block.end == position.offset:
            if self._is_replaced():
                self.close()
                return self.read(place_of(self.files, position), max_lines=max_lines, max_bytes=max_bytes, until=until)
            closed = None if stop is not None else self.files.segment_from(number + 1)
            if closed is not None:
                # A later segment exists, so this one no longer grows. Read it again to be sure to have all of it.
                block = self._block(position.offset, wanted, None)
                if block.end == position.offset:
                    return self._left_behind(position, closed)
        chunk = self._parse(block, position, max_lines, stop, is_cut=is_cut)
        if stop is not None and until is not None and os.fstat(self._descriptor).st_size < until.offset:
            # In a file that was cut, the writer's offset does not tell which lines are durable. The line number does.
            return chunk.up_to(until.seq, position)
        return chunk

    def sync(self) -> None:
        """Make the lines that were read from the open segment durable.

        Raises:
            OSError: they may not be durable.
        """
        if self._descriptor >= 0:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file. A later read opens it again."""
        descriptor, self._descriptor, self._number = self._descriptor, -1, 0
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self, wanted: int) -> int | None:
        """Open this segment, or the next one that exists, and return its number. Return None if there is none."""
        if self._number == wanted and self._descriptor >= 0:
            return wanted
        while (number := self.files.segment_from(wanted)) is not None:
            if number == self._number:
                return number
            self.close()
            try:
                self._descriptor = os.open(self.files.segment(number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # retention has just removed it
            self._number = number
            self._header = {}
            self._searched = (0, 0)
        return number

    def _is_replaced(self) -> bool:
        """Return True if the path now holds another file: somebody removed the open one and its writer restored it."""
        path = self.files.segment(self._number)
        return path.exists() and not is_at(path, self._descriptor)

    def _place_of(self, position: Position) -> Position | None:
        """Return where to continue if somebody has cut the file since the position was reached, else None."""
        size = os.fstat(self._descriptor).st_size
        is_known = not position.offset or _ends_line(self._descriptor, self.files.stream_id, position)
        if is_known or (not position.seq and position.offset <= size):
            return None
        if (position, size) != self._found:  # otherwise every call would read the file again
            self._found = (place_of(self.files, position), size)
        return self._found[0]

    def _block(self, offset: int, max_bytes: int, stop: int | None) -> Block:
        """Read from the offset on. A long piece without a newline is searched for one only once."""
        searched_from, searched = self._searched
        size = os.fstat(self._descriptor).st_size
        known = searched if searched_from == offset and searched <= size else 0
        block = read_block(self._descriptor, offset, max_bytes, stop=stop, searched=known)
        if block.end == offset and stop is None:
            self._searched = (offset, size)
        return block

    def _left_behind(self, position: Position, closed: int) -> Chunk:
        """Continue with the next segment. Anything after the last newline of this one will never become a line."""
        torn = os.fstat(self._descriptor).st_size - position.offset
        damage = (Damage(position.segment, position.offset, torn),) if torn > 0 else ()
        return Chunk(self._header, (), Position(closed, 0, position.seq), damage)

    def _parse(self, block: Block, begin: Position, max_lines: int, stop: int | None, *, is_cut: bool) -> Chunk:
        found, end = _lines_in(block, begin, self.files.stream_id, max_lines, is_cut=is_cut, give_way=self._give_way)
        lines = tuple(each for each in found if type(each) is Line)
        damage = tuple(each for each in found if type(each) is Damage) if len(lines) < len(found) else ()
        if lines:
            self._line_bytes = 1 + (end.offset - begin.offset) * 5 // (4 * len(found))
            self._header = self._header or self._known(self._read_header())
        # Otherwise a reader would take the end of each segment for the end of the stream, and pause there.
        more = bool(found) and (
            end.offset < (os.fstat(self._descriptor).st_size if stop is None else stop)
            or self.files.segment(begin.segment + 1).exists()
        )
        return Chunk(self._header, lines, end, damage, more)

    def _known(self, header: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the header if its format is known. Lines of an unknown format could be sent or counted wrongly."""
        written = header.get("format", FORMAT_VERSION)
        if written != FORMAT_VERSION:
            raise JournalUnreadable(
                f"{self.files.segment(self._number)}: expected a segment of format {FORMAT_VERSION}, got {written!r}; "
                "it was written by another version of otel-audit: use that one"
            )
        return header

    def _read_header(self) -> Mapping[str, Any]:
        """Return the header of the open segment, or another header of the stream if that one is damaged.

        All headers of a stream describe the same writer.
        """
        return header_of(os.pread(self._descriptor, _HEADER_MAX_BYTES, 0)) or stream_header(self.files)


def segment_lines(files: StreamFiles, number: int, after: Position | None = None) -> Iterator[Line | Damage]:
    """Yield the lines and the damage of a segment in order, from its beginning or from a position in it.

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
    """Yield the lines and the damage of a segment backwards, from its end or from the offset `end`.

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
    block: Block,
    begin: Position,
    stream_id: str,
    max_pieces: int = -1,
    *,
    is_cut: bool = False,
    give_way: Callable[[], None] | None = None,
) -> tuple[list[Line | Damage], Position]:
    """Return the lines and the damage of a block, and the position after it.

    If `is_cut`, the first line may follow the remains of another one, whatever its number is.
    """
    segment, offset, seq = begin
    if not block.data:
        length = block.end - offset - 1
        return ([Damage(segment, offset, length)], Position(segment, block.end, seq)) if length >= 0 else ([], begin)
    found: list[Line | Damage] = []
    search, own = TAIL.search, stream_id.encode()
    pieces = block.data.split(b"\n", max_pieces)
    del pieces[-1]  # the piece after the last newline that counts
    for position, content in enumerate(pieces, 1):
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
        if give_way is not None and position % _LINES_AT_A_TIME == 0:
            give_way()
    return found, Position(segment, offset, seq)


def place_of(files: StreamFiles, position: Position) -> Position:
    """Return where the lines after a position begin: right there, or elsewhere if somebody cut the segment.

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
    """Return True if the line with the number of this position still ends there."""
    start = max(0, position.offset - TAIL_BYTES)
    before = os.pread(descriptor, position.offset - start, start)
    return start + len(before) == position.offset and names_line(before, stream_id, position.seq)


def has_lines_after(files: StreamFiles, position: Position) -> bool:
    """Return True if a whole line of the stream follows this position.

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
    """Yield the lines after a position in its segment. Yield none if the segment is gone.

    Raises:
        OSError: it cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        for each in segment_lines(files, position.segment, position):
            if isinstance(each, Line):
                yield each


def lines_before(files: StreamFiles, number: int, end: int | None = None) -> Iterator[Line]:
    """Yield the lines of a segment backwards, from its end or from the offset `end`. Yield none if it is gone.

    Raises:
        OSError: it cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        for each in segment_lines_backwards(files, number, end):
            if isinstance(each, Line):
                yield each


def stream_header(files: StreamFiles, numbers: Sequence[int] | None = None) -> Mapping[str, Any]:
    """Return the oldest readable segment header of a stream, or an empty mapping if none can be read.

    `numbers` are the numbers of its segments, if the caller knows them.
    """
    if numbers is None:  # the first segment nearly always exists, and listing thousands of files takes milliseconds
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
    """Return the `segment` object of the first line of these bytes, or an empty mapping if it is not a header."""
    line = data.partition(b"\n")[0]
    try:
        return _decode(line).segment
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass  # not a header, or one with a number of the Resource that JSON does not have, such as NaN
    try:
        header = json.loads(line)["segment"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def service_in(header: Mapping[str, Any]) -> str:
    """Return the `service.name` in a segment header, or an empty text if it has none."""
    resource = header.get("resource")
    name = resource.get("service.name") if isinstance(resource, dict) else None
    return name if isinstance(name, str) else ""
