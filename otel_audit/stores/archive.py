"""A collector's file archive: OTLP requests in JSON, one a line, as its file exporter writes them.

The exporter writes the newline by a second call. A kill can leave half a request, or a whole one without its newline,
and the next request follows on the same line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.records.otlp_json import read_request

__all__ = ["ArchiveLine", "halves_of", "is_archive_line", "read_archive_line", "records_in"]

# Every request begins like this. Inside a JSON string its quotes would be escaped, so the bytes occur nowhere else.
_START: Final = b'{"resourceLogs":'
_raw_decode: Final = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True)
class ArchiveLine:
    """The requests that one line holds, and for each other piece of it why it is none."""

    requests: Sequence[ExportLogsServiceRequest]
    unreadable: Sequence[str]


def is_archive_line(line: bytes) -> bool:
    """True when a request begins in this line."""
    return _START in line


def read_archive_line(line: bytes) -> ArchiveLine:
    """Every whole request in a line, however torn the rest of it is."""
    before, *parts = line.split(_START)
    requests: list[ExportLogsServiceRequest] = []
    unreadable = list(_torn(before))
    for part in parts:
        text = (_START + part).decode("utf-8", "surrogateescape")  # a torn request may end inside a character
        try:
            content, end = _raw_decode(text)
            requests.append(read_request(content))
        except (ValueError, TypeError, RecursionError) as error:
            unreadable.append(_reason(text, error))
        else:
            unreadable += _torn(text[end:].encode("utf-8", "surrogateescape"))
    return ArchiveLine(requests, unreadable)


def _torn(piece: bytes) -> Iterator[str]:
    if piece.strip():
        yield f"expected an OTLP request in JSON, got {len(piece)} bytes that belong to none"


def _reason(text: str, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"expected a whole OTLP request, got the first {len(text)} characters of one"
    return str(error) or type(error).__name__


def records_in(request: ExportLogsServiceRequest) -> int:
    """How many records a request holds."""
    return sum(len(scope.log_records) for logs in request.resource_logs for scope in logs.scope_logs)


def halves_of(request: ExportLogsServiceRequest) -> tuple[ExportLogsServiceRequest, ExportLogsServiceRequest]:
    """The records of a request in two, each with its resource and scope."""
    count = records_in(request)
    return _slice(request, 0, count // 2), _slice(request, count // 2, count)


def _slice(request: ExportLogsServiceRequest, first: int, last: int) -> ExportLogsServiceRequest:
    part, number = ExportLogsServiceRequest(), 0
    for logs in request.resource_logs:
        for scope in logs.scope_logs:
            wanted = scope.log_records[max(0, first - number) : max(0, last - number)]
            number += len(scope.log_records)
            if wanted:
                kept = part.resource_logs.add(resource=logs.resource, schema_url=logs.schema_url)
                kept.scope_logs.add(scope=scope.scope, schema_url=scope.schema_url, log_records=wanted)
    return part
