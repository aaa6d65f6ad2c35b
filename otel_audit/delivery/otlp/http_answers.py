"""Decide what an HTTP answer means for the records that were sent: the outcome table of OTLP/HTTP.

Source: OTLP specification, "OTLP/HTTP Response", made stricter: an answer that is not OTLP acknowledges nothing, and
a fault of the endpoint never costs a record.
"""

from __future__ import annotations

import json
import math
import re
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_audit.delivery.outcomes import (
    Accepted,
    ExportOutcome,
    Fault,
    Refused,
    RefusedFor,
    Unavailable,
    UnavailableFor,
)
from otel_audit.json_values import safe_text
from otel_audit.redaction.screen import without_secrets

__all__ = ["RETRY_AFTER_LIMIT_S", "HttpAnswer", "outcome_of", "outcome_of_response", "readable", "says_too_old"]

# Longer waits are ignored, so that a wrong date or a typing error cannot stop delivery for a day.
RETRY_AFTER_LIMIT_S = 300.0
_MESSAGE_LIMIT_CHARS = 200
_LONGEST_SECRET_CHARS = 16 * 1024  # more than a server accepts as a header
_LOOKED_AT_CHARS = 64 * 1024
# As Loki, Mimir, OpenObserve, CloudWatch, Dynatrace and Google Cloud put it.
_TOO_OLD = re.compile(
    r"too[ _-]?old|too far (behind|in the past)|oldest acceptable|older than|out[ _-]of[ _-]order|days? in the past",
    re.IGNORECASE,
)
_PROTOBUF_TYPES = frozenset({"application/x-protobuf", "application/protobuf"})


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, headers and body of one answer. `cut` says why the body is incomplete."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes
    cut: Unavailable | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)  # secrets of the request, which no message may repeat

    @property
    def media_type(self) -> str:
        """Return the content type in lower case, without parameters, or an empty text."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


def outcome_of(answer: HttpAnswer, records: int) -> ExportOutcome:
    """Return what this answer means for the `records` records that were sent."""
    match answer.status:
        case status if 200 <= status < 300:
            return _outcome_of_success(answer, records)
        case 413:
            return Refused(_reason(answer), RefusedFor.SIZE)
        case 400 | 422:
            return Refused(_reason(answer), _what_a_bad_request_is_about(answer), each=says_too_old(_message(answer)))
        case status:
            retry_after_s = _retry_after_s(answer)
            return Unavailable(_reason(answer), _cause(status, retry_after_s), retry_after_s, _fault_of(status))


def _cause(status: int, retry_after_s: float | None) -> UnavailableFor:
    match status:
        case 500:
            return UnavailableFor.SERVER_ERROR
        case 429 | 504 if retry_after_s is None:  # stores answer so to too many requests and to too large a request
            return UnavailableFor.OVERLOAD
        case _:
            return UnavailableFor.ENDPOINT


def _fault_of(status: int) -> Fault:
    match status:
        case 401 | 403:
            return Fault.CREDENTIALS
        case 404 | 405:
            return Fault.PATH
        case 407:
            return Fault.PROXY
        case 408:
            return Fault.SLOW
        case 415:
            return Fault.PROTOCOL
        case 429:
            return Fault.BUSY
        case _ if 300 <= status < 400:
            return Fault.NOT_OTLP
        case _ if status >= 400:
            return Fault.SERVER
        case _:
            return Fault.OTHER


def _outcome_of_success(answer: HttpAnswer, records: int) -> ExportOutcome:
    if answer.cut:
        return answer.cut
    response = _otlp_response(answer)
    if response is None or response.partial_success.rejected_log_records < 0:
        kind = readable(answer.media_type, answer.secrets) or "no content type"
        reason = f"{answer.status} with a body that is not OTLP ({kind}): a login page?"
        return Unavailable(reason, retry_after_s=_retry_after_s(answer), fault=Fault.NOT_OTLP)
    return outcome_of_response(response, records, answer.secrets)


def outcome_of_response(
    response: ExportLogsServiceResponse, records: int, secrets: Iterable[str] = ()
) -> Accepted | Refused:
    """Return the outcome of a request that the server took: it accepted all `records` records, or rejected a part."""
    rejected = response.partial_success.rejected_log_records
    message = readable(response.partial_success.error_message, secrets)
    if rejected:
        reason = f"{rejected} of {records} records rejected: {message or 'no reason given'}"
        return Refused(reason, RefusedFor.RECORD, each=rejected == records)
    return Accepted(warning=message or None)


def _otlp_response(answer: HttpAnswer) -> ExportLogsServiceResponse | None:
    if not answer.body:
        return ExportLogsServiceResponse()
    if answer.media_type == "text/html":
        return None
    if not answer.body.strip():
        return ExportLogsServiceResponse()
    # Gateways and stores send JSON under any type. As protobuf its first byte begins a group: OTLP has none.
    if answer.media_type == "application/json" or answer.body.startswith(b"{"):
        return _response_in_json(answer.body)
    try:
        response = ExportLogsServiceResponse.FromString(answer.body)
    except DecodeError:
        return None
    # Some short texts ("accepted ") happen to be protobuf with an unknown field: without the right content type
    # only a field that we know counts.
    known = answer.media_type in _PROTOBUF_TYPES or response.HasField("partial_success")
    return response if known else None


def _response_in_json(body: bytes) -> ExportLogsServiceResponse | None:
    """Return the response, or None if the object is not one, such as an error under the status 200."""
    try:
        content = json.loads(body)
        if not isinstance(content, dict) or (content and not content.keys() & {"partialSuccess", "partial_success"}):
            return None
        return ParseDict(content, ExportLogsServiceResponse(), ignore_unknown_fields=True)
    except (ValueError, RecursionError, ParseError):
        return None


def _what_a_bad_request_is_about(answer: HttpAnswer) -> RefusedFor:
    # The collector's receiver answers 400 and not 413 if the body is over its limit.
    return RefusedFor.SIZE if "request body too large" in _message(answer).lower() else RefusedFor.RECORD


def says_too_old(message: str) -> bool:
    """Return True if a message says that a record is older than the store takes."""
    return _TOO_OLD.search(message[:_LOOKED_AT_CHARS]) is not None


def _reason(answer: HttpAnswer) -> str:
    status = f"{answer.status} {_phrase(answer.status)}".rstrip()
    if 300 <= answer.status < 400:
        message = f"redirects are not followed{_where_to(answer)}"
    else:
        message = readable(_message(answer), answer.secrets)
    return f"{status}: {message}" if message else status


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _where_to(answer: HttpAnswer) -> str:
    """Return the target of a redirect without its query and user, which may hold tokens."""
    try:
        target = urlsplit(answer.headers.get("location", ""))
        place = target._replace(netloc=target.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        return ""
    return f", here to {readable(place, answer.secrets)}" if place else ""


def _message(answer: HttpAnswer) -> str:
    """Return what the server says was wrong, from a google.rpc.Status, JSON or text."""
    if answer.media_type in _PROTOBUF_TYPES:
        try:
            return str(Status.FromString(answer.body).message)
        except DecodeError:
            return ""
    text = answer.body.decode("utf-8", "replace")
    if answer.media_type == "application/json":
        return _message_in_json(text)
    return re.sub(r"<[^<>]*>", " ", text) if answer.media_type == "text/html" else text


def _message_in_json(text: str) -> str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    message = content.get("message") if isinstance(content, dict) else None
    return message if isinstance(message, str) else text


def readable(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text on one line of at most 200 characters, without control characters and secrets.

    A server may repeat what it was sent, or what it knows itself, and the text goes to files, stderr and `status`.
    """
    # Format characters (Cf) go as well: they can turn the direction of a terminal's line.
    visible = "".join(
        " " if unicodedata.category(char).startswith("C") else char for char in safe_text(text[:_LOOKED_AT_CHARS])
    )
    # A secret that begins on the line is looked for as a whole, and no more than that of a text of megabytes.
    line = " ".join(visible.split())[: _MESSAGE_LIMIT_CHARS + _LONGEST_SECRET_CHARS]
    for secret in secrets:
        line = line.replace(secret, "***")
    line = without_secrets(line)
    return line if len(line) <= _MESSAGE_LIMIT_CHARS else line[: _MESSAGE_LIMIT_CHARS - 1] + "…"


def _retry_after_s(answer: HttpAnswer) -> float | None:
    """Return the seconds to wait, or None if the header is missing or unreadable. Source: RFC 9110, section 10.2.3."""
    value = answer.headers.get("retry-after", "").strip()
    try:
        wait_s = float(value)
    except ValueError:
        wait_s = _seconds_until(value)
    return None if math.isnan(wait_s) else min(max(wait_s, 0.0), RETRY_AFTER_LIMIT_S)


def _seconds_until(date: str) -> float:
    """Return the seconds from now to an HTTP date, or not-a-number if the text is not one."""
    try:
        moment = parsedate_to_datetime(date)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # an HTTP date is always in UTC
        return moment.timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return math.nan
