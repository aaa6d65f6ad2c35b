"""The events of a directory as they were written: the last ones, and those that come.

No lock is taken and no lock file opened, so nobody is kept out and nothing is set free by looking.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.journal.line import Tail
from otel_audit.journal.reader import pieces, pieces_backwards, place_of, whole_bytes

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


@dataclass(slots=True)
class _Place:
    number: int
    offset: int = 0
    seq: int = 0  # of the last line before it, by which it is found again in a file that somebody cut


class Latest:
    """Reads the streams of a directory from their ends. For one thread.

    Raises, in every method:
        OSError: a file cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, _Place] = {}

    def last(self, count: int) -> list[Seen]:
        """The last lines of all streams by time, segment headers left out. `new` goes on behind them."""
        chosen: list[Seen] = []
        for stream_id, numbers in segments_in(self._directory).items():
            files = StreamFiles(self._directory, stream_id)
            ends = _ends(files, numbers)
            if not ends:
                continue
            newest = max(ends)
            tails = map(Tail.of, pieces_backwards(files.segment(newest), ends[newest]))
            seq = next((tail.seq for tail in tails if tail is not None), 0)
            self._places[stream_id] = _Place(newest, ends[newest], seq)
            chosen = heapq.nlargest(count, [*chosen, *islice(_backwards(files, ends), count)])
        return sorted(chosen)

    def new(self) -> list[Seen]:
        """Lines that were written since, also in new segments and streams, by time. At most some thousand at once."""
        found: list[Seen] = []
        for stream_id, numbers in segments_in(self._directory).items():
            place = self._places.setdefault(stream_id, _Place(numbers[0]))
            files = StreamFiles(self._directory, stream_id)
            found += islice(_forwards(files, numbers, place), max(0, _MOST_AT_ONCE - len(found)))
        return sorted(found)


def _ends(files: StreamFiles, numbers: list[int]) -> Mapping[int, int]:
    """Where the whole lines of each segment end, oldest first."""
    ends: dict[int, int] = {}
    for number in numbers:
        try:
            ends[number] = whole_bytes(files.segment(number))
        except FileNotFoundError:
            continue  # removed since the directory was listed
    return ends


def _backwards(files: StreamFiles, ends: Mapping[int, int]) -> Iterator[Seen]:
    for number in reversed(ends):
        try:
            for content in pieces_backwards(files.segment(number), ends[number]):
                if (seen := _seen(content, files.stream_id)) is not None:
                    yield seen
        except FileNotFoundError:
            continue


def _forwards(files: StreamFiles, numbers: list[int], place: _Place) -> Iterator[Seen]:
    """The lines behind a place, which moves along."""
    for number in numbers:
        if number < place.number:
            continue
        if number > place.number:
            place.number, place.offset = number, 0
        try:
            if files.segment(number).stat().st_size == place.offset:
                continue
            if place.seq:
                place.offset = place_of(files, Position(number, place.offset, place.seq)).offset
            for content, end in pieces(files.segment(number), place.offset):
                place.offset = end
                if (tail := Tail.of(content)) is not None:
                    place.seq = tail.seq
                if (seen := _seen(content, files.stream_id)) is not None:
                    yield seen
        except FileNotFoundError:
            continue


def _seen(content: bytes, stream_id: str) -> Seen | None:
    tail = Tail.of(content)
    if tail is None or tail.stream_id != stream_id or content.startswith(_HEADER_PREFIX):
        return None
    return Seen(tail.observed_ns, stream_id, tail.seq, content)
