"""The same records in the SDK's form, for exporters that are written against the SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_audit.delivery.otel_logs import LogRecord, ReadableLogRecord, SeverityNumber
from otel_audit.derived import verdict_of
from otel_audit.foreign import OTLP
from otel_audit.records import Segment, Trace, UnreadableLine, foreign_of, read_line, time_of, trace_of

__all__ = ["readable_record", "readable_records"]


def readable_record(header: Mapping[str, Any], line: bytes) -> ReadableLogRecord:
    """The record of one line, equal to the one that `records.export_request` builds.

    Raises:
        UnreadableLine: no record can be built from the line.
    """
    return _Readable(header).record(line)


def readable_records(header: Mapping[str, Any], lines: Sequence[bytes]) -> list[ReadableLogRecord]:
    """The records of many lines of one segment, in their order.

    Raises:
        UnreadableLine: says which line.
    """
    readable, records = _Readable(header), []
    for position, line in enumerate(lines):
        try:
            records.append(readable.record(line))
        except UnreadableLine as error:
            raise UnreadableLine(error.reason, position) from error
    return records


class _Readable:
    """The resource and scope of a segment in the SDK's form, made once for all its records."""

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
    """A context with the event's span. Never an empty one: the SDK would take the exporting thread's span instead."""
    span_context = SpanContext(
        int.from_bytes(trace.trace_id, "big"), int.from_bytes(trace.span_id, "big"), False, TraceFlags(trace.flags)
    )
    return set_span_in_context(NonRecordingSpan(span_context), Context())


def _foreign(logs: ResourceLogs) -> ReadableLogRecord:
    """A foreign record, as it was when it came in.

    Raises:
        UnreadableLine: somebody else wrote the line.
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
