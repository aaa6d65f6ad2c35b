"""The events of a directory as they were written: the last ones, and those that come.

No lock is taken and no lock file opened, so nobody is kept out and nothing is set free by looking.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.line import Line, Position
from otel_audit.journal.line_file import whole_bytes
from otel_audit.journal.reader import lines_before, lines_behind

__all__ = ["Latest", "Seen"]

_HEADER_PREFIX: Final = b'{"system":"segment"'  # says nothing of what was done
_MOST_AT_ONCE: Final = 5000


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """A line and its place among those of all streams: by the time at which it was recorded."""

    observed_ns: int
    stream_id: str
    seq: int
    line: bytes


class Latest:
    """Reads the streams of a directory from their ends. For one thread.

    Raises, in every method:
        OSError: a file cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, Position] = {}
        self._looked_at: dict[str, tuple[int, int]] = {}  # the segment that was read last, and its size before that

    def last(self, count: int) -> list[Seen]:
        """Return the last lines of all streams by time, without the segment headers. `new` goes on behind them."""
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
        """Return the lines that were written since, by time, some thousand at most. New segments and streams too."""
        found: list[Seen] = []
        for stream_id, numbers in segments_in(self._directory).items():
            files = StreamFiles(self._directory, stream_id)
            for line in islice(self._forwards(files, numbers), max(0, _MOST_AT_ONCE - len(found))):
                found += _seen(line, stream_id)
        return sorted(found)

    def _forwards(self, files: StreamFiles, numbers: Sequence[int]) -> Iterator[Line]:
        """The lines behind the place of a stream, which moves along."""
        place = self._places.setdefault(files.stream_id, Position(numbers[0]))
        for number in numbers:
            if number < place.segment:
                continue
            if number > place.segment:
                place = Position(number, 0, place.seq)
            size = _size(files, number)
            if self._looked_at.get(files.stream_id) == (number, size):
                continue  # behind the place there may be damage, which would be read again and again
            for line in lines_behind(files, place):
                self._places[files.stream_id] = place = line.end
                yield line
            self._looked_at[files.stream_id] = (number, size)


def _ends(files: StreamFiles, numbers: Sequence[int]) -> Mapping[int, int]:
    """Where the whole lines of each segment end, oldest first."""
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
    if line.content.startswith(_HEADER_PREFIX):
        return []
    return [Seen(line.tail.observed_ns, stream_id, line.seq, line.content)]
