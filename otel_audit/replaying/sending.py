"""Send parcels one after the other, with the halving of delivery, and wait for an endpoint that is away.

A parcel becomes one request. Unlike a batch of delivery, its records may come from several writers, and whole requests
from an archive pass through unchanged.

Source: the outcome table of docs/delivery.md, with two differences, since a person is waiting: the run gives up on the
endpoint after a while, and at once if it refuses everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final, NamedTuple, Protocol

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.delivery.destination import Backoff
from otel_audit.delivery.halving import Halving, Stuck, TooLarge
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, Unavailable
from otel_audit.records.encoding import encoded_request
from otel_audit.stores.archive import halves_of, records_in

__all__ = ["JournalLine", "Parcel", "Patience", "Piece", "Place", "Request", "RequestSender", "Sending", "Trouble"]


class Place(NamedTuple):
    """A line: the name of its file, and its number from 1."""

    file: str
    line: int


class Trouble(NamedTuple):
    """A line of which something could not be sent, and the reason."""

    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class JournalLine:
    """A line that becomes one record, with the header that says who wrote it."""

    place: Place
    header: Mapping[str, Any]
    content: bytes

    @property
    def records(self) -> int:
        """Return 1: a line is one record."""
        return 1

    @property
    def size_bytes(self) -> int:
        """Return the size of the line."""
        return len(self.content)

    @property
    def largest_bytes(self) -> int:
        """Return the size of the line."""
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was sent before, unchanged."""

    place: Place
    message: ExportLogsServiceRequest

    @property
    def records(self) -> int:
        """Return how many records the request holds."""
        return records_in(self.message)

    @property
    def size_bytes(self) -> int:
        """Return the size of the request."""
        return self.message.ByteSize()

    @property
    def largest_bytes(self) -> int:
        """Return the size of the largest record."""
        scopes = (scope for logs in self.message.resource_logs for scope in logs.scope_logs)
        return max((record.ByteSize() for scope in scopes for record in scope.log_records), default=0)


Piece = JournalLine | Request


@dataclass(frozen=True, slots=True)
class Parcel:
    """Records that go out together: at least one."""

    pieces: Sequence[Piece]

    @property
    def records(self) -> int:
        """Return how many records there are."""
        return sum(piece.records for piece in self.pieces)

    @property
    def largest_bytes(self) -> int:
        """Return the size of the largest record."""
        return max(piece.largest_bytes for piece in self.pieces)

    @property
    def place(self) -> Place:
        """Return the line that the first record comes from."""
        return self.pieces[0].place

    def request(self) -> bytes:
        """Return the serialised ExportLogsServiceRequest.

        Raises:
            UnreadableLine: no record can be made of one of the lines.
        """
        # Concatenated messages are one whose repeated fields follow each other. Source: Protocol Buffers, "Encoding".
        return b"".join(_encoded(list(group)) for _, group in groupby(self.pieces, key=_envelope))

    def halves(self) -> tuple[Parcel, Parcel]:
        """Return two parcels, in order, that hold the records of this one."""
        middle = len(self.pieces) // 2
        if middle:
            return Parcel(self.pieces[:middle]), Parcel(self.pieces[middle:])
        match self.pieces[0]:
            case Request(place=place, message=message):
                first, second = halves_of(message)
                return Parcel([Request(place, first)]), Parcel([Request(place, second)])
            case JournalLine():
                raise ValueError("expected more than one record to halve, got one line")

    def samples(self) -> list[Parcel]:
        """Return none, since nobody waits for other records here."""
        return []


def _envelope(piece: Piece) -> int:
    """Return the same number for pieces whose records share one resource and scope."""
    return id(piece.header if isinstance(piece, JournalLine) else piece.message)


def _encoded(pieces: Sequence[Piece]) -> bytes:
    match pieces[0]:
        case Request(message=message):
            return message.SerializeToString()
        case JournalLine(header=header):
            return encoded_request(header, [piece.content for piece in pieces if isinstance(piece, JournalLine)])


class RequestSender(Protocol):
    """A sender of requests, such as `OtlpExporter`."""

    def send(self, request: bytes, records: int) -> ExportOutcome:
        """Send a serialised request with this many records. Return what became of it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """The limits and means of waiting for an endpoint that is away.

    `give_up_after_s` counts from the first failure. `pause` waits this many seconds, or until `stopped` is true.
    """

    give_up_after_s: float = 60.0
    backoff_cap_s: float = 60.0
    pause: Callable[[float], None] = time.sleep
    stopped: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic


class Sending:
    """Give parcels to a sender, until each record is accepted in a part, or refused twice alone. For one thread.

    `accepted` is called with each accepted part, and `refused` with each refused record.
    """

    def __init__(
        self,
        sender: RequestSender,
        patience: Patience,
        *,
        accepted: Callable[[Parcel], None],
        refused: Callable[[Trouble], None],
    ) -> None:
        self._halving = Halving(
            _RequestEndpoint(sender, patience.stopped),
            accepted=accepted,
            refused=lambda suspect: refused(Trouble(suspect.part.place, suspect.reason)),
            outlasted=_Waiting(patience).outlasted,
            clock=patience.clock,
        )

    @property
    def is_settled(self) -> bool:
        """Return True if `refused` was called for everything that was refused."""
        return not self._halving.suspects

    def deliver(self, parcel: Parcel) -> str:
        """Send a parcel.

        Return why it does not go on, or an empty text. Records not reported by then are still to be sent.
        """
        return self._reason(self._halving.deliver(parcel))

    def settle(self) -> str:
        """Find out whether the refused records are to blame. Return why some stay unsettled, or an empty text."""
        return self._reason(self._halving.ask())

    def _reason(self, stopped: TooLarge | Unavailable | Stuck | None) -> str:
        match stopped:
            case None:
                return ""
            case Stuck():
                suspects = self._halving.suspects
                (file, line), said = suspects[0].part.place, suspects[0].reason
                return f"{len(suspects)} records were refused and nothing accepted since, from {file}:{line} on: {said}"
            case TooLarge(reason=reason) | Unavailable(reason=reason):
                return reason


_STOPPED: Final = Unavailable("stopped")


class _RequestEndpoint:
    """A sender of requests as an endpoint of parcels."""

    def __init__(self, sender: RequestSender, stopped: Callable[[], bool]) -> None:
        self._sender = sender
        self._stopped = stopped
        self.accepted = 0
        self.last_accepted: Parcel | None = None
        self.largest_accepted: Parcel | None = None

    def send(self, part: Parcel) -> ExportOutcome:
        """See `Endpoint`. The outcome is also unavailable once somebody has asked to stop."""
        if self._stopped():
            return _STOPPED
        try:
            request = part.request()
        except MemoryError:
            raise
        except Exception as error:  # the request depends on the lines alone, so another attempt would fail too
            return Refused(f"no record can be built: {error or type(error).__name__}")
        outcome = self._sender.send(request, part.records)
        if isinstance(outcome, Accepted):
            self.accepted += 1
            self.last_accepted = part
            if self.largest_accepted is None or part.largest_bytes > self.largest_accepted.largest_bytes:
                self.largest_accepted = part
        return outcome

    def forget_largest(self) -> None:
        """See `Endpoint`."""
        self.largest_accepted = None


class _Waiting:
    """Wait for an endpoint that is away, as long as there is patience."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._backoff = Backoff(patience.backoff_cap_s)
        self._deadline: float | None = None  # while it is away

    def outlasted(self, outcome: ExportOutcome) -> ExportOutcome | None:
        """Return the outcome if it stands.

        Then the endpoint has answered, patience is over, or somebody has asked to stop.

        Return None, after a pause, if the part is to be sent again.
        """
        if isinstance(outcome, Unavailable) and outcome is not _STOPPED:
            return self._wait(outcome)
        if not isinstance(outcome, Unavailable):
            self._backoff.succeeded()
        self._deadline = None
        return outcome

    def _wait(self, away: Unavailable) -> Unavailable | None:
        now = self._patience.clock()
        deadline = now + self._patience.give_up_after_s if self._deadline is None else self._deadline
        self._deadline = None
        wait_s = self._backoff.failed(away.retry_after_s)
        if now >= deadline or (away.retry_after_s is not None and now + wait_s > deadline):
            return away
        self._patience.pause(min(wait_s, deadline - now))
        if self._patience.stopped():
            return replace(away, reason=f"stopped: {away.reason}")
        self._deadline = deadline
        return None
