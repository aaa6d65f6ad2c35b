"""The records in a collector's file archive: one OTLP-JSON request a line, as the file exporter writes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Record", "parse_archive", "read_archive"]

# Every request begins like this. Inside a JSON string its quotes would be escaped, so the bytes occur nowhere else.
_REQUEST_START = '{"resourceLogs":'


@dataclass(frozen=True, slots=True)
class Record:
    """One LogRecord with its resource and scope, in plain Python values."""

    event_name: str
    trace_id: str  # lower-case hex, empty without a span
    span_id: str
    flags: int
    time_unix_nano: int
    observed_time_unix_nano: int
    severity_number: int
    severity_text: str
    body: str  # a body that is not text: its JSON
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope_name: str
    scope_version: str


def read_archive(path: Path) -> list[Record]:
    """All records of the archive `path` and of the files it was rotated into, oldest file first."""
    rotated = sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))  # their names hold the time of the rotation
    files = [*rotated, path] if path.exists() else rotated
    return [record for file in files for record in parse_archive(file.read_bytes())]


def parse_archive(content: bytes) -> list[Record]:
    """The records of every whole request in `content`. Torn requests are passed over.

    The exporter writes the newline by a second call. A kill can leave half a request, or a whole one without its
    newline, and the next request follows on the same line.
    """
    # A torn request may end inside a character.
    text = content.decode("utf-8", errors="replace")
    return [record for request in _requests(text) for record in _records(request)]


def _requests(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    position = text.find(_REQUEST_START)
    while position >= 0:
        try:
            request, position = decoder.raw_decode(text, position)
            yield request
        except json.JSONDecodeError:
            position += 1
        position = text.find(_REQUEST_START, position)


def _records(request: dict[str, Any]) -> Iterator[Record]:
    for resource_logs in request["resourceLogs"]:
        resource = _attributes(resource_logs.get("resource", {}))
        for scope_logs in resource_logs.get("scopeLogs", []):
            scope = scope_logs.get("scope", {})
            for log in scope_logs.get("logRecords", []):
                yield _record(log, resource, scope)


def _record(log: dict[str, Any], resource: dict[str, Any], scope: dict[str, Any]) -> Record:
    body = _value(log.get("body", {}))
    return Record(
        event_name=log.get("eventName", ""),
        trace_id=log.get("traceId", ""),
        span_id=log.get("spanId", ""),
        flags=int(log.get("flags", 0)),
        time_unix_nano=int(log.get("timeUnixNano", 0)),
        observed_time_unix_nano=int(log.get("observedTimeUnixNano", 0)),
        severity_number=int(log.get("severityNumber", 0)),
        severity_text=log.get("severityText", ""),
        body=body if isinstance(body, str) else json.dumps(body),
        attributes=_attributes(log),
        resource=resource,
        scope_name=scope.get("name", ""),
        scope_version=scope.get("version", ""),
    )


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value", {})) for pair in holder.get("attributes", [])}


def _value(value: dict[str, Any]) -> Any:
    """The Python value of an AnyValue. Source: OTLP specification, JSON Protobuf encoding: int64 is a string."""
    match value:
        case {"intValue": whole}:
            return int(whole)
        case {"doubleValue": real}:
            return float(real)  # NaN and the infinities come as strings
        case {"bytesValue": encoded}:
            return base64.b64decode(encoded)
        case {"arrayValue": array}:
            return [_value(item) for item in array.get("values", [])]
        case {"kvlistValue": pairs}:
            return {pair["key"]: _value(pair.get("value", {})) for pair in pairs.get("values", [])}
        case {"stringValue": scalar} | {"boolValue": scalar}:
            return scalar
        case _:
            return None
