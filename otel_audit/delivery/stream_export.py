"""Export one stream to one destination: choose the next lines, size the batches, and keep the progress.

Source: the outcome table of docs/delivery.md. `halving` finds the lines that are refused.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec
from msgspec.structs import replace

from otel_audit.delivery.destination import Backoff, Destination
from otel_audit.delivery.halving import Halving, Stuck, Suspect, TooLarge
from otel_audit.delivery.outcomes import Batch, Unavailable, UnavailableFor
from otel_audit.journal.counts import Progress, counts_in
from otel_audit.journal.line import Line, Position
from otel_audit.journal.reader import Chunk, StreamReader
from otel_audit.journal.shipment import Shipment

__all__ = ["Blocked", "Halved", "Idle", "Moved", "Step", "StreamExport"]

_TAIL_BYTES = 256 * 1024  # a few of the longest lines
_LINES_MAX = 1 << 16
_PLACES = 8
# While the refused lines of one stream are being found, the other streams wait no longer than this.
_TURN_S = 1.0
_TURN_PIECES = 64
_PAUSE_AFTER_HALVING_S = 0.5
# A destination with a fixed limit would refuse every other batch if each success doubled the next one.
_ACCEPTED_BEFORE_GROWING = 16


class Idle(msgspec.Struct, frozen=True):
    """The result of a step that had nothing to send."""


class Moved(msgspec.Struct, frozen=True):
    """The result of a step that dealt with lines. If `full`, there are probably more."""

    full: bool


class Blocked(msgspec.Struct, frozen=True):
    """The result of a step that stalled until the destination is tried again.

    `is_overload`: the destination gave no real answer, and did so at once, perhaps because the batch is too large.
    """

    reason: str
    retry_after_s: float | None = None
    is_overload: bool = False


class Halved(msgspec.Struct, frozen=True):
    """The result of a step whose batch was too large. The next one is smaller, after a short pause."""

    reason: str


Step = Idle | Moved | Blocked | Halved


class StreamExport:
    """Send the lines of one stream, batch by batch, and keep the progress. For one thread at a time."""

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
        # A record holds the line and its attributes, which together take more than twice the line. The exporter has
        # the last word.
        self._read_bytes = batch_bytes * 2 // 5
        self._limit = batch_count
        # The progress in the cursor stops before the first suspect. `_ahead` has read on beyond it.
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
        """The reason why this stream waits although its destination answers, or an empty text."""
        return self._blocked

    @property
    def progress(self) -> Progress:
        """The progress that is settled for good."""
        return self.shipment.cursor.progress(self._name)

    def step(self) -> Step:
        """Send the next batch and store the result.

        Raises:
            OSError: a file cannot be read, or the cursor cannot be written. Call `hold` before going on later.
        """
        away = self._halving.settle()  # another stream may have had something accepted in the meantime
        if away is not None:
            return self._unavailable(away)
        if self._destination.clock() < self._not_before:
            return Idle()
        if self._halving.is_full:
            self._rewind()
        if self._chunk is None:
            durable = self.shipment.durable()
            # One line is as good a test as a whole batch. A collector with a full queue archives each copy it refuses.
            limit = 1 if self._destination.is_away else self._limit
            chunk = self._reader.read(self._ahead.position, max_lines=limit, max_bytes=self._read_bytes, until=durable)
            if not chunk.lines:
                return self._nothing_to_send(chunk.end, chunk.damaged)
            if durable is None and chunk.header.get("durability") == "fsync":
                self._reader.sync()  # its writer is another process, and may not have come to it
            self._chunk = chunk
            self._halving.begin(Batch(chunk.header, chunk.lines))
        return self._sent(self._chunk)

    def retry_now(self) -> None:
        """Let the next step try a refused line again without waiting for its turn."""
        self._not_before = self._retry_at = 0.0

    def hold(self, reason: str) -> None:
        """After a failed step, make only this stream wait, and then continue from the cursor with a reopened file."""
        self._rewind()
        self.close()
        self._blocked = reason
        self._not_before = self._destination.clock() + self._backoff.failed()

    def close(self) -> None:
        """Close the file that is being read. This never raises, even if somebody has closed its descriptor."""
        with contextlib.suppress(OSError):
            self._reader.close()

    def _nothing_to_send(self, end: Position, damaged: int) -> Step:
        if end != self._ahead.position:
            self._ahead = replace(self._ahead, position=end, damaged=self._ahead.damaged + damaged)
            self._keep()
            return Moved(full=True)
        if not self._halving.suspects or self._destination.clock() < self._retry_at:
            return Idle()  # a new line may serve as the probe, which saves sending a copy
        match self._halving.ask():
            case Unavailable() as away:
                return self._unavailable(away)
            case Stuck():
                self._rewind()  # it is tried again
                return Idle()
            case None:
                return Moved(full=True)

    def _sent(self, chunk: Chunk) -> Step:
        """Send the lines that are not sent yet, or as many as one turn may take."""
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
                    # They stay suspects, since another stream may show that the destination accepts good lines.
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
        """Keep the reason why a line that was refused alone is waiting, and when to try it again."""
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
            self._ahead = self.progress  # as stored: refused lines are in the quarantine file now

    def _rewind(self) -> None:
        """Go back to the stored progress. Later lines are sent again, with the same ids."""
        self._halving.forget()
        self._chunk = None
        self._ahead = self.progress

    def _unavailable(self, away: Unavailable) -> Blocked:
        self._rewind()
        self._tell(away.reason)
        return Blocked(away.reason, away.retry_after_s, away.cause is UnavailableFor.OVERLOAD)

    def _tell(self, reason: str) -> None:
        """Store the reason for the stall in the cursor, for its readers."""
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
    """Yield single lines after the position that may be exported now: the newest, then some from random places.

    Any of these may be refused too. Since the places differ each time, an acceptable line is found in the end.

    Raises:
        OSError: the lines cannot be read.
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
    """Yield each line after a place. If the place is inside a line, the rest of that line is skipped."""
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
    except FileNotFoundError:  # retention or somebody else has removed it
        return 0
