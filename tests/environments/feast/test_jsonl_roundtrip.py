"""What OTEL_AUDIT_EXPORT=jsonl writes, Feast's own AuditEvent reads, and gives the same bytes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from feast.audit.audit_logger import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

import otel_audit
from otel_audit.delivery.jsonl import as_given

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.none() | texts
events = st.builds(
    AuditEvent,
    event_type=texts,
    timestamp=texts,
    request_id=texts,
    trace_id=ids,
    span_id=ids,
    jsonrpc_id=ids,
    principal=st.builds(AuditPrincipal, username=texts, roles=st.lists(texts, max_size=3), auth_type=texts),
    source=st.builds(AuditSource, ip=texts, transport=texts),
    action=st.builds(AuditAction, mcp_tool=texts, path=texts),
    resource=st.builds(AuditResource, type=texts, name=texts, actions=st.lists(texts, max_size=3)),
    outcome=texts,
    duration_ms=st.none() | st.floats(min_value=0, max_value=1e9, allow_nan=False),
    detail=texts,
)

_TAIL = (
    b',"event_id":"0199aabb-ccdd-7eef-8011-000000000001","trace_flags":1,"time_ns":1,"observed_ns":1,'
    b'"stream_id":"0199aabb-ccdd-7eef-8011-223344556677","seq":2,"prev_hash":"' + b"5e" * 32 + b'"}'
)


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a process whose only settings are these variables."""
    monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path / "journal"))
    monkeypatch.setenv("OTEL_AUDIT_EXPORT", "jsonl")
    return tmp_path / "journal" / "export.jsonl"


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_every_line_of_a_logger_is_feasts_own_event(exported: Path) -> None:
    audit = otel_audit.configure()
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("request"):
        audit.log_mcp_call(request_id="r1", tool_name="get_online_features", duration_ms=1.25, detail="駅 \u2028")
        audit.log_authn(outcome="failure", detail="token expired")
    audit.log_authz(outcome="deny", resource=AuditResource(type="FeatureView", name="drivers", actions=["READ_ONLINE"]))
    audit.log(AuditEvent(event_type="own", principal=AuditPrincipal(username="alice", roles=["a", "b"])))
    audit.log_http_request(request_id="r2", method="POST", path="/push", outcome="denied", status_code=403)
    audit.close()

    lines = lines_of(exported)

    events = [AuditEvent.model_validate_json(line) for line in lines]
    assert [event.to_jsonl() for event in events] == lines
    assert [event.event_type for event in events] == [
        "mcp.tools.call",
        "authn.failure",
        "authz.decision",
        "own",
        "http.request",
    ]
    assert [event.trace_id is not None for event in events] == [True, True, False, False, False]


def test_an_event_of_feast_is_exported_with_feasts_bytes(exported: Path) -> None:
    event = AuditEvent(event_type="x", timestamp="2026-01-02T03:04:05.678Z", request_id="r", duration_ms=0.1)
    audit = otel_audit.configure()
    audit.log(event)
    audit.close()

    assert lines_of(exported) == [event.to_jsonl()]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(events)
def test_whatever_feasts_event_holds_comes_back_byte_for_byte(event: AuditEvent) -> None:
    line = event.to_jsonl().encode()[:-1] + _TAIL

    assert as_given(line).decode() == event.to_jsonl()
