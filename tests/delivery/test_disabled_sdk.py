"""`OTEL_SDK_DISABLED=true`: events are recorded all the same, but of the SDK's own loggers nothing comes here."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider

from otel_audit import configure
from otel_audit.integrations.otel_logs import AuditLogRecordProcessor
from tests.servers.otlp_server import OtlpServer


def test_a_disabled_sdk_stops_records_of_its_own_loggers_and_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with OtlpServer() as server:
        with closing(configure(directory=tmp_path, endpoint=server.endpoint, protocol="http/protobuf")) as audit:
            audit.log_authn(outcome="success", detail="on record")
            assert audit.flush(timeout_s=20).complete

        provider = LoggerProvider(shutdown_on_exit=False)
        processor = AuditLogRecordProcessor(directory=tmp_path, endpoint=server.endpoint, protocol="http/protobuf")
        provider.add_log_record_processor(processor)
        provider.get_logger("shop").emit(LogRecord(body="off the record"))
        provider.shutdown()

    sent = b"".join(request.body for request in server.requests)
    assert b"on record" in sent
    assert b"off the record" not in sent
    assert processor.trail.stats().emitted == 0
