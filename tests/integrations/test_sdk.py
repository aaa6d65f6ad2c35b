"""The plain logs API of OTel with our journal behind it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_audit import AuditUnavailable, configure
from otel_audit.integrations.otel_logs import AuditLogExporter, AuditLogRecordProcessor
from tests.chain_check import read_streams
from tests.servers import poll
from tests.servers.otlp_grpc_server import OtlpGrpcServer
from tests.servers.otlp_server import OtlpServer

SHOP = Resource({"service.name": "shop"})


@pytest.fixture
def provider() -> Iterator[LoggerProvider]:
    provider = LoggerProvider(SHOP, shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def emit(provider: LoggerProvider, *bodies: Any, **record: Any) -> None:
    for body in bodies:
        provider.get_logger("app", "1.0").emit(LogRecord(body=body, severity_number=SeverityNumber.INFO, **record))


def journalled(directory: Path) -> list[dict[str, Any]]:
    """The records of the application in the journal, whose chain is checked."""
    lines = [line for stream in read_streams(directory).values() for line in stream]
    return [line["otlp"] for line in lines if "otlp" in line]


def body_of(otlp: dict[str, Any]) -> str:
    return str(otlp["scopeLogs"][0]["logRecords"][0]["body"]["stringValue"])


def received(bodies: Sequence[bytes]) -> list[Any]:
    """The records that were sent, without those of the journal itself."""
    requests = [ExportLogsServiceRequest.FromString(body) for body in bodies]
    return [
        (logs.resource, scope_logs.scope, record)
        for request in requests
        for logs in request.resource_logs
        for scope_logs in logs.scope_logs
        for record in scope_logs.log_records
        if scope_logs.scope.name != "otel_audit"
    ]


def test_a_record_is_on_disk_before_emit_returns(provider: LoggerProvider, tmp_path: Path) -> None:
    provider.add_log_record_processor(AuditLogRecordProcessor(directory=tmp_path, export="none"))

    for number in range(20):
        emit(provider, f"sold {number}")
        assert [body_of(otlp) for otlp in journalled(tmp_path)] == [f"sold {each}" for each in range(number + 1)]


def test_a_record_is_exported_unchanged(provider: LoggerProvider, tmp_path: Path) -> None:
    with OtlpServer() as server:
        processor = AuditLogRecordProcessor(
            directory=tmp_path, endpoint=server.base_url, protocol="http/protobuf", compression="none"
        )
        provider.add_log_record_processor(processor)
        with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("order") as span:
            emit(provider, {"sold": [1, "a"]}, timestamp=7, event_name="shop.sold", attributes={"password": "kept"})
        assert provider.force_flush(20_000)

        ((resource, scope, record),) = received([request.body for request in server.requests])

    assert {pair.key: pair.value.string_value for pair in resource.attributes} == {"service.name": "shop"}
    assert (scope.name, scope.version) == ("app", "1.0")
    assert (record.time_unix_nano, record.event_name) == (7, "shop.sold")
    assert record.trace_id == span.get_span_context().trace_id.to_bytes(16, "big")
    assert [(pair.key, pair.value.string_value) for pair in record.attributes] == [("password", "kept")]
    assert record.body.kvlist_value.values[0].key == "sold"


def test_everything_comes_from_the_environment(
    provider: LoggerProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OtlpGrpcServer() as server:
        monkeypatch.setenv("OTEL_AUDIT_DIR", str(tmp_path))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        provider.add_log_record_processor(AuditLogRecordProcessor())
        emit(provider, "sold")
        provider.shutdown()

        assert len(received([request.message for request in server.requests])) == 1


def test_what_is_emitted_after_the_shutdown_waits_in_the_journal(provider: LoggerProvider, tmp_path: Path) -> None:
    processor = AuditLogRecordProcessor(directory=tmp_path, export="none")
    provider.add_log_record_processor(processor)
    emit(provider, "before")
    provider.shutdown()

    emit(provider, "after")

    assert {body_of(otlp) for otlp in journalled(tmp_path)} == {"before", "after"}
    processor.trail.close()


@pytest.mark.processes
def test_a_full_disk_stops_no_application_and_is_counted(provider: LoggerProvider, small_disk: Path) -> None:
    processor = AuditLogRecordProcessor(directory=small_disk / "audit", export="none")
    provider.add_log_record_processor(processor)

    emit(provider, *["x" * 10_000] * 60)

    stats = processor.trail.stats()
    assert stats.emitted == 60
    assert stats.dropped > 30
    assert len(journalled(small_disk / "audit")) == stats.exported == 60 - stats.dropped


@pytest.mark.processes
def test_with_closed_the_caller_is_told_of_a_loss(provider: LoggerProvider, small_disk: Path) -> None:
    processor = AuditLogRecordProcessor(directory=small_disk / "audit", export="none", on_loss="closed")
    provider.add_log_record_processor(processor)

    with pytest.raises(AuditUnavailable, match="the event was not recorded"):
        emit(provider, *["x" * 10_000] * 60)


def test_both_apis_may_write_to_one_directory(provider: LoggerProvider, tmp_path: Path) -> None:
    kept = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    provider.add_log_record_processor(AuditLogRecordProcessor(kept, directory=tmp_path, batch_delay_s=0.05))
    audit = configure(directory=tmp_path, export="none")
    emit(provider, "sold")
    audit.log_authn(outcome="success")

    assert provider.force_flush(20_000)
    audit.close()

    own = [record for record in kept.get_finished_logs() if record.instrumentation_scope.name == "app"]  # type: ignore[union-attr]
    assert [record.log_record.body for record in own] == ["sold"]
    assert len(read_streams(tmp_path)) == 2


def quiet_after(sent: list[Any], *, wait_s: float = 3.0) -> int:
    """How many requests came, once there was some time in which none came."""
    poll(lambda: sent, what="a first request")
    deadline, seen, since = time.monotonic() + 25, len(sent), time.monotonic()
    while time.monotonic() - since < wait_s:
        assert time.monotonic() < deadline, f"still being sent after 25 s: {len(sent)} requests"
        time.sleep(0.05)
        if len(sent) != seen:
            seen, since = len(sent), time.monotonic()
    return seen


@pytest.fixture
def root_at_debug() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.setLevel(logging.DEBUG)
    yield root
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("behind", ["our processor", "the SDK's batch processor", "the SDK's simple processor"])
def test_no_export_makes_the_records_of_the_next_one(
    provider: LoggerProvider, tmp_path: Path, root_at_debug: logging.Logger, protocol: str, behind: str
) -> None:
    from opentelemetry.instrumentation.logging.handler import LoggingHandler

    with OtlpServer() as http, OtlpGrpcServer() as grpc:
        endpoint = http.base_url if protocol == "http/protobuf" else grpc.endpoint
        options: dict[str, Any] = {
            "directory": tmp_path,
            "endpoint": endpoint,
            "protocol": protocol,
            "compression": "none",
            "batch_delay_s": 0.1,
        }
        match behind:
            case "our processor":
                provider.add_log_record_processor(AuditLogRecordProcessor(**options))
            case "the SDK's batch processor":
                provider.add_log_record_processor(
                    BatchLogRecordProcessor(AuditLogExporter(**options), schedule_delay_millis=100)
                )
            case _:
                provider.add_log_record_processor(SimpleLogRecordProcessor(AuditLogExporter(**options)))
        root_at_debug.addHandler(LoggingHandler(logger_provider=provider))
        logging.getLogger("shop").debug("sold")
        logging.getLogger("urllib3.connectionpool").debug("of the application's own call")

        sent: list[Any] = http.requests if protocol == "http/protobuf" else grpc.requests
        quiet_after(sent)
        bodies = [request.body if protocol == "http/protobuf" else request.message for request in sent]

    told = {record.body.string_value for _, scope, record in received(bodies)}
    assert {"sold", "of the application's own call"} <= told
    assert not any("/v1/logs" in text or "connection" in text.lower() for text in told), told


def test_suppressed_instrumentation_of_the_application_loses_no_record(
    provider: LoggerProvider, tmp_path: Path
) -> None:
    provider.add_log_record_processor(AuditLogRecordProcessor(directory=tmp_path, export="none"))

    with suppress_instrumentation():
        emit(provider, "sold")

    assert len(journalled(tmp_path)) == 1
