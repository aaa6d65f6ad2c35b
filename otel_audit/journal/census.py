"""Count what became of the events in a directory, from the cursors and the lines after them.

The `Counts` of each stream and of the directory add up. The counts of what retention removed come from the ledger.
Since each line has a number, events that somebody removed before an exporter had them are counted too, as `dropped`.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from otel_audit.journal.counts import Counts, Progress, counts_in, furthest_behind, refused_by_any, shared_by_all
from otel_audit.journal.cursor import Position, read_cursor
from otel_audit.journal.files import StreamFiles, cursors_in, segments_in
from otel_audit.journal.ledger.removals import Removals, stream_of
from otel_audit.journal.line import Line
from otel_audit.journal.locks import FileLock, may_live_elsewhere
from otel_audit.journal.reader import header_of, lines_behind, service_in, stream_header
from otel_audit.notices import number_of
from otel_audit.settings import Durability

__all__ = [
    "ELSEWHERE",
    "NOWHERE",
    "STATES",
    "Census",
    "Foreign",
    "Retained",
    "StreamCensus",
    "census",
    "segment_counts",
    "stream_counts",
]

NOWHERE: Final = "none"  # in a header's `export`: the journal is the destination
ELSEWHERE: Final = "ship"  # in a header's `export`: another process delivers, to an unknown place
# What `status` and `verify` call a stream, by whether its writer holds its lock. However it ended, nobody writes to it.
STATES: Final = {True: "live", False: "ended", None: "unknown"}
_LOOKS: Final = 5
_SEGMENTS_SHOWN: Final = 10


class StreamCensus(msgspec.Struct, frozen=True):
    """The counts and the condition of one stream.

    `live` is True if its writer holds its lock, and None if the lock may not be examined. `is_unattended` is True if
    events wait, their writer is gone, and nobody delivers them; it is False if that may not be examined. `is_foreign`
    is True if nobody will deliver them without being told to, since the writer may live on another machine. `missing`
    counts events that somebody removed before every exporter had them, and `missing_segments` lists the segments whose
    files were removed, but not by retention. `is_in_memory` is True if the stream was written with durability `memory`.
    """

    stream_id: str
    service_name: str
    live: bool | None
    counts: Counts
    exporters: Mapping[str, Progress]
    is_unattended: bool = False
    is_foreign: bool = False
    missing: int = 0
    missing_segments: Sequence[int] = ()
    is_in_memory: bool = False

    @property
    def blocked(self) -> dict[str, str]:
        """Return why delivery has stalled, by exporter."""
        return {name: progress.blocked for name, progress in self.exporters.items() if progress.blocked}

    @property
    def says_missing(self) -> str:
        """Return what somebody removed from the stream, or an empty text if only retention removed anything."""
        words = []
        if self.missing:
            words.append(f"{self.missing} events were taken out of the journal before every exporter had them")
        if numbers := self.missing_segments:
            shown = ", ".join(map(str, numbers[:_SEGMENTS_SHOWN])) + ("..." if len(numbers) > _SEGMENTS_SHOWN else "")
            words.append(f"somebody removed its segment{'s' * (len(numbers) > 1)} {shown}")
        return ", and ".join(words)


class Foreign(msgspec.Struct, frozen=True):
    """Events that wait in streams of other hosts, which nobody takes over without being told to."""

    directory: Path
    events: int
    streams: int

    @property
    def says(self) -> str:
        """Return how many events there are, and why nobody delivers them."""
        return (
            f"{number_of(self.events, 'event')} of {number_of(self.streams, 'stream')} from another host are waiting; "
            "on this file system no lock says whether their writers are gone"
        )

    @property
    def remedy(self) -> str:
        """Return the command that delivers them."""
        return f"be sure that they are, then run otel-audit ship --adopt-foreign {shlex.quote(str(self.directory))}"


@dataclass(frozen=True, slots=True)
class Census:
    """The counts of a directory at one moment, in nanoseconds since 1970.

    `removed` is what retention removed and no stream counts any more. `totals` include it.
    """

    directory: Path
    time_ns: int
    streams: Sequence[StreamCensus]
    removed: Counts = field(default_factory=Counts)
    totals: Counts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "totals", sum((stream.counts for stream in self.streams), self.removed))

    @property
    def foreign(self) -> Foreign:
        """Return the events that wait until somebody says that their host is gone."""
        waiting = [stream for stream in self.streams if stream.is_unattended and stream.is_foreign]
        return Foreign(self.directory, sum(stream.counts.pending for stream in waiting), len(waiting))

    @property
    def is_stuck(self) -> bool:
        """Return True if a person has to act.

        That is so if events wait that nobody delivers, or wait behind a blocked exporter, if lines are in quarantine or
        damaged, if events were lost, or if somebody removed files.
        """
        return any(
            (stream.counts.pending and stream.blocked)
            or stream.is_unattended
            or stream.counts.quarantined
            or stream.counts.dropped
            or stream.missing_segments
            # The journal's own lines are not events, but a refused gap line reports some.
            or any(progress.quarantine or progress.damaged for progress in stream.exporters.values())
            for stream in self.streams
        )


def census(directory: Path) -> Census:
    """Count a directory as it is now. No lock is kept and no line held in memory. An empty directory has no streams.

    Raises:
        OSError: a file of the directory cannot be read.
    """
    removals = Removals(directory)
    removals.refresh()
    for _ in range(_LOOKS):
        time_ns = time.time_ns()
        removed = sum((Counts.of(totals) for totals in removals.totals), Counts())
        retained = Retained(directory, removals)
        kept = [(StreamFiles(directory, stream_id), numbers) for stream_id, numbers in _kept(directory, retained)]
        streams = [_stream_census(files, numbers, retained) for files, numbers in kept]
        if not removals.refresh():
            break  # otherwise something was removed meanwhile, and may be counted twice
    return Census(directory, time_ns, streams, removed)


def _kept(directory: Path, retained: Retained) -> Iterator[tuple[str, list[int]]]:
    """Return streams and their segments, except a segment whose removal a crash has interrupted after its entry.

    Streams of which somebody removed everything except the cursor are included.
    """
    gone = retained.unfinished()
    cursors = {stream_id: list[int]() for stream_id in cursors_in(directory)}  # listed first, since a stream may be new
    for stream_id, numbers in sorted({**cursors, **segments_in(directory)}.items()):
        kept = [number for number in numbers if (stream_id, number) not in gone]
        if kept or (not numbers and _is_left_over(StreamFiles(directory, stream_id), retained)):
            yield stream_id, kept


def _is_left_over(files: StreamFiles, retained: Retained) -> bool:
    """Return True for a cursor with progress whose stream is gone, but was not removed by retention."""
    return bool(read_cursor(files.cursor, listed=False)[0]) and not retained.is_whole(files.stream_id)


def stream_counts(files: StreamFiles, numbers: Sequence[int], removals: Removals | None = None) -> Counts:
    """Return what became of the events of a stream that has these segments.

    `removals` are the removals, if already read.

    Raises:
        OSError: a file cannot be read.
    """
    return _stream_census(files, numbers, Retained(files.directory, removals)).counts


def segment_counts(files: StreamFiles, number: int) -> Counts:
    """Return the counts of one segment as if it were delivered.

    `exported` are its events, `dropped` those that its gaps report.

    Raises:
        OSError: it cannot be read.
    """
    return counts_in(_lines(files, [number], Position())).when_exported()


class Retained:
    """The removals of retention in each stream, according to the ledgers, which are read on first use."""

    def __init__(self, directory: Path, removals: Removals | None = None) -> None:
        self._directory = directory
        self._given = removals

    @cached_property
    def _removals(self) -> Removals:
        if self._given is not None:
            return self._given
        removals = Removals(self._directory)
        removals.refresh()
        return removals

    def unfinished(self) -> set[tuple[object, object]]:
        """Return streams and segments whose removal a crash may have interrupted after its entry."""
        return {(stream_of(told), told.get("segment")) for told in self._removals.last}

    def segments(self, stream_id: str) -> set[object]:
        """Return the numbers of the segments."""
        return {told.get("segment") for told in self._removals.told(stream_id)}

    def is_whole(self, stream_id: str) -> bool:
        """Return True if the whole stream was removed."""
        return any(told.get("whole") is True for told in self._removals.told(stream_id))

    def counts(self, stream_id: str, *, by_ledger: bool) -> Counts:
        """Return the counts of a stream's removed segments that the totals of the ledgers or its cursors hold."""
        told = [each for each in self._removals.told(stream_id) if bool(each.get("counts")) is by_ledger]
        return sum((Counts.of({**each, "exported": each.get("events", 0)}) for each in told), Counts())


def _stream_census(files: StreamFiles, numbers: Sequence[int], retained: Retained) -> StreamCensus:
    known, ended = read_cursor(files.cursor)  # read before the lines, so that newer lines come after it
    live = False if ended else _is_held(files.writer_lock)
    # Where nobody has begun to deliver, the header is the first of the lines to count, and the file is opened once.
    lines = None if known or not numbers else _lines(files, numbers, Position())
    first = None if lines is None else next(lines, None)
    header = (header_of(first.content) if first else {}) or stream_header(files, numbers)
    words = [word for word in header.get("export", ()) if isinstance(word, str)]
    named = () if ended else (word for word in words if word not in (NOWHERE, ELSEWHERE))
    # An exporter that the writer has and the cursor does not name has not reached its first batch yet.
    exporters = {**dict.fromkeys(named, Progress()), **known}
    slowest = furthest_behind(exporters.values())
    # Most streams of a directory with thousands have ended and are delivered. Only their header and cursor are opened.
    is_read = ended and _is_at_end(files, numbers, slowest.position)
    if lines is None:
        lines = iter(()) if is_read else _lines(files, numbers, slowest.position)
    behind, last_seq = _counted(lines if first is None else chain([first], lines))
    # In memory mode removals are not recorded, so nobody knows who removed which segment.
    is_in_memory = header.get("durability") == Durability.MEMORY
    gone = () if is_in_memory else _missing_segments(files, numbers, exporters.values(), retained)
    missing = _missing(files, numbers, slowest, behind, last_seq or slowest.position.seq, gone, retained)
    if not exporters and ELSEWHERE not in words:
        if restored := retained.segments(files.stream_id).intersection(numbers):  # the ledger counts them
            behind = counts_in(_lines(files, [number for number in numbers if number not in restored], Position()))
        counts = behind.when_exported() + Counts(dropped=missing)
    else:
        by_all = list(exporters.values())
        shared = shared_by_all(by_all, _quarantined(files, numbers, by_all))
        counts = shared + behind + Counts(dropped=slowest.counts.dropped + missing)
        missing += shared.dropped
    is_unattended = live is False and counts.pending > 0 and _is_held(files.ship_lock) is False
    return StreamCensus(
        files.stream_id,
        service_in(header),
        live,
        counts,
        exporters,
        is_unattended,
        is_unattended and may_live_elsewhere(files.directory, header),
        missing,
        gone,
        is_in_memory,
    )


def _missing_segments(
    files: StreamFiles, numbers: Sequence[int], exporters: Iterable[Progress], retained: Retained
) -> Sequence[int]:
    """Return the segments whose files are missing and that retention did not remove."""
    last = max([*numbers[-1:], *(progress.position.segment for progress in exporters)], default=0)
    if len(numbers) == last:
        return ()
    absent = sorted({*range(1, last + 1)}.difference(numbers))
    removed = retained.segments(files.stream_id) if absent else set()
    return tuple(number for number in absent if number not in removed)


def _missing(
    files: StreamFiles,
    numbers: Sequence[int],
    slowest: Progress,
    behind: Counts,
    last_seq: int,
    gone: Sequence[int],
    retained: Retained,
) -> int:
    """Return how many events have a number, but are in no file and not counted by the slowest exporter."""
    counts = slowest.counts + behind
    lines = last_seq - counts.exported - counts.quarantined - counts.pending - counts.system
    if lines <= 0:
        return 0
    elsewhere = retained.counts(files.stream_id, by_ledger=True)
    written = _system_lines(files, numbers)
    lost_system = len(gone) if written is None else written - counts.system - elsewhere.system  # their headers at least
    return max(0, lines - elsewhere.exported - elsewhere.system - max(0, lost_system))


def _system_lines(files: StreamFiles, numbers: Sequence[int]) -> int | None:
    """Return how many lines of a stream are the journal's own, wherever they are now. Its newest header tells."""
    for number in reversed(numbers):
        before = stream_header(files, [number]).get("system_lines")
        if isinstance(before, int):
            return before + counts_in(_lines(files, [number], Position())).system
    return None


def _counted(lines: Iterable[Line]) -> tuple[Counts, int]:
    """Return the counts of the lines, and the number of the last one, or 0 if there is none."""
    last_seq = 0

    def passed() -> Iterator[Line]:
        nonlocal last_seq
        for line in lines:
            last_seq = line.seq
            yield line

    return counts_in(passed()), last_seq


def _is_at_end(files: StreamFiles, numbers: Sequence[int], position: Position) -> bool:
    try:
        return (
            numbers[-1:] == [position.segment] and os.stat(files.segment(position.segment)).st_size == position.offset
        )
    except FileNotFoundError:
        return False


def _lines(files: StreamFiles, numbers: Sequence[int], position: Position) -> Iterator[Line]:
    """Yield the lines of the stream after a position. Damage is skipped."""
    for number in numbers:
        if number < position.segment:
            continue
        yield from lines_behind(files, position if number == position.segment else Position(number))


def _quarantined(files: StreamFiles, numbers: Sequence[int], exporters: Sequence[Progress]) -> int:
    """Return how many events that every exporter has reached were quarantined by at least one of them."""
    if len(exporters) <= 1:
        return furthest_behind(exporters).counts.quarantined
    ranges = refused_by_any(exporters)
    count = sum(last - first + 1 for first, last in ranges)
    listed = sum(entry.last_seq - entry.first_seq + 1 for one in exporters for entry in one.quarantine)
    if listed == sum(progress.counts.quarantined for progress in exporters):
        return count
    return count - _system_lines_in(ranges, _lines(files, numbers, Position()))


def _system_lines_in(ranges: Sequence[tuple[int, int]], lines: Iterable[Line]) -> int:
    return sum(any(first <= line.seq <= last for first, last in ranges) for line in lines if line.system)


def _is_held(lock: Path) -> bool | None:
    try:
        return FileLock.is_held(lock)
    except OSError:
        return None  # the user may not open the lock file, or the file system is read-only
