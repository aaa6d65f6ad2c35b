"""OTLP over gRPC to the real collector. That every way leaves an equal archive: tests/end_to_end."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import otel_audit
from otel_audit import AuditPrincipal
from tests.servers import Collector, StartCollector

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("named_audited")]


def test_a_message_over_the_limit_of_the_collector_is_halved_until_it_fits(
    tmp_path: Path, start_collector: StartCollector
) -> None:
    # grpc-go, the collector's library, says so in its own words.
    collector = start_collector(overrides=["receivers::otlp::protocols::grpc::max_recv_msg_size_mib: 1"])
    with closing(otel_audit.configure(directory=tmp_path / "journal", endpoint=collector.grpc_endpoint)) as audit:
        for number in range(300):
            audit.log_authn(
                principal=AuditPrincipal(username=f"user-{number}"),
                outcome="denied",
                detail="so it was: " + "long " * 1500,
            )
        report = audit.flush(timeout_s=60)

    assert report.complete
    assert len(collector.application_records()) == 300


def test_what_was_logged_while_the_collector_was_away_arrives_when_it_is_back(
    tmp_path: Path, collector: Collector
) -> None:
    with closing(otel_audit.configure(directory=tmp_path / "journal", endpoint=collector.grpc_endpoint)) as audit:
        audit.log_authn(principal=AuditPrincipal(username="before"), outcome="success")
        assert audit.flush(timeout_s=30).complete
        collector.kill()
        audit.log_authn(principal=AuditPrincipal(username="meanwhile"), outcome="success")
        report = audit.flush(timeout_s=0.5)
        assert (report.complete, report.pending) == (False, 1)
        collector.start()
        assert audit.flush(timeout_s=30).complete

    assert [record.attributes["audit.actor.id"] for record in collector.application_records()] == [
        "before",
        "meanwhile",
    ]


SERVICE = """
import os
import otel_audit

audit = otel_audit.configure()
audit.log_authn(principal=otel_audit.AuditPrincipal(username="parent"), outcome="success")
assert audit.flush(timeout_s=30).complete
child = os.fork()
audit.log_authn(principal=otel_audit.AuditPrincipal(username="parent again" if child else "child"), outcome="success")
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_service_that_forks_needs_the_endpoint_and_nothing_else(tmp_path: Path, collector: Collector) -> None:
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.grpc_endpoint,
        "OTEL_AUDIT_DIR": str(tmp_path / "journal"),
    }

    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SERVICE], env=environment, capture_output=True, text=True, timeout=90
    )

    assert (result.returncode, result.stderr) == (0, "")
    users = sorted(str(record.attributes["audit.actor.id"]) for record in collector.application_records())
    assert users == ["child", "parent", "parent again"]
