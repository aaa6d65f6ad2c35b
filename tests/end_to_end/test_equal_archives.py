"""The same events leave equal archives in the real collector, by whatever way of OpenTelemetry they came."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk.trace import TracerProvider

import otel_audit
from otel_audit import AuditPrincipal
from otel_audit.integrations.otel_logs import AuditLogRecordProcessor
from otel_audit.records.sdk import readable_records
from tests.chain_check import read_streams
from tests.servers import Collector, Record, StartCollector
from tests.servers.certificates import Authority

EVENTS = 2_000
pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("named_audited")]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """What a service left that delivered nothing."""
    directory = tmp_path / "journal"
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("audited")
    with closing(otel_audit.configure(directory=directory, export="ship")) as audit:
        for number in range(EVENTS):
            with tracer.start_as_current_span("call"):
                audit.log_mcp_call(
                    tool_name=f"tool-{number % 7}",
                    principal=AuditPrincipal(username=f"user-{number % 11}", roles=["reader", "é"]),
                    outcome=("success", "denied", "mcp_error")[number % 3],
                    duration_ms=number / 8,
                )
    return directory


def delivered(collector: Collector) -> list[Record]:
    collector.wait_for_archive(EVENTS)
    collector.stop()
    return collector.application_records()


def taken_over(
    journal: Path, collector: Collector, configure: Callable[[Path], otel_audit.AuditLogger]
) -> list[Record]:
    """The archive after a process took over a copy of the journal."""
    with closing(configure(shutil.copytree(journal, collector.data_dir / "journal"))) as audit:
        audit.start()
        collector.wait_for_archive(EVENTS + 1)  # and the header of the segment
    return delivered(collector)


def emitted(journal: Path, collector: Collector) -> list[Record]:
    """The archive after an application emitted the same log records through the plain API."""
    records = records_of(journal)
    scope = records[0].instrumentation_scope
    assert scope is not None
    provider = LoggerProvider(records[0].resource, shutdown_on_exit=False)
    provider.add_log_record_processor(
        AuditLogRecordProcessor(
            directory=collector.data_dir / "journal", endpoint=collector.http_endpoint, protocol="http/protobuf"
        )
    )
    logger = provider.get_logger(scope.name, scope.version, scope.schema_url)
    for record in records:
        logger.emit(record.log_record)
    provider.shutdown()
    assert len(read_streams(collector.data_dir / "journal")) == 1
    return delivered(collector)


def records_of(journal: Path) -> list[ReadableLogRecord]:
    """The log records that the lines stand for."""
    lines = [line for path in sorted(journal.glob("*-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]
    (events,) = read_streams(journal).values()
    header = events[0]["segment"]
    own = [line for event, line in zip(events, lines, strict=True) if "system" not in event]
    return readable_records(header, own)


def test_five_ways_leave_equal_archives(journal: Path, tmp_path: Path, start_collector: StartCollector) -> None:
    authority = Authority(tmp_path, "authority")
    client, certified = authority.issue("client"), authority.issue("localhost")
    tls = "receivers::otlp::protocols::grpc::tls::"
    by_http, by_grpc, by_official, by_api = (start_collector() for _ in range(4))
    by_mutual_tls = start_collector(
        overrides=[
            f"{tls}cert_file: {certified.certificate}",
            f"{tls}key_file: {certified.key}",
            f"{tls}client_ca_file: {authority.bundle}",
        ]
    )

    over_http = taken_over(
        journal,
        by_http,
        lambda copy: otel_audit.configure(directory=copy, endpoint=by_http.http_endpoint, protocol="http/protobuf"),
    )
    over_grpc = taken_over(
        journal, by_grpc, lambda copy: otel_audit.configure(directory=copy, endpoint=by_grpc.grpc_endpoint)
    )
    over_mutual_tls = taken_over(
        journal,
        by_mutual_tls,
        lambda copy: otel_audit.configure(
            directory=copy,
            endpoint=by_mutual_tls.grpc_endpoint.replace("http:", "https:"),
            compression="gzip",
            certificate=authority.bundle,
            client_certificate=client.certificate,
            client_key=client.key,
        ),
    )
    over_official = taken_over(
        journal,
        by_official,
        lambda copy: otel_audit.configure(
            directory=copy, exporters=[lambda: OTLPLogExporter(endpoint=by_official.logs_url)]
        ),
    )
    over_api = emitted(journal, by_api)

    assert len({record.attributes["audit.record.id"] for record in over_http}) == len(over_http) == EVENTS
    assert len({(record.trace_id, record.span_id) for record in over_http}) == EVENTS
    assert over_grpc == over_http
    assert over_mutual_tls == over_http
    assert over_official == over_http
    assert over_api == over_http
