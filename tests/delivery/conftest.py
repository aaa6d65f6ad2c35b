"""What the tests of both OTLP transports share: certificate authorities, and records of the stock SDK."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from tests.servers.certificates import Authority


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "our-authority")


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("theirs"), "another-authority")


@pytest.fixture(scope="module")
def batch() -> Sequence[ReadableLogRecord]:
    kept = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(kept))
    logger = provider.get_logger("audit")
    for number in range(50):
        moment = 1_700_000_000_000_000_000 + number
        logger.emit(LogRecord(timestamp=moment, body=f"event {number}", severity_number=SeverityNumber.INFO))
    return kept.get_finished_logs()
