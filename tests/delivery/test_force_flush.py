"""`force_flush` of a stock LoggerProvider: true only when all was accepted or set aside alone, false in its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider

from otel_audit.integrations.otel_logs import AuditLogRecordProcessor
from tests.servers.otlp_server import Answer, OtlpServer, accepted


class Judging(OtlpServer):
    """Answers by the bytes of a request."""

    def __init__(self) -> None:
        super().__init__()
        self.judge: Callable[[bytes], Answer] = lambda body: accepted()

    def next_answer(self) -> Answer:
        return self.judge(self.requests[-1].body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judging]:
    monkeypatch.setenv("NO_PROXY", "*")
    with Judging() as running:
        yield running


@pytest.fixture
def processor(tmp_path: Path, server: Judging) -> AuditLogRecordProcessor:
    return AuditLogRecordProcessor(
        directory=tmp_path, endpoint=server.endpoint, protocol="http/protobuf", batch_delay_s=0.05, backoff_cap_s=1
    )


@pytest.fixture
def provider(processor: AuditLogRecordProcessor) -> Iterator[LoggerProvider]:
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(processor)
    yield provider
    provider.shutdown()


def test_a_force_flush_is_false_in_its_time_while_something_is_missing_and_true_once_it_is_there(
    server: Judging, provider: LoggerProvider
) -> None:
    server.judge = lambda body: Answer(503)
    provider.get_logger("shop").emit(LogRecord(body="sold"))
    began = time.monotonic()

    assert not provider.force_flush(500)
    assert time.monotonic() - began < 5

    refused = len(server.requests)
    server.judge = lambda body: accepted()
    assert provider.force_flush(20_000)
    assert any(b"sold" in request.body for request in server.requests[refused:])  # the last may be of the ledger


def test_a_force_flush_is_true_when_what_is_missing_was_set_aside_alone(
    server: Judging, provider: LoggerProvider, processor: AuditLogRecordProcessor
) -> None:
    server.judge = lambda body: Answer(400, b"bad record") if b"spoilt" in body else accepted()
    for body in ("sold", "spoilt", "sold again"):
        provider.get_logger("shop").emit(LogRecord(body=body))

    assert provider.force_flush(20_000)

    stats = processor.trail.stats()
    assert (stats.exported, stats.pending, stats.quarantined) == (2, 0, 1)
