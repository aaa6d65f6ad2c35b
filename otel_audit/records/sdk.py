"""Log records of OTel's SDK, made from journal lines for its exporters, and turned into events of the journal.

This is the only place where the package imports OTel's log record classes. The modules of the API and the SDK are
private (`_logs`) and have moved before. If a release moves something again, only this module changes.

Source: OpenTelemetry for Python, `opentelemetry._logs`, `opentelemetry.sdk._logs`, `opentelemetry.sdk._logs.export`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_audit import ids
from otel_audit.records.encoding import Segment, Trace, UnreadableLine, foreign_of, read_line, time_of, trace_of
from otel_audit.records.facts import verdict_of
from otel_audit.records.otlp_json import OTLP, any_value, foreign_event, key_values, text_of

__all__ = [
    "ForeignEvent",
    "ForeignEvents",
    "LogRecord",
    "LogRecordExportResult",
    "LogRecordExporter",
    "LogRecordProcessor",
    "ReadWriteLogRecord",
    "ReadableLogRecord",
    "SeverityNumber",
    "readable_records",
]


def readable_records(header: Mapping[str, Any], lines: Sequence[bytes]) -> list[ReadableLogRecord]:
    """Return the records of many lines of one segment, in their order.

    Raises:
        UnreadableLine: it names the line.
    """
    readable, records = _Readable(header), []
    for position, line in enumerate(lines):
        try:
            records.append(readable.record(line))
        except UnreadableLine as error:
            raise UnreadableLine(error.reason, position) from error
    return records


class _Readable:
    """The resource and scope of a segment as objects of the SDK, made once for all its records."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        segment = Segment(header)
        self._mapping = segment.mapping
        self._resource = Resource(segment.resource, segment.resource_schema_url)
        self._scope = InstrumentationScope(**segment.scope, attributes=segment.scope_attributes)

    def record(self, line: bytes) -> ReadableLogRecord:
        line = line.removesuffix(b"\n")
        event = read_line(line)
        if OTLP in event:
            return _foreign(foreign_of(event))
        verdict = verdict_of(event.get("outcome"))
        found = self._mapping.attributes(event, verdict, len(line))
        attributes = BoundedAttributes(attributes={**self._mapping.constants, **found.repeating, **found.own})
        attributes.dropped = found.left_out
        record = LogRecord(
            timestamp=time_of(event),
            observed_timestamp=event["observed_ns"],
            context=_context(trace_of(event)),
            severity_text=verdict.severity_text,
            severity_number=SeverityNumber(verdict.severity_number),
            body=line.decode(),
            attributes=attributes,
            event_name=event["event_type"],
        )
        return ReadableLogRecord(record, self._resource, self._scope)


def _context(trace: Trace) -> Context:
    """Return a context with the event's span.

    It is never empty, or the SDK would take the span of the exporting thread.
    """
    span_context = SpanContext(
        int.from_bytes(trace.trace_id, "big"), int.from_bytes(trace.span_id, "big"), False, TraceFlags(trace.flags)
    )
    return set_span_in_context(NonRecordingSpan(span_context), Context())


def _foreign(logs: ResourceLogs) -> ReadableLogRecord:
    """Return a foreign record as it was received.

    Raises:
        UnreadableLine: another program wrote the line.
    """
    try:
        return _readable_foreign(logs)
    except (ValueError, IndexError) as error:
        raise UnreadableLine(f"expected a log record, got {error} - at `$.{OTLP}`") from error


def _readable_foreign(logs: ResourceLogs) -> ReadableLogRecord:
    scope_logs = logs.scope_logs[0]
    scope, record = scope_logs.scope, scope_logs.log_records[0]
    attributes = BoundedAttributes(attributes=_mapping(record.attributes), extended_attributes=True)
    attributes.dropped = record.dropped_attributes_count
    return ReadableLogRecord(
        LogRecord(
            timestamp=record.time_unix_nano or None,
            observed_timestamp=record.observed_time_unix_nano,
            context=_context(Trace(record.trace_id, record.span_id, record.flags & 0xFF)),
            severity_text=record.severity_text or None,
            severity_number=SeverityNumber(record.severity_number) if record.severity_number else None,
            body=_value(record.body),
            attributes=attributes,
            event_name=record.event_name or None,
        ),
        Resource(_mapping(logs.resource.attributes), logs.schema_url),
        InstrumentationScope(scope.name, scope.version, scope_logs.schema_url, _mapping(scope.attributes)),
    )


def _mapping(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _mapping(value.kvlist_value.values)
        case _:
            return getattr(value, kind)


_ORIGINS_MAX: Final = 1024  # the number of loggers; a logger for each request must not fill the memory


class ForeignEvent(NamedTuple):
    """The event for the journal that is made of one record."""

    event_id: str
    event: bytes
    time_ns: int
    observed_ns: int


class ForeignEvents:
    """Makes events from records of the SDK. The common part of the records of a logger is encoded once. Any thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Origin] = {}

    def event(self, record: ReadableLogRecord | ReadWriteLogRecord) -> ForeignEvent:
        """Return the record as an event, with nothing added or left out. No content of a record makes it raise."""
        log, origin = record.log_record, self._origin_of(record)
        observed_ns = _time_ns(log.observed_timestamp) or time.time_ns()
        time_ns = _time_ns(log.timestamp)
        event_id = str(ids.new_id())
        name = text_of(log.event_name or "")
        told = _told(log, record.dropped_attributes, time_ns=time_ns, observed_ns=observed_ns, name=name)
        event = foreign_event(event_id, name, origin.around(told))
        return ForeignEvent(event_id, event, time_ns or observed_ns, observed_ns)

    def _origin_of(self, record: ReadableLogRecord | ReadWriteLogRecord) -> _Origin:
        # Found by identity. Each entry holds its objects, so that no others can have their ids.
        place = (id(record.resource), id(record.instrumentation_scope))
        known = self._known.get(place)
        if known is None:
            if len(self._known) >= _ORIGINS_MAX:
                self._known.clear()
            known = self._known[place] = _Origin(record.resource, record.instrumentation_scope)
        return known


class _Origin:
    """The resource and scope in OTLP-JSON."""

    def __init__(self, resource: Resource | None, scope: InstrumentationScope | None) -> None:
        self._of = resource, scope
        resource = resource or Resource.get_empty()
        self._resource = msgspec.Raw(msgspec.json.encode({"attributes": key_values(resource.attributes)}))
        self._schema_url = text_of(resource.schema_url or "")
        self._scope_schema_url = text_of(scope.schema_url or "") if scope else ""
        told: dict[str, Any] = {"name": text_of(scope.name), "version": text_of(scope.version or "")} if scope else {}
        if scope and scope.attributes:
            told["attributes"] = key_values(scope.attributes)
        self._scope = msgspec.Raw(msgspec.json.encode(told))

    def around(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return OTLP's ResourceLogs with this record."""
        scope_logs = {"scope": self._scope, "logRecords": [record], "schemaUrl": self._scope_schema_url}
        return {"resource": self._resource, "scopeLogs": [scope_logs], "schemaUrl": self._schema_url}


def _told(log: LogRecord, dropped: int, *, time_ns: int, observed_ns: int, name: str) -> dict[str, Any]:
    """Return OTLP's LogRecord."""
    told: dict[str, Any] = {"observedTimeUnixNano": str(observed_ns), "attributes": key_values(log.attributes)}
    if time_ns:
        told["timeUnixNano"] = str(time_ns)
    if log.severity_number is not None:
        told["severityNumber"] = getattr(log.severity_number, "value", 0)
    if log.severity_text:
        told["severityText"] = text_of(log.severity_text)
    if log.body is not None:
        told["body"] = any_value(log.body)
    if log.trace_id:
        told["traceId"] = f"{log.trace_id:032x}"
    if log.span_id:
        told["spanId"] = f"{log.span_id:016x}"
    if log.trace_flags:
        told["flags"] = int(log.trace_flags)
    if name:
        told["eventName"] = name
    if dropped:
        told["droppedAttributesCount"] = dropped
    return told


def _time_ns(value: int | None) -> int:
    """Return a time that OTLP can hold. Any other becomes 0, which means unknown."""
    return value if isinstance(value, int) and 0 <= value < 2**63 else 0
