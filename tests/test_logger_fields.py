"""What the logger fills in, what it keeps as the caller gave it, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from otel_audit.event import AuditEvent, AuditResource
from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger
from tests.arguments import NOW_NS, SPAN_ID
from tests.chain_check import application_events
from tests.recording import event_of, recorder


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path) as logger:
        yield logger


def test_an_event_without_time_and_ids_gets_them_and_a_receipt_that_names_its_line(tmp_path: Path) -> None:
    with recorder(tmp_path, clock=lambda: NOW_NS) as audit:
        receipt = audit.log(AuditEvent(event_type="x"))
        line = event_of(tmp_path, receipt)

    assert line["timestamp"] == "2026-09-21T14:13:20.123Z"
    assert (line["time_ns"], line["observed_ns"]) == (NOW_NS, NOW_NS)
    assert len(line["request_id"]) == 36
    assert receipt == Receipt(line["event_id"], line["stream_id"], line["seq"], True)


def test_a_time_that_the_caller_gives_is_kept_and_is_the_time_of_the_record(tmp_path: Path) -> None:
    with recorder(tmp_path, clock=lambda: NOW_NS) as audit:
        line = event_of(tmp_path, audit.log(AuditEvent(event_type="x", timestamp="2026-01-01T01:00:00.5+01:00")))

    assert line["timestamp"] == "2026-01-01T01:00:00.5+01:00"
    assert line["time_ns"] == int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 10**9 + 5 * 10**8
    assert line["observed_ns"] == NOW_NS


@pytest.mark.parametrize("text", ["yesterday", "2026-01-01T00:00:00", "2026", "\ud800", "9" * 100])
def test_a_time_that_is_none_is_kept_as_text_and_the_record_has_ours(tmp_path: Path, text: str) -> None:
    with recorder(tmp_path, clock=lambda: NOW_NS) as audit:
        line = event_of(tmp_path, audit.log(AuditEvent(event_type="x", timestamp=text)))

    assert line["time_ns"] == NOW_NS
    assert line["timestamp"] == text.replace("\ud800", "\ufffd")


@pytest.mark.parametrize("text", ["1960-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_no_record_can_hold_is_kept_as_text_and_the_record_has_ours(tmp_path: Path, text: str) -> None:
    with recorder(tmp_path, clock=lambda: NOW_NS) as audit:
        line = event_of(tmp_path, audit.log(AuditEvent(event_type="x", timestamp=text)))

    assert line["timestamp"] == text
    assert line["time_ns"] == NOW_NS


def test_an_event_id_that_the_caller_gives_is_kept(audit: AuditLogger, tmp_path: Path) -> None:
    receipt = audit.log(AuditEvent(event_type="x", event_id="mine", request_id="r"))

    line = event_of(tmp_path, receipt)
    assert receipt is not None
    assert (line["event_id"], line["request_id"], receipt.event_id) == ("mine", "r", "mine")


def test_the_keys_of_a_line_are_in_the_order_of_the_model(audit: AuditLogger, tmp_path: Path) -> None:
    event = AuditEvent(event_type="x", span_id=SPAN_ID, jsonrpc_id="1", reason="r", attributes={"a": 1}, trace_flags=1)

    keys = [key for key in event_of(tmp_path, audit.log(event)) if key in AuditEvent.model_fields]

    assert keys == [name for name in AuditEvent.model_fields if name in keys]


def test_a_filtered_read_gives_none_and_is_counted_apart(tmp_path: Path) -> None:
    read = AuditResource(actions=["READ_ONLINE"])
    with recorder(tmp_path, log_successful_reads=False) as audit:
        filtered = [
            audit.log_http_request(method="POST", path="/get-online-features", resource=read),
            audit.log_mcp_call(tool_name="get_online_features"),
            audit.log(AuditEvent(event_type="http.request", outcome="success", resource=read)),
        ]
        kept = audit.log_http_request(method="POST", path="/get-online-features", resource=read, outcome="error")
        stats = audit.stats()

    assert filtered == [None, None, None]
    assert kept is not None
    assert (stats.emitted, stats.filtered, stats.dropped) == (1, 3, 0)
    assert len(application_events(tmp_path)) == 1
