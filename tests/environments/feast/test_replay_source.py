"""An audit log that Feast itself wrote is replayed into the real collector, and once more with no new ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from feast.audit.audit_logger import (
    AuditEvent,
    AuditPrincipal,
    AuditResource,
    AuditSource,
    create_audit_logger_from_config,
)
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.delivery.jsonl import as_given
from tests.servers import Collector, Record

COMMAND = Path(sys.executable).with_name("otel-audit")
ROUNDS = 200


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    with Collector(tmp_path / "collector") as running:
        yield running


def written_by_feast(path: Path) -> list[str]:
    """A thousand lines, of every method that Feast's logger has; those of a span carry its ids."""
    audit = create_audit_logger_from_config(SimpleNamespace(enabled=True, sink="file", file_path=str(path)))
    assert audit is not None
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("feast")
    who, where = AuditPrincipal(username="ann", roles=["reader"]), AuditSource(ip="192.0.2.7", transport="mcp-http")
    what = AuditResource(type="FeatureView", name="drivers", actions=["READ_ONLINE"])
    for number in range(ROUNDS):
        with tracer.start_as_current_span("request"):
            audit.log_mcp_call(
                request_id=f"r{number}", tool_name="get_online_features", principal=who, source=where, resource=what
            )
            audit.log_http_request(request_id=f"r{number}", method="POST", path="/push", duration_ms=1.5)
        audit.log_authn(request_id=f"r{number}", outcome="failure", detail="token expired é\u2028")
        audit.log_authz(request_id=f"r{number}", outcome="denied", principal=who, resource=what)
        audit.log(AuditEvent(event_type="own"))
    audit.close()
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def replay(path: Path, collector: Collector, state: Path, *options: str) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    done = subprocess.run(
        [COMMAND, "replay", path, "--json", "--state", state, *options],
        env={
            **kept,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "feast",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def assert_is_the_event(record: Record, line: str) -> None:
    event = AuditEvent.model_validate_json(line)
    assert as_given(record.body.encode()).decode() == line
    assert record.event_name == event.event_type
    assert record.time_unix_nano == round(datetime.fromisoformat(event.timestamp).timestamp() * 1000) * 1_000_000
    assert (record.trace_id, record.span_id) == (event.trace_id or "", event.span_id or "")
    assert record.attributes["audit.request.id"] == event.request_id
    assert record.resource["service.name"] == "feast"


def test_a_thousand_lines_of_feast_are_replayed_twice_with_no_new_ids(tmp_path: Path, collector: Collector) -> None:
    log, state = tmp_path / "feast_audit.log", tmp_path / "state"
    lines = written_by_feast(log)
    assert len(lines) == 1000

    assert replay(log, collector, state)["sent"] == 1000

    records = collector.wait_for_archive(1000)
    for record, line in zip(records, lines, strict=True):
        assert_is_the_event(record, line)
    assert sum(record.trace_id != "" for record in records) == 2 * ROUNDS
    ids = {record.attributes["audit.record.id"] for record in records}
    assert len(ids) == 1000

    assert replay(log, collector, state, "--from-start")["sent"] == 1000

    again = collector.wait_for_archive(2000)
    assert again == records + records
