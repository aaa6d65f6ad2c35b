"""Log records in OTLP's JSON, written from plain values and read into the official messages.

A foreign record, which an application made through the OTel logs API, is kept in its line as OTLP's JSON. It is sent
unchanged, with its own body, attributes, scope and resource. Nothing is added, so a store shows what the application
recorded.

Source: OTLP specification, "JSON Protobuf Encoding": ids are hex, 64-bit integers are strings, names are in
lowerCamelCase.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber

__all__ = [
    "OTLP",
    "ForeignRequest",
    "any_value",
    "foreign_event",
    "foreign_resource_logs",
    "key_values",
    "read_request",
    "read_resource_logs",
    "text_of",
]


_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_DEPTH_MAX: Final = 32


def any_value(value: object, depth: int = _DEPTH_MAX) -> dict[str, Any]:
    """Return the value as an OTLP AnyValue in JSON.

    If OTLP has no such kind, it becomes text, so that no record is lost.

    That goes for integers beyond 64 bits, objects of other types, and values nested deeper than `depth`.
    """
    match value:
        case None:
            return {}
        case bool():
            return {"boolValue": value}
        case str():
            return {"stringValue": text_of(value)}
        case int() if _INT64_MIN <= value <= _INT64_MAX:
            return {"intValue": str(int(value))}
        case float():
            return {"doubleValue": _double(value)}
        case bytes() | bytearray():
            return {"bytesValue": base64.b64encode(value).decode()}
        case Mapping() if depth:
            return {"kvlistValue": {"values": key_values(value, depth - 1)}}
        case Sequence() if depth:
            return {"arrayValue": {"values": [any_value(item, depth - 1) for item in value]}}
    return {"stringValue": text_of(value)}


def key_values(values: Mapping[Any, Any] | None, depth: int = _DEPTH_MAX) -> list[dict[str, Any]]:
    """Return attributes, or the entries of a map, as a list of OTLP KeyValues in JSON."""
    return [{"key": text_of(key), "value": any_value(value, depth)} for key, value in (values or {}).items()]


def text_of(value: object) -> str:
    """Return the value as text that UTF-8 can encode. A lone surrogate becomes U+FFFD. Never raises."""
    try:
        text = str(value)
    except Exception:  # a foreign `__str__` may do anything
        return f"<{type(value).__name__}>"
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def read_request(value: Mapping[str, Any]) -> ExportLogsServiceRequest:
    """Return a whole request from one line, as the file exporter of a collector writes it.

    Raises:
        ValueError: it is not a request.
    """
    resource_logs = value.get("resourceLogs", [])
    if not isinstance(resource_logs, list):
        raise ValueError(f"expected OTLP-JSON with a list, got {type(resource_logs).__name__} - at `$.resourceLogs`")
    return ExportLogsServiceRequest(resource_logs=[read_resource_logs(each) for each in resource_logs])


def read_resource_logs(value: Mapping[str, Any]) -> ResourceLogs:
    """Return the records of one resource. Unknown fields are ignored, as OTLP asks of receivers.

    Raises:
        ValueError: it is not OTLP-JSON of log records.
    """
    try:
        return _resource_logs(value)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"expected OTLP-JSON of log records, got {type(error).__name__}: {str(error)[:200]}"
        ) from error


# Field by field, since the general JSON parser of Protocol Buffers takes twenty times as long.


def _resource_logs(value: Mapping[str, Any]) -> ResourceLogs:
    message = ResourceLogs(schema_url=value.get("schemaUrl", ""))
    resource = value.get("resource", _NOTHING)
    message.resource.SetInParent()
    message.resource.dropped_attributes_count = resource.get("droppedAttributesCount", 0)
    _add_key_values(message.resource.attributes, resource)
    for scope_logs in value.get("scopeLogs", ()):
        _read_scope_logs(scope_logs, message.scope_logs.add(schema_url=scope_logs.get("schemaUrl", "")))
    return message


def _read_scope_logs(value: Mapping[str, Any], message: ScopeLogs) -> None:
    scope = value.get("scope", _NOTHING)
    message.scope.SetInParent()
    message.scope.name = scope.get("name", "")
    message.scope.version = scope.get("version", "")
    message.scope.dropped_attributes_count = scope.get("droppedAttributesCount", 0)
    _add_key_values(message.scope.attributes, scope)
    for record in value.get("logRecords", ()):
        _read_record(record, message.log_records.add())


def _read_record(value: Mapping[str, Any], message: LogRecord) -> None:
    get = value.get
    message.time_unix_nano = int(get("timeUnixNano", 0))
    message.observed_time_unix_nano = int(get("observedTimeUnixNano", 0))
    severity = get("severityNumber", 0)
    message.severity_number = SeverityNumber.Value(severity) if isinstance(severity, str) else severity
    message.severity_text = get("severityText", "")
    message.event_name = get("eventName", "")
    message.flags = get("flags", 0)
    message.dropped_attributes_count = get("droppedAttributesCount", 0)
    message.trace_id = bytes.fromhex(get("traceId", ""))
    message.span_id = bytes.fromhex(get("spanId", ""))
    if "body" in value:
        message.body.SetInParent()
        _set_any_value(message.body, value["body"])
    _add_key_values(message.attributes, value)


def _add_key_values(to: Any, value: Mapping[str, Any], name: str = "attributes") -> None:
    for each in value.get(name, ()):
        added = to.add(key=each.get("key", ""))
        if "value" in each:
            added.value.SetInParent()
            _set_any_value(added.value, each["value"])


def _set_any_value(to: AnyValue, value: Mapping[str, Any]) -> None:
    for kind, content in value.items():
        match kind:
            case "stringValue":
                to.string_value = content
            case "intValue":
                to.int_value = int(content)
            case "doubleValue":
                to.double_value = float(content)
            case "boolValue":
                to.bool_value = content
            case "bytesValue":
                to.bytes_value = base64.b64decode(content)
            case "arrayValue":
                to.array_value.SetInParent()
                for item in content.get("values", ()):
                    _set_any_value(to.array_value.values.add(), item)
            case "kvlistValue":
                to.kvlist_value.SetInParent()
                _add_key_values(to.kvlist_value.values, content, "values")


_NOTHING: Final[Mapping[str, Any]] = {}


OTLP: Final = "otlp"  # no field of an audit event has this name
UNNAMED: Final = "log"  # the type of an event whose record has no EventName


def foreign_event(event_id: str, event_name: str, resource_logs: Mapping[str, Any]) -> bytes:
    """Return the event of a line that holds one record.

    `resource_logs` is OTLP-JSON, whose values may be `msgspec.Raw`.
    """
    return msgspec.json.encode({"event_type": event_name or UNNAMED, "event_id": event_id, OTLP: resource_logs})


def foreign_resource_logs(event: Mapping[str, Any]) -> ResourceLogs:
    """Return the record of a line, with its scope and resource.

    Raises:
        ValueError: it is not OTLP-JSON.
    """
    resource_logs = event[OTLP]
    if not isinstance(resource_logs, dict):
        raise ValueError(f"expected an object, got {type(resource_logs).__name__}")
    return read_resource_logs(resource_logs)


class ForeignRequest:
    """One request of many records in their order. Neighbours with the same resource and scope are grouped."""

    def __init__(self) -> None:
        self._request = ExportLogsServiceRequest()

    def add(self, records: ResourceLogs) -> None:
        """Append the records."""
        known = self._request.resource_logs
        if not known or known[-1].resource != records.resource or known[-1].schema_url != records.schema_url:
            known.append(records)
            return
        for scope_logs in records.scope_logs:
            last = known[-1].scope_logs[-1] if known[-1].scope_logs else None
            if last is None or last.scope != scope_logs.scope or last.schema_url != scope_logs.schema_url:
                known[-1].scope_logs.append(scope_logs)
            else:
                last.log_records.extend(scope_logs.log_records)

    def encoded(self) -> bytes:
        """Return the request in the encoding of protobuf."""
        return self._request.SerializeToString()
