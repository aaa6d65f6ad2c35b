"""Log records of the OTel SDK as events of the journal: what a log record processor is given, kept as it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_audit import ids
from otel_audit.delivery.otel_logs import LogRecord, ReadableLogRecord, ReadWriteLogRecord
from otel_audit.foreign import foreign_event
from otel_audit.otlp_json import any_value, key_values, text_of

__all__ = ["ForeignEvent", "ForeignEvents"]

_ORIGINS_MAX: Final = 1024  # loggers; one made for each request must not fill the memory


class ForeignEvent(NamedTuple):
    """What the journal is given of one record."""

    event_id: str
    event: bytes
    time_ns: int
    observed_ns: int


class ForeignEvents:
    """Makes events of the SDK's records. What the records of one logger share is written once. Any thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Origin] = {}

    def event(self, record: ReadableLogRecord | ReadWriteLogRecord) -> ForeignEvent:
        """The record as an event: nothing is added, nothing left out. Does not raise for what a record holds."""
        log, origin = record.log_record, self._origin_of(record)
        observed_ns = _time_ns(log.observed_timestamp) or time.time_ns()
        time_ns = _time_ns(log.timestamp)
        event_id = str(ids.new_id())
        name = text_of(log.event_name or "")
        told = _told(log, record.dropped_attributes, time_ns=time_ns, observed_ns=observed_ns, name=name)
        event = foreign_event(event_id, name, origin.around(told))
        return ForeignEvent(event_id, event, time_ns or observed_ns, observed_ns)

    def _origin_of(self, record: ReadableLogRecord | ReadWriteLogRecord) -> _Origin:
        # By identity, and each entry holds its objects, so that no others can have their ids.
        place = (id(record.resource), id(record.instrumentation_scope))
        known = self._known.get(place)
        if known is None:
            if len(self._known) >= _ORIGINS_MAX:
                self._known.clear()
            known = self._known[place] = _Origin(record.resource, record.instrumentation_scope)
        return known


class _Origin:
    """Resource and scope in OTLP-JSON."""

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
        """OTLP's ResourceLogs with this record."""
        scope_logs = {"scope": self._scope, "logRecords": [record], "schemaUrl": self._scope_schema_url}
        return {"resource": self._resource, "scopeLogs": [scope_logs], "schemaUrl": self._schema_url}


def _told(log: LogRecord, dropped: int, *, time_ns: int, observed_ns: int, name: str) -> dict[str, Any]:
    """OTLP's LogRecord."""
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
    """A time as OTLP can hold it; 0, which says unknown, for any other."""
    return value if isinstance(value, int) and 0 <= value < 2**63 else 0
