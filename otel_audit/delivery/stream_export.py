"""The export of one stream to one destination: which lines go next, and what a refusal means for each of them.

Source: the outcome table of docs/delivery.md. A line is quarantined only when it was refused alone and the destination
has accepted another line since: a destination that refuses everything costs no line. One for which there was only a
server error is sent once more then: the error may have been over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from otel_audit.delivery.backoff import Backoff
from otel_audit.delivery.batch import Batch
from otel_audit.delivery.destination import Destination
from otel_audit.delivery.newest import newest_of
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, RefusedFor, Unavailable, UnavailableFor
from otel_audit.journal.cursor import Position, Progress
from otel_audit.journal.exportable import Exportable
from otel_audit.journal.losses import lost_events
from otel_audit.journal.reader import Line

__all__ = ["Blocked", "Destination", "Halved", "Idle", "Moved", "Step", "StreamExport"]

_SUSPECTS_MAX = 32
# From here on neighbours share a reason: a server that names each record in its own would make the cursor, which is
# written with each batch, as long as the journal.
_REASONS_MAX = 100
_TIMEOUTS_BEFORE_HALVING = 3
_PAUSE_AFTER_HALVING_S = 0.5
# A destination with a fixed limit would refuse every other batch if each success doubled the next one.
_ACCEPTED_BEFORE_GROWING = 16
_SERVER_ERROR_PATIENCE_S = 600.0


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


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A line that was refused alone. `sure`: as a line, and not by an error that may have been the server's."""

    batch: Batch
    reason: str
    sure: bool
    accepted_before: int

    @property
    def line(self) -> Line:
        return self.batch.lines[0]


class StreamExport:
    """Sends the lines of one stream, batch by batch, and keeps how far it came. One thread at a time."""

    def __init__(
        self,
        shipment: Exportable,
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
        self._batch_bytes = batch_bytes
        self._limit = batch_count
        # What is kept in the cursor stops before the first suspect; `_ahead` has read on behind it.
        self._ahead = shipment.cursor.progress(self._name)
        self._suspects: list[_Suspect] = []
        self._backoff = Backoff(backoff_cap_s)
        self._retry_at = 0.0
        self._not_before = 0.0
        self._timeouts = 0
        self._server_error_since: float | None = None
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
        if self._confirm_suspects():
            self._keep()
        if self._destination.clock() < self._not_before:
            return Idle()
        if len(self._suspects) >= _SUSPECTS_MAX:
            self._rewind()
        limit = self._limit
        durable = self.shipment.durable()
        chunk = self._reader.read(self._ahead.position, max_lines=limit, max_bytes=self._batch_bytes, until=durable)
        if not chunk.lines:
            return self._nothing_to_send(chunk.end, chunk.damaged)
        if durable is None and chunk.header.get("durability") == "fsync":
            self._reader.sync()  # its writer is another process, and may not have come to it
        stopped = self._settle(chunk.header, chunk.lines)
        if stopped is not None:
            return stopped
        self._ahead = replace(self._ahead, position=chunk.end, damaged=self._ahead.damaged + chunk.damaged)
        self._keep()
        return Moved(full=chunk.more)

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

    def _nothing_to_send(self, end: Position, damaged: int) -> Idle | Moved:
        if end != self._ahead.position:
            self._ahead = replace(self._ahead, position=end, damaged=self._ahead.damaged + damaged)
            self._keep()
            return Moved(full=True)
        if self._suspects and self._destination.clock() >= self._retry_at:
            self._rewind()  # refused alone, with nothing accepted since: it is tried again
            return Moved(full=True)
        return Idle()

    def _settle(self, header: Mapping[str, Any], lines: Sequence[Line]) -> Step | None:
        """Send the lines, in halves where they are refused, until each is accepted or was refused alone."""
        waiting = [lines]
        while waiting:
            batch = Batch(header, part := waiting.pop())
            answer = self._destination.send(batch)
            match self._judge(answer, len(part)):
                case Accepted():
                    if part is lines:  # halves that are accepted do not clear the one that is not
                        self._server_error_since = None
                    self._accepted(part)
                case Refused(reason=reason, about=RefusedFor.SIZE) if len(part) > 1:
                    return self._halved(reason, len(part))
                case Refused() if len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                case Refused(reason=reason):
                    self._suspect(batch, reason, sure=isinstance(answer, Refused))
                    if len(self._suspects) >= _SUSPECTS_MAX and not self._accepts_newer(than=part[0]):
                        # They stay suspects: another stream may show that the destination accepts what is good.
                        self._not_before = self._retry_at
                        return Idle()
                case Unavailable(reason=reason, retry_after_s=retry_after_s):
                    return self._unavailable(reason, retry_after_s)
        return None

    def _suspect(self, batch: Batch, reason: str, *, sure: bool) -> None:
        """Put a line aside that was refused alone."""
        self._suspects.append(_Suspect(batch, reason, sure, self._destination.accepted))
        self._blocked = reason
        self._tell(reason)
        self._retry_at = self._destination.clock() + self._backoff.failed()

    def _accepts_newer(self, *, than: Line) -> bool:
        """Ask with the newest line whether it is the records that are bad, when so many in a row were refused.

        Otherwise a row of bad records as long as the list of suspects would stop a stream for ever. The line is sent
        once more in its turn.
        """
        newest = newest_of(self.shipment, than.end)
        if newest is None or not isinstance(self._destination.send(newest), Accepted):
            return False
        self._confirm_suspects()
        self._keep()
        return True

    def _halved(self, reason: str, count: int) -> Halved:
        self._rewind()
        self._tell(reason)
        self._limit = max(1, count // 2)
        self._accepted_to_grow = _ACCEPTED_BEFORE_GROWING
        self._not_before = self._destination.clock() + _PAUSE_AFTER_HALVING_S
        return Halved(reason)

    def _judge(self, outcome: ExportOutcome, count: int) -> ExportOutcome:
        """What an answer means that came back more than once: too much at a time, or one record that breaks it."""
        if not isinstance(outcome, Unavailable):
            self._timeouts = 0
            return outcome
        if outcome.cause is UnavailableFor.TIMEOUT:
            self._timeouts += 1
            if self._timeouts >= _TIMEOUTS_BEFORE_HALVING and count > 1:
                self._timeouts = 0
                return Refused(outcome.reason, RefusedFor.SIZE)
        elif outcome.cause is UnavailableFor.SERVER_ERROR:
            now = self._destination.clock()
            self._server_error_since = self._server_error_since or now
            if now - self._server_error_since >= _SERVER_ERROR_PATIENCE_S:
                return Refused(outcome.reason)
        return outcome

    def _accepted(self, part: Sequence[Line]) -> None:
        self._ahead = _with_exported(self._ahead, part)
        self._grow()
        self._backoff.succeeded()
        self._blocked = ""
        self._confirm_suspects()
        self._keep()

    def _grow(self) -> None:
        if self._limit >= self._batch_count:
            return
        self._accepted_to_grow -= 1
        if self._accepted_to_grow <= 0:
            self._limit = min(self._batch_count, self._limit * 2)
            self._accepted_to_grow = _ACCEPTED_BEFORE_GROWING

    def _confirm_suspects(self) -> bool:
        """Settle the lines that were refused alone before the destination accepted another one. True if any."""
        accepted = self._destination.accepted
        waiting = [suspect for suspect in self._suspects if accepted <= suspect.accepted_before]
        due = [suspect for suspect in self._suspects if accepted > suspect.accepted_before]
        settled = 0
        while settled < len(due) and self._settles(due[settled]):
            settled += 1
        # The destination is away again: what it accepts when it is back will tell.
        accepted = self._destination.accepted
        self._suspects = waiting + [replace(suspect, accepted_before=accepted) for suspect in due[settled:]]
        if not settled:
            return False
        self._backoff.succeeded()
        self._not_before = 0.0
        self._blocked = ""
        return True

    def _settles(self, suspect: _Suspect) -> bool:
        """Count the line as quarantined, or as exported if the error is over. False when nothing can be said of it."""
        if not suspect.sure:
            match self._destination.send(suspect.batch):
                case Accepted():
                    self._ahead = _with_exported(self._ahead, suspect.batch.lines)
                    return True
                case Unavailable(cause=cause) if cause is not UnavailableFor.SERVER_ERROR:
                    return False
        self._ahead = _with_quarantined(self._ahead, suspect)
        return True

    def _keep(self) -> None:
        if not self._suspects:
            self.shipment.cursor.advance(self._name, self._ahead)
            self._ahead = self.progress  # as it is kept: memory has no list of what was refused

    def _rewind(self) -> None:
        """Go back to what is kept: what was sent since is sent again, with the same ids."""
        self._suspects = []
        self._ahead = self.progress

    def _unavailable(self, reason: str, retry_after_s: float | None) -> Blocked:
        self._rewind()
        self._tell(reason)
        return Blocked(reason, retry_after_s)

    def _tell(self, reason: str) -> None:
        """Keep why nothing moves, for whoever reads the cursor."""
        if self.progress.blocked != reason:
            self.shipment.cursor.advance(self._name, replace(self.progress, blocked=reason))
            self._ahead = replace(self._ahead, blocked=reason)


def _with_exported(progress: Progress, lines: Sequence[Line]) -> Progress:
    system = sum(line.system for line in lines)
    return replace(
        progress,
        position=_further(progress.position, lines[-1].end),
        exported=progress.exported + len(lines) - system,
        system=progress.system + system,
        dropped=progress.dropped + sum(lost_events(line.content) for line in lines if line.system),
        blocked="",
    )


def _with_quarantined(progress: Progress, suspect: _Suspect) -> Progress:
    line = suspect.line
    counted = replace(
        progress,
        quarantined=progress.quarantined + (not line.system),
        system=progress.system + line.system,
        dropped=progress.dropped + lost_events(line.content),
        position=_further(progress.position, line.end),
        blocked="",
    )
    known = progress.quarantine
    if len(known) >= _REASONS_MAX and known[-1].last_seq + 1 == line.seq:
        return counted.with_quarantined(line.seq, known[-1].reason)
    return counted.with_quarantined(line.seq, suspect.reason)


def _further(one: Position, other: Position) -> Position:
    # By the number of the line: in a file that somebody cut, a later line has a lower offset.
    return one if one.seq >= other.seq else other
