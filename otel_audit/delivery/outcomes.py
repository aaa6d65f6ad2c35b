"""The input of an exporter and its three possible answers.

Source: delivery of OTLP (specification, "OTLP/HTTP response" and "OTLP/gRPC response"), made stricter: a fault of the
endpoint never costs a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from otel_audit.journal.line import Tail
from otel_audit.journal.reader import Line

__all__ = [
    "Accepted",
    "Batch",
    "ExportOutcome",
    "Exporter",
    "Fault",
    "Refused",
    "RefusedFor",
    "Unavailable",
    "UnavailableFor",
]


class RefusedFor(StrEnum):
    """Say what a refusal may be about: the size of the batch, or one of its records. Either way it is halved.

    LIMIT is a size too, but by a limit of ours, and nothing was sent. UNANSWERED is what a time-out or an overload of a
    single record becomes on the third in a row: it may be due to its size. SERVER_ERROR is what a server error becomes
    when it does not go away: it may be due to a record. Both may still be due to the server.
    """

    SIZE = "size"
    LIMIT = "limit"
    UNANSWERED = "unanswered"
    RECORD = "record"
    SERVER_ERROR = "server error"


class UnavailableFor(StrEnum):
    """Say what kept the endpoint from accepting. Time-outs and server errors that stay are looked at more closely.

    With TIMEOUT and OVERLOAD the request was on its way, so its size may be the reason. A connection that cannot be
    made in time is the ENDPOINT's fault, and so is a server that says when to come back.
    """

    ENDPOINT = "endpoint"
    TIMEOUT = "timeout"
    OVERLOAD = "overload"
    SERVER_ERROR = "server error"


class Fault(StrEnum):
    """Name what is wrong at an endpoint, for whoever has to mend it. Delivery treats them all alike.

    NOT_OTLP means that something answers that takes no records, such as a login page; NO_SERVICE is gRPC without a
    pipeline for logs; CLOSED means that the other side hangs up.
    """

    CREDENTIALS = "credentials"
    PROXY = "proxy"
    PATH = "path"
    PROTOCOL = "protocol"
    NOT_OTLP = "not OTLP"
    NO_SERVICE = "no service"
    BUSY = "busy"
    SLOW = "slow"
    SERVER = "server"
    NOTHING_LISTENS = "nothing listens"
    NAME = "name"
    TLS = "TLS"
    CLOSED = "closed"
    OTHER = "other"


class Accepted(msgspec.Struct, frozen=True):
    """The destination has every record. `warning` is its remark, if any."""

    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination does not take these records as they are: they are too large together, or one of them is bad.

    `each` is true if every one of them may be refused for this reason: the destination counted as many rejections as
    there are records, or said that they are too old. Two refusals that differ in it alone are equal, because it says no
    more than the reason does.
    """

    reason: str
    about: RefusedFor = RefusedFor.RECORD
    each: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The endpoint is at fault. Nothing moves; the same records are sent again after `retry_after_s` or a back-off.

    Two that differ in their `fault` alone are equal, because it says no more than the reason does.
    """

    reason: str
    cause: UnavailableFor = UnavailableFor.ENDPOINT
    retry_after_s: float | None = None
    fault: Fault = field(default=Fault.OTHER, compare=False)


ExportOutcome = Accepted | Refused | Unavailable


class Batch(msgspec.Struct, frozen=True):
    """Lines of one segment, in order, with its header. Records are built from these alone."""

    header: Mapping[str, Any]
    lines: Sequence[Line]

    @property
    def contents(self) -> list[bytes]:
        """Return the bytes of the lines, without newlines."""
        return [line.content for line in self.lines]

    @property
    def records(self) -> int:
        """Return how many records it makes: one for each line."""
        return len(self.lines)

    @property
    def largest_bytes(self) -> int:
        """Return the size of the longest line."""
        return max(len(line.content) for line in self.lines)

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches, in order, of one that has more than one line."""
        middle = len(self.lines) // 2
        return Batch(self.header, self.lines[:middle]), Batch(self.header, self.lines[middle:])

    def samples(self) -> list[Batch]:
        """Return the newest line, the first and the one in the middle, each alone; none where times are not in order.

        The newest has the latest of both times that a line has: a store may go by either.
        """
        tails = [tail for line in self.lines if (tail := Tail.of(line.content)) is not None]
        if len(tails) < len(self.lines):
            return []
        times = [(tail.time_ns, tail.observed_ns) for tail in tails]
        latest = max(time_ns for time_ns, _ in times), max(observed_ns for _, observed_ns in times)
        if latest not in times:
            return []
        places = dict.fromkeys([times.index(latest), 0, len(self.lines) // 2])
        return [Batch(self.header, self.lines[place : place + 1]) for place in places]


class Exporter(Protocol):
    """A destination of journal lines. It is called by one thread, one call at a time."""

    @property
    def name(self) -> str:
        """Return the name under which the cursor keeps its progress."""

    @property
    def delay_s(self) -> float:
        """Return how many seconds a line may wait for others to share a batch with."""

    def export(self, batch: Batch) -> ExportOutcome:
        """Send the batch and return what became of it. Nothing that the destination does makes this raise."""

    def close(self) -> None:
        """Close connections and files."""
