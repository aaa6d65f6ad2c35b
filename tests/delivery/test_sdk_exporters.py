"""The console and the JSONL file behind a stock LoggerProvider of the SDK."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.resources import Resource

from otel_audit.event import AuditEvent, AuditPrincipal
from otel_audit.integrations.otel_logs import AuditConsoleLogExporter, AuditJsonlLogExporter
from tests.journal_lines import HEADER, line_of, raw_line

EVENT = AuditEvent(event_type="authn.failure", principal=AuditPrincipal(username="mallory"), outcome="failure")
ADDED = EVENT.model_copy(update={"event_id": "0199aabb-ccdd-7eef-8011-000000000001", "trace_flags": 1})
SYSTEM_LINE = raw_line({"system": "segment", "event_type": "audit.segment", "segment": HEADER})


def emit(exporter: LogRecordExporter, *bodies: Any) -> None:
    """What an application does that knows nothing of us."""
    provider = LoggerProvider(Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    for body in bodies:
        provider.get_logger("app").emit(
            LogRecord(timestamp=1, body=body, severity_number=SeverityNumber.WARN, event_name="shop.sold")
        )
    provider.shutdown()


def test_the_console_shows_an_audit_event_readable_and_any_other_record_as_its_json() -> None:
    stream = io.StringIO()

    emit(AuditConsoleLogExporter(stream), line_of(ADDED).decode(), "sold \x1b[31mout")

    audit, other = stream.getvalue().splitlines()
    assert "failure    authn.failure       mallory" in audit
    assert json.loads(other)["body"] == "sold \x1b[31mout"
    assert json.loads(other)["event_name"] == "shop.sold"
    assert "\x1b" not in other


def test_the_file_has_an_audit_event_as_it_was_given_and_any_other_record_as_its_json(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    emit(AuditJsonlLogExporter(path), line_of(ADDED).decode(), SYSTEM_LINE.decode(), {"sold": 3})

    audit, other = path.read_text(encoding="utf-8").splitlines()
    assert audit == EVENT.to_jsonl()
    assert json.loads(other)["body"] == {"sold": 3}
    assert json.loads(other)["resource"]["attributes"]["service.name"] == "shop"


@pytest.mark.parametrize("body", [object(), "a lone \udc80", {1, 2}], ids=["object", "surrogate", "set"])
def test_a_body_that_json_cannot_hold_is_still_one_line_of_json(tmp_path: Path, body: object) -> None:
    path = tmp_path / "out.jsonl"

    emit(AuditJsonlLogExporter(path), body, "next")

    odd, after = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert odd["event_name"] == "shop.sold"
    assert after["body"] == "next"


def test_records_of_a_batch_processor_are_all_there_after_its_shutdown(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    provider = LoggerProvider(Resource({}), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(AuditJsonlLogExporter(path)))
    for number in range(1000):
        provider.get_logger("app").emit(LogRecord(timestamp=1, body=f"record {number}"))
    provider.shutdown()

    bodies = [json.loads(line)["body"] for line in path.read_text().splitlines()]

    assert bodies == [f"record {number}" for number in range(1000)]


def test_what_cannot_be_written_is_a_failure_and_not_a_success(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    closed = io.StringIO()
    closed.close()
    record = _records(tmp_path)

    assert AuditJsonlLogExporter(tmp_path / "directory").export(record) is LogRecordExportResult.FAILURE
    assert AuditConsoleLogExporter(closed).export(record) is LogRecordExportResult.FAILURE


def test_after_shutdown_nothing_is_written(tmp_path: Path) -> None:
    path, stream = tmp_path / "out.jsonl", io.StringIO()
    exporters = (AuditJsonlLogExporter(path), AuditConsoleLogExporter(stream))
    record = _records(tmp_path)
    for exporter in exporters:
        exporter.shutdown()

        assert exporter.export(record) is LogRecordExportResult.FAILURE

    assert not path.exists()
    assert stream.getvalue() == ""


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    emit(AuditJsonlLogExporter(tmp_path / "out.jsonl"), "x")

    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


def _records(tmp_path: Path) -> Any:
    """One record as the SDK hands it to exporters."""
    caught: list[Any] = []

    class Catching(AuditJsonlLogExporter):
        def export(self, batch: Any) -> LogRecordExportResult:
            caught.extend(batch)
            return LogRecordExportResult.SUCCESS

    emit(Catching(tmp_path / "unused"), "x")
    return caught
