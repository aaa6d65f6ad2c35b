"""The lines that a proof is made of: those of a journal directory, or those that a store has kept of it.

A proof needs the lines of one stream up to the first entry of the ledger that covers the event, the ledger up to the
note over that entry, and nothing else. Where the ledger is delivered with the events, an archive or a log store has all
of it, byte for byte.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from otel_audit.errors import JournalUnreadable, ProofInvalid
from otel_audit.journal.files import StreamFiles, segments_in, sync_file
from otel_audit.journal.ledger.entries import ENTRY
from otel_audit.journal.ledger.epochs import EpochKeys
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.line import Line, system_start
from otel_audit.journal.line_file import blocks, opened
from otel_audit.journal.reader import segment_lines, segment_lines_backwards
from otel_audit.signing.keys import VerifierKey
from otel_audit.stores.loki import LokiStore
from otel_audit.stores.sorting import SortedLines
from otel_audit.stores.store import Content, Kind, Sought, Store, pattern_of
from otel_audit.stores.victorialogs import VictoriaLogsStore
from otel_audit.verification.archive import is_ledger
from otel_audit.verification.directory import is_alive

__all__ = ["JournalLines", "Place", "SearchedLines", "StoreLines", "TrailLines", "lines_in"]

_REMOVAL: Final = b'"kind":"retain"'
_OF_LEDGER: Final = system_start(ENTRY)
_NUMBERS: Final = 10_000  # of a stream, asked for at a time; a ledger covers as many with one entry, unless it is set

LogStore = LokiStore | VictoriaLogsStore


class TrailLines(Protocol):
    """The lines of a trail. For one thread.

    Raises, in every method:
        OSError: they cannot be read.
        StoreUnreadable: a log store cannot be queried.
    """

    @property
    def where(self) -> str:
        """The place of the trail, for display."""

    def places(self, event_id: str) -> list[Place]:
        """Return each line with this event id. There is one, unless an application has used an id twice."""

    def place_at(self, stream_id: str, seq: int) -> Place | None:
        """Return the line of this number in a stream, or None if it is not there."""

    def lines_behind(self, stream_id: str, after: int) -> Iterator[Line]:
        """Yield the lines of a stream behind the line of this number, in order.

        Raises:
            ProofInvalid: two different lines have one number.
        """

    def ledgers(self) -> Sequence[str]:
        """Return the ids of the ledgers, in the order in which they were begun."""

    def ledger_lines(self, ledger_id: str) -> Iterator[Line]:
        """Yield the lines of a ledger, in order."""

    def ledger_removals(self, ledger_id: str) -> Iterator[Line]:
        """Yield the lines of a ledger that say what was removed, in any order."""

    def keys(self) -> Iterator[VerifierKey]:
        """Yield the keys that are known of epochs besides those in the ledgers."""

    def sync(self, ledger_id: str, first: int, last: int) -> None:
        """Make the segments of a ledger durable: after a loss of power it must not say that a note never was."""

    def words_of_wait(self, stream_id: str) -> str:
        """Return a sentence that says when a line that no note covers yet will be provable."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event stands: its line in a stream of a trail."""

    trail: TrailLines
    stream_id: str
    line: Line


@dataclass(frozen=True, slots=True)
class JournalLines:
    """The lines of a journal directory. Nothing is locked, and nothing is written."""

    directory: Path

    @property
    def where(self) -> str:
        """See `TrailLines`."""
        return str(self.directory)

    def places(self, event_id: str) -> list[Place]:
        """See `TrailLines`."""
        wanted = _in_line(event_id)
        return [
            Place(self, stream_id, line)
            for stream_id, numbers in segments_in(self.directory).items()
            for number in numbers
            for line in _lines_with(StreamFiles(self.directory, stream_id), number, wanted)
            if _event_id(line) == event_id
        ]

    def place_at(self, stream_id: str, seq: int) -> Place | None:
        """See `TrailLines`."""
        files = StreamFiles(self.directory, stream_id)
        for number in reversed(segments_in(self.directory).get(stream_id, ())):
            first = _first_in(files, number)
            if first is not None and first <= seq:
                lines = (each for each in segment_lines(files, number) if isinstance(each, Line) and each.seq == seq)
                line = next(lines, None)
                return Place(self, stream_id, line) if line is not None else None
        return None

    def lines_behind(self, stream_id: str, after: int) -> Iterator[Line]:
        """See `TrailLines`."""
        files = StreamFiles(self.directory, stream_id)
        numbers = files.segments()
        # Going back from the last one, the first that begins early enough is the one to begin with.
        begin = next(
            (n for n in reversed(numbers) if (first := _first_in(files, n)) is not None and first <= after + 1), 0
        )
        for number in numbers:
            if number >= begin:
                with contextlib.suppress(FileNotFoundError):  # removed in this moment
                    yield from (
                        each for each in segment_lines(files, number) if isinstance(each, Line) and each.seq > after
                    )

    def ledgers(self) -> Sequence[str]:
        """See `TrailLines`."""
        return [log.directory_id for log in LedgerFiles(self.directory).logs()]

    def ledger_lines(self, ledger_id: str) -> Iterator[Line]:
        """See `TrailLines`."""
        log = self._log(ledger_id)
        for number in log.segments():
            yield from (each for each in segment_lines(log, number) if isinstance(each, Line))

    def ledger_removals(self, ledger_id: str) -> Iterator[Line]:
        """See `TrailLines`. The last one comes first, since it is looked for."""
        log = self._log(ledger_id)
        for number in reversed(log.segments()):
            for each in segment_lines_backwards(log, number):
                if isinstance(each, Line) and _REMOVAL in each.content:
                    yield each

    def keys(self) -> Iterator[VerifierKey]:
        """Yield the keys of the epochs whose announcement retention may have removed from the ledger."""
        with contextlib.suppress(JournalUnreadable):
            for record in EpochKeys.read(self.directory):
                yield record.vkey

    def sync(self, ledger_id: str, first: int, last: int) -> None:
        """See `TrailLines`."""
        log = self._log(ledger_id)
        for number in range(first, last + 1):
            sync_file(log.segment(number))

    def words_of_wait(self, stream_id: str) -> str:
        """See `TrailLines`."""
        if is_alive(StreamFiles(self.directory, stream_id)) is False:
            return "Its writer is gone; it will be when the next process that uses this directory takes the stream over"
        return (
            "It will be within OTEL_AUDIT_HEAD_SECONDS of its writer (300 unless set), after OTEL_AUDIT_HEAD_LINES "
            "more lines, or when its writer ends, whatever comes first"
        )

    def _log(self, ledger_id: str) -> LedgerLog:
        logs = LedgerFiles(self.directory).logs()
        return next((log for log in logs if log.directory_id == ledger_id), LedgerLog(self.directory, ledger_id))


class LinesByStream(Protocol):
    """The part of `Store` that proofs need."""

    @property
    def where(self) -> str:
        """See `Store`."""

    def streams(self) -> Sequence[str]:
        """See `Store`."""

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Content]:
        """See `Store`."""


class StoreLines:
    """The lines that a store has kept. Whatever the store does not hold in order, it sorts on disk at first use."""

    def __init__(self, store: LinesByStream) -> None:
        self.store = store
        self._ledgers: Sequence[str] | None = None

    @property
    def where(self) -> str:
        """See `TrailLines`."""
        return self.store.where

    def places(self, event_id: str) -> list[Place]:
        """See `TrailLines`."""
        wanted, ledgers = _in_line(event_id), self.ledgers()
        return [
            Place(self, stream_id, each)
            for stream_id in self.store.streams()
            if stream_id not in ledgers
            for each in self.store.lines_of(stream_id)
            if isinstance(each, Line) and wanted in each.content and _event_id(each) == event_id
        ]

    def place_at(self, stream_id: str, seq: int) -> Place | None:
        """See `TrailLines`."""
        first = next((each for each in self.store.lines_of(stream_id, seq - 1) if isinstance(each, Line)), None)
        return Place(self, stream_id, first) if first is not None and first.seq == seq else None

    def lines_behind(self, stream_id: str, after: int) -> Iterator[Line]:
        """See `TrailLines`."""
        for each in self.store.lines_of(stream_id, after):
            if isinstance(each, Line):
                if each.seq == after:
                    raise ProofInvalid(f"two different lines have the number {after}")
                after = each.seq
                yield each

    def ledgers(self) -> Sequence[str]:
        """See `TrailLines`."""
        if self._ledgers is None:
            self._ledgers = [each for each in self.store.streams() if is_ledger(each, self.store.lines_of(each))]
        return self._ledgers

    def ledger_lines(self, ledger_id: str) -> Iterator[Line]:
        """See `TrailLines`."""
        return (each for each in self.store.lines_of(ledger_id) if isinstance(each, Line))

    def ledger_removals(self, ledger_id: str) -> Iterator[Line]:
        """See `TrailLines`."""
        return (each for each in self.ledger_lines(ledger_id) if _REMOVAL in each.content)

    def keys(self) -> Iterator[VerifierKey]:
        """Yield nothing: what a store has of the keys is in its ledgers."""
        return iter(())

    def sync(self, ledger_id: str, first: int, last: int) -> None:
        """Do nothing: the journal lets no line go before the note over it is durable."""

    def words_of_wait(self, stream_id: str) -> str:
        """See `TrailLines`."""
        return (
            "It will be when the journal has signed it and its ledger has come here too; in the journal itself it may "
            "be provable already"
        )


class _SearchedStreams:
    """The streams of a log store, of which only some numbers of one stream are asked for at a time."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self.where = store.where

    def streams(self) -> Sequence[str]:
        """Return the ledgers, by their entries, with which no line of an application begins."""
        found = self.search(Sought([f"^{pattern_of(_OF_LEDGER.decode())}"]))
        return sorted({stream_id for stream_id, _ in found})

    def lines_of(self, stream_id: str, after: int = 0) -> Iterator[Content]:
        first, found = after + 1, True
        while found:
            end = first + _NUMBERS
            found = False
            for each in self._sorted(Sought(stream_id=stream_id, first=first, end=end)):
                found = True
                yield each
            first = end
        yield from self._sorted(Sought(stream_id=stream_id, first=first))  # behind a hole

    def search(self, sought: Sought) -> Iterator[tuple[str, Line]]:
        for stored, _ in self._store.search(sought):
            match stored:
                case (str() as stream_id, Line() as line):
                    yield stream_id, line

    def _sorted(self, sought: Sought) -> Iterator[Content]:
        with contextlib.closing(SortedLines()) as lines:
            for stream_id, line in self.search(sought):
                if stream_id == sought.stream_id:
                    lines.add((stream_id, line))
            yield from lines.lines_of(sought.stream_id, sought.first - 1)


class SearchedLines(StoreLines):
    """The lines of a log store, which is asked for those of one proof at a time rather than read to its end."""

    def __init__(self, store: LogStore) -> None:
        self._searched = _SearchedStreams(store)
        super().__init__(self._searched)

    def places(self, event_id: str) -> list[Place]:
        """See `TrailLines`."""
        if any("\ud800" <= char <= "\udfff" for char in event_id):  # no store accepts it
            return []
        pattern, ledgers = pattern_of(_in_line(event_id).decode()), self.ledgers()
        found = {
            (stream_id, line.content): Place(self, stream_id, line)
            for stream_id, line in self._searched.search(Sought([pattern]))
            if stream_id not in ledgers and _event_id(line) == event_id
        }
        return sorted(found.values(), key=lambda place: (place.stream_id, place.line.seq))

    def ledgers(self) -> Sequence[str]:
        """See `TrailLines`."""
        if self._ledgers is None:
            self._ledgers = self._searched.streams()
        return self._ledgers


def lines_in(store: Store, *, for_one: bool = False) -> TrailLines:
    """Return the lines of a store, of whatever kind. `for_one` proof, a log store is not read to its end."""
    if for_one and isinstance(store, LokiStore | VictoriaLogsStore):
        return SearchedLines(store)
    return JournalLines(Path(store.where)) if store.kind is Kind.JOURNAL else StoreLines(store)


def _in_line(event_id: str) -> bytes:
    return json.dumps(event_id, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _lines_with(files: StreamFiles, number: int, wanted: bytes) -> Iterator[Line]:
    with contextlib.suppress(FileNotFoundError):  # removed in this moment
        with opened(files.segment(number)) as descriptor:
            if not any(wanted in block.data for block in blocks(descriptor)):
                return
        for each in segment_lines(files, number):
            if isinstance(each, Line) and wanted in each.content:
                yield each


def _event_id(line: Line) -> object:
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        return json.loads(line.content).get("event_id")
    return None


def _first_in(files: StreamFiles, number: int) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return next((each.seq for each in segment_lines(files, number) if isinstance(each, Line)), None)
    return None
