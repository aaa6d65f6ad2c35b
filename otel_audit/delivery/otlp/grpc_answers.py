"""Decide what a gRPC answer means for the records that were sent: the outcome table of OTLP/gRPC.

Source: OTLP specification, "OTLP/gRPC Response" and "OTLP/gRPC Throttling", made stricter: an answer that is not OTLP
acknowledges nothing, and a fault of the endpoint never costs a record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # it ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it ships no types
from grpc import StatusCode
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_audit.delivery.otlp.http_answers import RETRY_AFTER_LIMIT_S, outcome_of_response, readable, says_too_old
from otel_audit.delivery.outcomes import ExportOutcome, Fault, Refused, RefusedFor, Unavailable, UnavailableFor

__all__ = ["GrpcAnswer", "outcome_of"]

# The text that grpcio writes before the cause if it could connect to no address.
_NO_CONNECTION = re.compile(r"failed to connect to all addresses; last error: ([A-Z_]+: )?")
# The words of grpcio 1.85 for a connection that cannot be made, or breaks.
_FAULTS = tuple(
    (re.compile(words), fault)
    for words, fault in (
        (r"[Cc]onnection refused", Fault.NOTHING_LISTENS),
        (r"DNS resolution failed|[Dd]omain name not found", Fault.NAME),
        (r"[Tt]imed? ?out", Fault.SLOW),
        (r"TLS |[Hh]andshake|SSL|CERTIFICATE", Fault.TLS),
        (r"HTTP/2|http1", Fault.PROTOCOL),
        (r"[Ss]ocket closed|[Cc]onnection (reset|closed)", Fault.CLOSED),
    )
)
# How grpcio, grpc-go, grpc-java and tonic say that a message is over a limit.
_TOO_LARGE = ("larger than max", "exceeds maximum", "too large")


@dataclass(frozen=True, slots=True)
class GrpcAnswer:
    """The end of one call, as reported by the server or by the client's own gRPC library."""

    code: StatusCode
    details: str = ""
    message: bytes = b""  # with OK only
    status: bytes = b""  # the trailer `grpc-status-details-bin`: a google.rpc.Status, or nothing
    secrets: tuple[str, ...] = field(default=(), repr=False)  # secrets of the request, which no reason may repeat


def outcome_of(answer: GrpcAnswer, records: int) -> ExportOutcome:
    """Return what this answer means for the `records` records that were sent."""
    match answer.code:
        case StatusCode.OK:
            return _outcome_of_success(answer, records)
        case StatusCode.INVALID_ARGUMENT:
            return Refused(_reason(answer), RefusedFor.RECORD, each=says_too_old(answer.details))
        case StatusCode.RESOURCE_EXHAUSTED:
            return _outcome_of_exhaustion(answer, records)
        case StatusCode.OUT_OF_RANGE if _says_size(answer):  # tonic, whose limit is 4 MiB
            return Refused(_reason(answer), RefusedFor.SIZE)
        case code:
            fault = _fault(answer)
            return Unavailable(_reason(answer), _cause(code, fault), _retry_after_s(answer), fault)


def _outcome_of_success(answer: GrpcAnswer, records: int) -> ExportOutcome:
    try:
        response = ExportLogsServiceResponse.FromString(answer.message)
    except DecodeError:
        return _not_otlp()
    if response.partial_success.rejected_log_records < 0:
        return _not_otlp()
    return outcome_of_response(response, records, answer.secrets)


def _not_otlp() -> Unavailable:
    return Unavailable("OK with a message that is not OTLP", fault=Fault.NOT_OTLP)


def _outcome_of_exhaustion(answer: GrpcAnswer, records: int) -> ExportOutcome:
    """Return the outcome of a code that means too many requests, or too large a request.

    A server that says when to come back does not mind the size. One that refuses a single record and says nothing about
    its size counts as busy, like one that answers 429: a rate limit must not put good records into quarantine.
    """
    retry_after_s = _retry_after_s(answer)
    if retry_after_s is not None:
        return Unavailable(_reason(answer), UnavailableFor.ENDPOINT, retry_after_s, Fault.BUSY)
    if records > 1 or _says_size(answer):
        return Refused(_reason(answer), RefusedFor.SIZE)
    return Unavailable(_reason(answer), UnavailableFor.OVERLOAD, fault=Fault.BUSY)


def _says_size(answer: GrpcAnswer) -> bool:
    return any(words in answer.details.lower() for words in _TOO_LARGE)


def _cause(code: StatusCode, fault: Fault) -> UnavailableFor:
    match code:
        case StatusCode.UNAVAILABLE if fault is Fault.CLOSED:
            return UnavailableFor.OVERLOAD
        case StatusCode.DEADLINE_EXCEEDED:
            return UnavailableFor.TIMEOUT
        case StatusCode.UNKNOWN | StatusCode.INTERNAL:
            return UnavailableFor.SERVER_ERROR
        case _:
            return UnavailableFor.ENDPOINT


def _fault(answer: GrpcAnswer) -> Fault:
    match answer.code:
        case StatusCode.UNAUTHENTICATED | StatusCode.PERMISSION_DENIED:
            return Fault.CREDENTIALS
        case StatusCode.NOT_FOUND:
            return Fault.PATH
        case StatusCode.UNIMPLEMENTED:
            return Fault.NO_SERVICE
        case StatusCode.DEADLINE_EXCEEDED:
            return Fault.SLOW
        case _:
            return next((fault for words, fault in _FAULTS if words.search(answer.details)), Fault.SERVER)


def _reason(answer: GrpcAnswer) -> str:
    details = readable(_NO_CONNECTION.sub("", answer.details, count=1), answer.secrets)
    return f"{answer.code.name}: {details}" if details else answer.code.name


def _retry_after_s(answer: GrpcAnswer) -> float | None:
    """Return the seconds that the server asks to wait, at most five minutes, or None if it does not ask."""
    try:
        details = Status.FromString(answer.status).details
        for detail in details:
            asked = RetryInfo()
            if detail.Unpack(asked):
                wait_s = asked.retry_delay.seconds + asked.retry_delay.nanos / 1e9
                return float(min(max(wait_s, 0.0), RETRY_AFTER_LIMIT_S))
    except DecodeError:
        pass  # ignore what cannot be read
    return None
