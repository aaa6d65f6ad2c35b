"""What became of one export: the three answers an exporter can give.

Source: delivery of OTLP (specification, "OTLP/HTTP response" and "OTLP/gRPC response"), made stricter: what the
endpoint is at fault for never costs a line.

What an exporter is given, and what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

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
    """What a refusal may be about: it decides whether the batch is halved because of its size or to find a record.

    LIMIT: a size as well, but by a limit of ours: nothing was sent. SERVER_ERROR: a record, or still the server; no
    endpoint says so, it is what an error becomes that does not end.
    """

    SIZE = "size"
    LIMIT = "limit"
    RECORD = "record"
    SERVER_ERROR = "server error"


class UnavailableFor(StrEnum):
    """What kept the endpoint from answering well: time-outs and server errors that stay are looked at more closely.

    TIMEOUT, OVERLOAD: the request was on its way, so its size may be the reason. A connection that does not come about
    in time is of the ENDPOINT, and so is a server that says when to come back.
    """

    ENDPOINT = "endpoint"
    TIMEOUT = "timeout"
    OVERLOAD = "overload"
    SERVER_ERROR = "server error"


class Fault(StrEnum):
    """What is wrong at an endpoint, for whoever is to mend it. What delivery does is the same for all of them.

    NOT_OTLP: something answers that takes no records, such as a login page. NO_SERVICE: gRPC without a pipeline for
    logs. CLOSED: the other side hangs up.
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


@dataclass(frozen=True, slots=True)
class Accepted:
    """The destination has every record. `warning`: what it said besides."""

    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination does not want these records as they are: too large together, or one of them is bad.

    `each`: every one of them may be refused for this reason. The destination counted as many rejections as there are
    records, or said that they are too old. It says no more than the reason does, so two that differ in it are equal.
    """

    reason: str
    about: RefusedFor = RefusedFor.RECORD
    each: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The endpoint's fault: nothing moves, the same records are sent again after `retry_after_s` or a back-off.

    Two that differ in their `fault` alone are equal: it says no more than the reason does.
    """

    reason: str
    cause: UnavailableFor = UnavailableFor.ENDPOINT
    retry_after_s: float | None = None
    fault: Fault = field(default=Fault.OTHER, compare=False)


ExportOutcome = Accepted | Refused | Unavailable


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines of one segment, in order, with its header: all that a record is built from."""

    header: Mapping[str, Any]
    lines: Sequence[Line]

    @property
    def contents(self) -> list[bytes]:
        """The bytes of the lines, without newlines."""
        return [line.content for line in self.lines]

    @property
    def records(self) -> int:
        """How many records it makes: one for each line."""
        return len(self.lines)

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
    """A destination of journal lines. One call at a time, from one thread."""

    @property
    def name(self) -> str:
        """The name that its progress is kept under in the cursor."""

    @property
    def delay_s(self) -> float:
        """How long a line may wait for others to share a batch with."""

    def export(self, batch: Batch) -> ExportOutcome:
        """Send the batch and say what became of it. Never raises for what the destination did."""

    def close(self) -> None:
        """Let go of connections and files."""
