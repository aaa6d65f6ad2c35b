"""What Feast itself writes on its logger `feast.audit`, in both of its schemas, becomes events of a journal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from feast import metrics
from feast.audit import audit_logger as feast_audit
from opentelemetry.sdk.trace import TracerProvider

from otel_audit import LoggerAuditSink
from otel_audit.delivery.jsonl import as_given
from otel_audit.integrations.stdlib_logging import AuditHandler
from tests.chain_check import application_events
from tests.recording import recorder


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[list[str]]:
    """The lines that Feast wrote, beside the journal in `tmp_path / "audit"`."""
    written: list[str] = []

    class Beside(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    logger = logging.getLogger("feast.audit")
    with recorder(tmp_path / "audit") as audit:
        handlers = [AuditHandler(audit), Beside()]
        level = logger.level
        logger.setLevel(logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
        try:
            yield written
        finally:
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)


def feasts_logger() -> feast_audit.AuditLogger:
    audit = feast_audit.create_audit_logger_from_config(SimpleNamespace(enabled=True, sink="logger"))
    assert audit is not None
    return audit


def test_every_event_of_feasts_own_logger_is_in_the_journal_as_feast_wrote_it(tmp_path: Path, lines: list[str]) -> None:
    audit = feasts_logger()
    who = feast_audit.AuditPrincipal(username="ann", roles=["reader"], auth_type="oidc")
    what = feast_audit.AuditResource(type="FeatureView", name="drivers", actions=["READ_ONLINE"])
    with TracerProvider(shutdown_on_exit=False).get_tracer("feast").start_as_current_span("request"):
        audit.log_mcp_call(request_id="r1", tool_name="get_online_features", principal=who, resource=what)
        audit.log_http_request(request_id="r2", method="POST", path="/push", duration_ms=1.5, status_code=500)
    audit.log_authn(request_id="r3", outcome="failure", detail="expired é\u2028")
    audit.log_authz(request_id="r4", outcome="denied", principal=who, resource=what)
    audit.log(feast_audit.AuditEvent(event_type="own", duration_ms=float("nan")))

    journalled = min((tmp_path / "audit").glob("*-*.jsonl")).read_bytes().split(b"\n")
    of_feast = [as_given(line).decode() for line in journalled if line and b'"system"' not in line]
    # A number that is none is null in Feast's line, and left out here.
    assert of_feast == [line.replace('"duration_ms":null,', "") for line in lines]
    assert len(application_events(tmp_path / "audit")) == len(lines) == 5


def test_both_schemas_of_feasts_metrics_become_events(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics._config, "audit_logging", True)
    metrics.emit_online_audit_log(
        requestor_id="ann",
        entity_keys=["driver_id"],
        entity_count=2,
        feature_views=["driver_stats"],
        feature_count=3,
        status="success",
        latency_ms=1.234,
    )
    metrics.emit_offline_audit_log(
        method="to_arrow",
        feature_views=["driver_stats"],
        feature_count=3,
        row_count=1000,
        status="error",
        start_time="2026-03-01T09:59:00+00:00",
        end_time="2026-03-01T10:00:00+00:00",
        duration_ms=60_000.0,
    )

    online, offline = application_events(tmp_path / "audit")
    assert [each["event_type"] for each in (online, offline)] == [
        "feast.online_feature_request",
        "feast.offline_feature_retrieval",
    ]
    assert (online["principal"]["username"], online["outcome"], offline["outcome"]) == ("ann", "success", "error")
    for event, line in ((online, json.loads(lines[0])), (offline, json.loads(lines[1]))):
        assert event["timestamp"] == line["timestamp"]
        mapped = {"event", "timestamp", "requestor_id", "status", "latency_ms", "duration_ms"}
        assert event["attributes"] == {f"feast.{key}": value for key, value in line.items() if key not in mapped}
        assert event["duration_ms"] in (line.get("latency_ms"), line.get("duration_ms"))


def test_feast_with_our_logger_sink_is_left_to_that_sink(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(feast_audit._SINK_FACTORIES, "logger", lambda cfg: LoggerAuditSink())

    feasts_logger().log_authn(request_id="r", outcome="success")

    assert len(lines) == 1
    assert application_events(tmp_path / "audit") == []
