"""The export of one stream to one destination: which lines go next, how many at a time, and how far it came.

Source: the outcome table of docs/delivery.md. `halving` finds the lines that are refused.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from otel_audit.delivery.destination import Backoff, Destination
from otel_audit.delivery.halving import Halving, Stuck, Suspect, TooLarge
from otel_audit.delivery.outcomes import Batch, Unavailable
from otel_audit.journal.counts import Progress, counts_in
from otel_audit.journal.line import Line, Position
from otel_audit.journal.reader import Chunk, StreamReader
from otel_audit.journal.shipment import Shipment

__all__ = ["Blocked", "Halved", "Idle", "Moved", "Step", "StreamExport"]

_TAIL_BYTES = 256 * 1024  # a few of the longest lines
_LINES_MAX = 1 << 16
_PLACES = 8
# The other streams of an exporter wait while the refused lines of one are looked for, but no longer than this.
_TURN_S = 1.0
_TURN_PIECES = 64
_PAUSE_AFTER_HALVING_S = 0.5
# A destination with a fixed limit would refuse every other batch if each success doubled the next one.
_ACCEPTED_BEFORE_GROWING = 16


@dataclass(frozen=True, slots=True)
class Idle:
    """There is nothing to send now."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Lines are dealt with. `full`: there are probably more."""

    full: bool


@dataclass(frozen=True, slots=True)
class Blocked:
    """Nothing moves until the destination is tried again."""

    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Halved:
    """The batch was too much at a time; the next one is smaller, after a short pause."""

    reason: str


Step = Idle | Moved | Blocked | Halved


class StreamExport:
    """Sends the lines of one stream, batch by batch, and keeps how far it came. One thread at a time."""

    def __init__(
        self,
        shipment: Shipment,
        destination: Destination,
        *,
        batch_count: int = 512,
        batch_bytes: int = 3 << 20,
        backoff_cap_s: float = 60.0,
    ) -> None:
        self.shipment = shipment
        self._destination = destination
        self._name = destination.exporter.name
        self._reader = shipment.reader()
        self._batch_count = batch_count
        # A record holds the line and its attributes, which are more than the line again. The exporter has the last
        # word.
        self._read_bytes = batch_bytes * 2 // 5
        self._limit = batch_count
        # What is kept in the cursor stops before the first suspect; `_ahead` has read on behind it.
        self._ahead = shipment.cursor.progress(self._name)
        self._halving = Halving(
            destination,
            accepted=self._accepted,
            refused=self._quarantine,
            suspected=self._suspect,
            ahead=lambda after: _lines_ahead(shipment, after.lines[-1].end),
            clock=destination.clock,
            stops_at_size=True,
        )
        self._backoff = Backoff(backoff_cap_s)
        self._chunk: Chunk | None = None  # the one that is under way
        self._retry_at = 0.0
        self._not_before = 0.0
        self._accepted_to_grow = 0
        self._blocked = ""

    @property
    def blocked(self) -> str:
        """Why this stream waits although its destination answers; empty when it does not."""
        return self._blocked

    @property
    def progress(self) -> Progress:
        """What is dealt with for good."""
        return self.shipment.cursor.progress(self._name)

    def step(self) -> Step:
        """Send the next batch and keep what became of it.

        Raises:
            OSError: a file cannot be read, or the cursor not be written; `hold` makes it safe to go on later.
        """
        away = self._halving.settle()  # another stream may have shown since that the destination accepts something
        if away is not None:
            return self._unavailable(away)
        if self._destination.clock() < self._not_before:
            return Idle()
        if self._halving.is_full:
            self._rewind()
        if self._chunk is None:
            durable = self.shipment.durable()
            chunk = self._reader.read(
                self._ahead.position, max_lines=self._limit, max_bytes=self._read_bytes, until=durable
            )
            if not chunk.lines:
                return self._nothing_to_send(chunk.end, chunk.damaged)
            if durable is None and chunk.header.get("durability") == "fsync":
                self._reader.sync()  # its writer is another process, and may not have come to it
            self._chunk = chunk
            self._halving.begin(Batch(chunk.header, chunk.lines))
        return self._sent(self._chunk)

    def retry_now(self) -> None:
        """The next step does not wait for a refused line's turn to be tried again."""
        self._not_before = self._retry_at = 0.0

    def hold(self, reason: str) -> None:
        """A step failed: this stream alone waits, and then goes on from what is kept, in a file that is opened anew."""
        self._rewind()
        self.close()
        self._blocked = reason
        self._not_before = self._destination.clock() + self._backoff.failed()

    def close(self) -> None:
        """Let go of the file that is read. Raises nothing: somebody may have closed its descriptor."""
        with contextlib.suppress(OSError):
            self._reader.close()

    def _nothing_to_send(self, end: Position, damaged: int) -> Step:
        if end != self._ahead.position:
            self._ahead = replace(self._ahead, position=end, damaged=self._ahead.damaged + damaged)
            self._keep()
            return Moved(full=True)
        if not self._halving.suspects or self._destination.clock() < self._retry_at:
            return Idle()  # a line that comes meanwhile spares the copy of one to ask with
        match self._halving.ask():
            case Unavailable() as away:
                return self._unavailable(away)
            case Stuck():
                self._rewind()  # it is tried again
                return Idle()
            case None:
                return Moved(full=True)

    def _sent(self, chunk: Chunk) -> Step:
        """Send what is not sent yet of the lines, or as much of it as one turn may take."""
        begun, pieces = self._destination.clock(), 0
        while self._halving.is_under_way:
            if pieces >= _TURN_PIECES or self._destination.clock() - begun >= _TURN_S:
                return Moved(full=True)
            pieces += 1
            match self._halving.go_on():
                case TooLarge(reason=reason, records=records):
                    return self._halved(reason, records)
                case Unavailable() as away:
                    return self._unavailable(away)
                case Stuck():
                    # They stay suspects: another stream may show that the destination accepts what is good.
                    self._not_before = self._retry_at
                    return Idle()
        self._chunk = None
        self._ahead = replace(self._ahead, position=chunk.end, damaged=self._ahead.damaged + chunk.damaged)
        self._keep()
        return Moved(full=chunk.more)

    def _accepted(self, part: Batch) -> None:
        self._ahead = _with_exported(self._ahead, part.lines)
        self._grow()
        self._move_on()

    def _quarantine(self, suspect: Suspect[Batch]) -> None:
        self._ahead = _with_quarantined(self._ahead, suspect.part.lines, suspect.reason)
        self._move_on()

    def _move_on(self) -> None:
        self._backoff.succeeded()
        self._not_before = 0.0
        self._blocked = ""
        self._keep()

    def _suspect(self, suspect: Suspect[Batch]) -> None:
        """Say why the line waits that was refused alone, and when it is looked at again."""
        self._blocked = suspect.reason
        self._tell(suspect.reason)
        self._retry_at = self._destination.clock() + self._backoff.failed()

    def _halved(self, reason: str, count: int) -> Halved:
        self._rewind()
        self._tell(reason)
        self._limit = max(1, count // 2)
        self._accepted_to_grow = _ACCEPTED_BEFORE_GROWING
        self._not_before = self._destination.clock() + _PAUSE_AFTER_HALVING_S
        return Halved(reason)

    def _grow(self) -> None:
        if self._limit >= self._batch_count:
            return
        self._accepted_to_grow -= 1
        if self._accepted_to_grow <= 0:
            self._limit = min(self._batch_count, self._limit * 2)
            self._accepted_to_grow = _ACCEPTED_BEFORE_GROWING

    def _keep(self) -> None:
        if not self._halving.suspects:
            self.shipment.cursor.advance(self._name, self._ahead)
            self._ahead = self.progress  # as it is kept: what was refused is listed elsewhere now

    def _rewind(self) -> None:
        """Go back to what is kept: what was sent since is sent again, with the same ids."""
        self._halving.forget()
        self._chunk = None
        self._ahead = self.progress

    def _unavailable(self, away: Unavailable) -> Blocked:
        self._rewind()
        self._tell(away.reason)
        return Blocked(away.reason, away.retry_after_s)

    def _tell(self, reason: str) -> None:
        """Keep why nothing moves, for whoever reads the cursor."""
        if self.progress.blocked != reason:
            self.shipment.cursor.advance(self._name, replace(self.progress, blocked=reason))
            self._ahead = replace(self._ahead, blocked=reason)


def _with_exported(progress: Progress, lines: Sequence[Line]) -> Progress:
    return progress.passed(lines[-1].end, counts_in(lines).when_exported())


def _with_quarantined(progress: Progress, lines: Sequence[Line], reason: str) -> Progress:
    counted = progress.passed(lines[-1].end, counts_in(lines).when_refused())
    for line in lines:
        counted = counted.with_quarantined(line.seq, reason)
    return counted


def _lines_ahead(shipment: Shipment, after: Position) -> Iterator[Batch]:
    """Yield lines behind the position, each alone, that may be exported now: the newest, then some from anywhere.

    Any of these may be refused as well. Since they lie elsewhere each time, one that is accepted is found in the end.

    Raises:
        OSError: they cannot be read.
    """
    durable = shipment.durable()
    end = durable or _end_of(shipment)
    reader = shipment.reader()
    try:
        newest = deque(_lines_from(reader, max(after, _near(end)), durable), maxlen=1)
        yield from newest
        for _ in range(_PLACES if newest else 0):
            yield from islice(_lines_from(reader, _between(shipment, after, end), durable), 1)
    finally:
        reader.close()


def _lines_from(reader: StreamReader, place: Position, until: Position | None) -> Iterator[Batch]:
    """Each line behind a place, which may be inside of one: what is left of that is passed over."""
    while (chunk := reader.read(place, max_lines=_LINES_MAX, max_bytes=_TAIL_BYTES, until=until)).end != place:
        place = chunk.end
        if chunk.lines and until is None and chunk.header.get("durability") == "fsync":
            reader.sync()  # its writer is another process, and may not have come to it
        for line in chunk.lines:
            yield Batch(chunk.header, [line])


def _near(end: Position) -> Position:
    return Position(end.segment, max(0, end.offset - _TAIL_BYTES), 0)


def _end_of(shipment: Shipment) -> Position:
    last = shipment.files.segments()[-1]
    return Position(last, _size_of(shipment, last), 0)


def _between(shipment: Shipment, after: Position, end: Position) -> Position:
    segment = random.randint(after.segment, max(after.segment, end.segment))
    first = after.offset if segment == after.segment else 0
    last = end.offset if segment == end.segment else _size_of(shipment, segment)
    return Position(segment, random.randint(first, max(first, last)), 0)


def _size_of(shipment: Shipment, segment: int) -> int:
    try:
        return os.stat(shipment.files.segment(segment)).st_size
    except FileNotFoundError:  # retention, or somebody else, removed it
        return 0
