"""What became of one export: the three answers an exporter can give.

Source: delivery of OTLP (specification, "OTLP/HTTP response" and "OTLP/gRPC response"), made stricter: what the
endpoint is at fault for never costs a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Accepted", "ExportOutcome", "Refused", "RefusedFor", "Unavailable", "UnavailableFor"]


class RefusedFor(StrEnum):
    """What a refusal may be about: it decides whether the batch is halved because of its size or to find a record."""

    SIZE = "size"
    RECORD = "record"


class UnavailableFor(StrEnum):
    """What kept the endpoint from answering well: time-outs and server errors that stay are looked at more closely.

    TIMEOUT: the request was on its way, so its size may be the reason. A connection that does not come about in time
    is of the ENDPOINT.
    """

    ENDPOINT = "endpoint"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server error"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The destination has every record. `warning`: what it said besides."""

    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination does not want these records as they are: too large together, or one of them is bad."""

    reason: str
    about: RefusedFor = RefusedFor.RECORD


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The endpoint's fault: nothing moves, the same records are sent again after `retry_after_s` or a back-off."""

    reason: str
    cause: UnavailableFor = UnavailableFor.ENDPOINT
    retry_after_s: float | None = None


ExportOutcome = Accepted | Refused | Unavailable
