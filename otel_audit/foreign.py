"""Foreign records: log records that others made through the OTel logs API, kept in a line as their OTLP-JSON.

They are exported as they were: own body, attributes, scope and resource. Nothing is added, so that a store shows what
the application said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs

from otel_audit.otlp_json import read_resource_logs

__all__ = ["OTLP", "ForeignRequest", "foreign_event", "foreign_resource_logs"]

OTLP: Final = "otlp"  # no field of an audit event has this name
UNNAMED: Final = "log"  # the type of an event whose record has no EventName


def foreign_event(event_id: str, event_name: str, resource_logs: Mapping[str, Any]) -> bytes:
    """The event of a line that holds one record. `resource_logs`: OTLP-JSON, values may be `msgspec.Raw`."""
    return msgspec.json.encode({"event_type": event_name or UNNAMED, "event_id": event_id, OTLP: resource_logs})


def foreign_resource_logs(event: Mapping[str, Any]) -> ResourceLogs:
    """The record of a line, with its scope and resource.

    Raises:
        ValueError: it is no OTLP-JSON.
    """
    resource_logs = event[OTLP]
    if not isinstance(resource_logs, dict):
        raise ValueError(f"expected an object, got {type(resource_logs).__name__}")
    return read_resource_logs(resource_logs)


class ForeignRequest:
    """One request from many records, in their order; neighbours of the same resource and scope stand together."""

    def __init__(self) -> None:
        self._request = ExportLogsServiceRequest()

    def add(self, records: ResourceLogs) -> None:
        """Put the records at the end."""
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
        """The request in protobuf's encoding."""
        return self._request.SerializeToString()
