"""The collector for users' tests keeps what it accepts, and says nothing of what it refused."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

import otel_audit
from otel_audit import AuditLogger
from otel_audit.testing.collector import LoopbackCollector


def delivering_to(collector: LoopbackCollector, directory: Path) -> AuditLogger:
    return otel_audit.configure(
        directory=directory, endpoint=collector.endpoint, protocol="http/protobuf", export="otlp", service_name="shop"
    )


def test_what_is_delivered_is_kept(audit_collector: LoopbackCollector, tmp_path: Path) -> None:
    with delivering_to(audit_collector, tmp_path) as audit:
        audit.log_authn(outcome="failure")
        assert audit.flush(timeout_s=60).complete

    assert audit_collector.events.one(event_type="authn.failure").outcome == "failure"
    assert "authn.failure" in [record.event_name for record in audit_collector.records]


def test_what_is_refused_is_not_kept_and_comes_again(audit_collector: LoopbackCollector, tmp_path: Path) -> None:
    audit_collector.status = 503
    with delivering_to(audit_collector, tmp_path) as audit:
        audit.log_authn(outcome="failure")
        assert not audit.flush(timeout_s=0.5).complete
        audit_collector.events.none()

        audit_collector.status = 200
        assert audit.flush(timeout_s=60).complete

    audit_collector.events.one(event_type="authn.failure")


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "gzip"])
def test_a_request_that_is_no_otlp_is_refused(headers: dict[str, str], audit_collector: LoopbackCollector) -> None:
    answer = httpx.post(f"{audit_collector.endpoint}/v1/logs", content=b"\xff\xff", headers=headers)

    assert answer.status_code == 400
    assert audit_collector.records == []
