"""A secret is removed from the line, wherever the caller put it, and the caller's own objects stay as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from otel_audit.event import AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.logger import AuditLogger
from tests.arguments import SECRETS, span_context
from tests.recording import line_of_receipt, recorder


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path) as logger:
        yield logger


def test_a_secret_in_an_event_is_removed_and_its_path_is_listed(audit: AuditLogger, tmp_path: Path) -> None:
    event = AuditEvent(
        event_type="x",
        detail="Authorization: Bearer abcdefghij1234567890XYZ",
        principal=AuditPrincipal(username="ann", roles=["token=abcdefghij1234567890"]),
        attributes={"password": "hunter2hunter2", "count": 1},
    )

    line = line_of_receipt(tmp_path, audit.log(event))

    assert [secret for secret in (b"abcdefghij", b"hunter2") if secret in line] == []
    assert json.loads(line)["redacted"] == ["$.attributes.password", "$.detail", "$.principal.roles[0]"]


@pytest.mark.parametrize(
    ("method", "arguments", "path"),
    [
        ("log_mcp_call", {"tool_name": "t", "detail": SECRETS[0]}, "$.detail"),
        ("log_mcp_call", {"tool_name": SECRETS[1]}, "$.action.mcp_tool"),
        ("log_mcp_call", {"tool_name": "t", "jsonrpc_id": SECRETS[0]}, "$.jsonrpc_id"),
        ("log_http_request", {"method": "GET", "path": "/?password=hunter2hunter2"}, "$.action.path"),
        ("log_authn", {"outcome": "failure", "request_id": SECRETS[0]}, "$.request_id"),
        ("log_authn", {"outcome": SECRETS[0]}, "$.outcome"),
        ("log_authn", {"outcome": "x", "source": AuditSource(user_agent=SECRETS[2])}, "$.source.user_agent"),
        (
            "log_authz",
            {"outcome": "deny", "principal": AuditPrincipal(on_behalf_of=SECRETS[0])},
            "$.principal.on_behalf_of",
        ),
        ("log_authz", {"outcome": "deny", "resource": AuditResource(actions=[SECRETS[1]])}, "$.resource.actions[0]"),
    ],
)
def test_a_secret_in_any_argument_of_a_helper_is_removed(
    audit: AuditLogger, tmp_path: Path, method: str, arguments: dict[str, Any], path: str
) -> None:
    line = line_of_receipt(tmp_path, getattr(audit, method)(**arguments))

    assert [secret for secret in (b"abcdefghij", b"hunter2", b"s3cretpw") if secret in line] == []
    assert path in json.loads(line)["redacted"]


def test_a_nested_attribute_is_kept_as_text_without_its_secret(audit: AuditLogger, tmp_path: Path) -> None:
    given_fields: Any = {"event_type": "x", "attributes": {"user": {"name": "ann", "password": "hunter2hunter2"}}}

    class Foreign:
        def model_dump(self) -> dict[str, Any]:
            return dict(given_fields)

    line = line_of_receipt(tmp_path, audit.log(Foreign()))

    assert b"hunter2" not in line
    assert "ann" in json.loads(line)["attributes"]["user"]


def test_the_callers_event_is_never_changed(audit: AuditLogger) -> None:
    event = AuditEvent(
        event_type="x",
        detail=SECRETS[0],
        principal=AuditPrincipal(roles=["password=hunter2hunter2"]),
        attributes={"password": "hunter2hunter2", "long": ["x" * 5000]},
    )
    before = event.model_copy(deep=True)

    with trace.use_span(trace.NonRecordingSpan(span_context())):
        audit.log(event)

    assert event == before


def test_the_arguments_of_a_helper_are_never_changed(audit: AuditLogger) -> None:
    principal = AuditPrincipal(username=SECRETS[0], roles=["x" * 5000])
    before = principal.model_copy(deep=True)

    audit.log_authn(outcome="success", principal=principal)

    assert principal == before
