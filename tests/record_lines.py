"""Journal lines of each kind of event, and the records and attributes that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource, PrincipalKind
from otel_audit.records import attributes as keys
from otel_audit.records.encoding import encoded_request
from tests.journal_lines import HEADER, line_of, raw_line

__all__ = [
    "ALICE",
    "LINES",
    "MANDATORY",
    "SPAN",
    "a_denied_http_request",
    "a_failed_login",
    "a_refused_permission",
    "a_segment_header",
    "a_tool_call",
    "attributes_of",
    "export_request",
    "record_of",
    "size_of",
    "value_of",
]

MANDATORY = {keys.RECORD_ID, keys.ACTOR_ID, keys.ACTOR_TYPE, keys.ACTION, keys.OUTCOME}
SPAN: dict[str, Any] = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "trace_flags": 3}
ALICE = AuditPrincipal(username="alice", roles=["reader", "ops"], auth_type="oidc")


def a_denied_http_request() -> bytes:
    return line_of(
        AuditEvent(
            event_type="http.request",
            timestamp="2026-09-21T14:13:20.123Z",
            request_id="0b3c1d2e-0000-4000-8000-000000000001",
            principal=ALICE.model_copy(update={"id": "248289761001", "issuer": "https://id.example.com"}),
            source=AuditSource(ip="203.0.113.9", transport="http", user_agent="curl/8.5.0"),
            action=AuditAction(path="/get-online-features"),
            resource=AuditResource(type="feature_view", name="driver_stats", actions=["READ_ONLINE"]),
            outcome="denied",
            duration_ms=1.5,
            detail="POST /get-online-features -> 403",
            event_id="0199aabb-0001-7000-8000-000000000001",
            error_type="PermissionError",
            attributes={
                "http.route": "/get-online-features",
                "tenant": "blue",
                "Café Größe": 3,
                "audit.outcome": "success",
            },
            **SPAN,
        ),
        seq=2,
    )


def a_tool_call() -> bytes:
    return line_of(
        AuditEvent(
            event_type="mcp.tools.call",
            timestamp="2026-09-21T14:13:20.123Z",
            request_id="0b3c1d2e-0000-4000-8000-000000000002",
            jsonrpc_id="7",
            principal=AuditPrincipal(username="agent-7", auth_type="mtls", kind=PrincipalKind.SERVICE),
            source=AuditSource(ip="2001:db8::1", transport="mcp-http"),
            action=AuditAction(mcp_tool="get_online_features", path="/mcp"),
            outcome="success",
            duration_ms=12.25,
            event_id="0199aabb-0001-7000-8000-000000000002",
            attributes={"rows": 12, "cached": False, "ratio": 0.5, "views": ["a", "b"], "mixed": [1, "b", True]},
            **SPAN,
        ),
        seq=3,
    )


def a_failed_login() -> bytes:
    return line_of(
        AuditEvent(
            event_type="authn.failure",
            timestamp="2026-09-21T14:13:20.123Z",
            source=AuditSource(ip="203.0.113.9"),
            outcome="failure",
            detail='bad signature for "mallory" \u2028 ü \u0000',
            event_id="0199aabb-0001-7000-8000-000000000003",
        ),
        seq=4,
    )


def a_refused_permission() -> bytes:
    return line_of(
        AuditEvent(
            event_type="authz.decision",
            timestamp="2026-09-21T14:13:20.123Z",
            principal=ALICE,
            resource=AuditResource(type="feature_view", name="driver_stats", actions=["WRITE_ONLINE"]),
            outcome="deny",
            detail="no permission",
            event_id="0199aabb-0001-7000-8000-000000000004",
            parent_id="0199aabb-0001-7000-8000-000000000001",
        ),
        seq=5,
    )


def a_segment_header() -> bytes:
    return raw_line(
        {
            "system": "segment",
            "event_type": "audit.segment",
            "timestamp": "2026-09-21T14:13:20.123Z",
            "request_id": "",
            "principal": {"username": "otel_audit", "roles": [], "auth_type": "", "kind": "system"},
            "source": {"ip": "", "transport": ""},
            "action": {"mcp_tool": "", "path": ""},
            "resource": {"type": "", "name": "", "actions": []},
            "outcome": "success",
            "detail": "",
            "event_id": "0199aabb-0001-7000-8000-000000000000",
            "segment": HEADER,
        },
        seq=1,
    )


LINES = {
    "http_denied": a_denied_http_request,
    "mcp_success": a_tool_call,
    "authn_failure": a_failed_login,
    "authz_deny": a_refused_permission,
    "system_segment": a_segment_header,
}


def export_request(header: Mapping[str, Any], lines: Sequence[bytes]) -> ExportLogsServiceRequest:
    """What is sent of the lines, as the official message."""
    return ExportLogsServiceRequest.FromString(encoded_request(header, lines))


def record_of(line: bytes, header: dict[str, Any] = HEADER) -> LogRecord:
    (resource_logs,) = export_request(header, [line]).resource_logs
    (scope_logs,) = resource_logs.scope_logs
    (record,) = scope_logs.log_records
    return record


def value_of(value: AnyValue) -> Any:
    if value.WhichOneof("value") == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")


def attributes_of(line: bytes, header: dict[str, Any] = HEADER) -> dict[str, Any]:
    pairs = [(pair.key, value_of(pair.value)) for pair in record_of(line, header).attributes]
    found = dict(pairs)
    assert len(found) == len(pairs), "a key stands twice"
    return found


def size_of(found: dict[str, Any]) -> int:
    def size(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(size, value))
        return len(value.encode()) if isinstance(value, str) else 8

    return sum(len(key.encode()) + size(value) for key, value in found.items())
