"""A line with wrong values is sent without them; one that cannot be read is named, never quoted."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

from otel_audit.records import attributes as keys
from otel_audit.records.encoding import UnreadableLine
from otel_audit.records.sdk import readable_records
from tests.journal_lines import HEADER, raw_line
from tests.record_lines import MANDATORY, SPAN, a_failed_login, a_tool_call, attributes_of, export_request, record_of


@pytest.mark.parametrize(
    "span",
    [
        {"trace_id": "0" * 32, "span_id": "b7ad6b7169203331"},
        {"trace_id": "xyz", "span_id": "b7ad6b7169203331"},
        {"trace_id": "ab " * 10 + "ab", "span_id": "b7ad6b7169203331"},
        {"trace_id": 7, "span_id": 8, "trace_flags": "1"},
        {"span_id": "b7ad6b7169203331", "trace_flags": 1},
    ],
)
def test_a_malformed_trace_is_left_out_and_the_record_is_sent(span: dict[str, Any]) -> None:
    record = record_of(raw_line({"event_type": "x", **span}))

    assert (record.trace_id, record.span_id, record.flags) == (b"", b"", 0)


def test_a_malformed_span_id_or_flags_leave_the_trace_id() -> None:
    record = record_of(raw_line({"event_type": "x", **SPAN, "span_id": "0" * 16, "trace_flags": 256}))

    assert (record.trace_id.hex(), record.span_id, record.flags) == (SPAN["trace_id"], b"", 0)


def test_values_of_the_wrong_type_are_left_out_and_the_record_is_sent() -> None:
    event = {
        "event_type": "x",
        "duration_ms": "fast",
        "status_code": 10**30,
        "principal": {"username": "alice", "roles": ["a", 1]},
        "source": ["10.0.0.1"],
        "action": None,
        "detail": {"a": 1},
        "attributes": {"big": 2**63, "none": None, "deep": {"a": 1}, "lists": [[1]], "ok": 2**63 - 1},
    }
    line = raw_line(event)

    assert attributes_of(line).keys() - MANDATORY == {
        "audit.actor.name",
        keys.RESULT, keys.SCHEMA, keys.SEQUENCE_STREAM_ID, keys.SEQUENCE_NUMBER, keys.SOURCE_ID, keys.SOURCE_TYPE, "ok",
    }  # fmt: skip
    assert record_of(line).dropped_attributes_count == 4


def test_a_time_before_1970_is_sent_as_unknown() -> None:
    record = record_of(raw_line({"event_type": "x"}, time_ns=-5))

    assert (record.time_unix_nano, record.observed_time_unix_nano) == (0, 1790000000123999999)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"event_type":"\xff"}',
        b"[" * 100_000,
        b'{"event_type":"x"}',
        raw_line({"event_type": 7}),
        raw_line({"event_type": "x"}, stream_id=None),
        raw_line({"event_type": "x"}, time_ns="1"),
        raw_line({"event_type": "x"}, observed_ns=1.5),
        raw_line({"event_type": "x"}, observed_ns=2**63),
        raw_line({"event_type": "x"}, seq=True),
        raw_line({"event_type": "x"}, seq=-1),
        a_failed_login()[:-30],
    ],
    ids=lambda line: repr(line[:24]),
)
def test_an_unreadable_line_is_named_so_that_it_alone_can_be_set_aside(line: bytes) -> None:
    with pytest.raises(UnreadableLine, match=r"^line 1 of the batch: expected .*`\$") as refused:
        export_request(HEADER, [a_tool_call(), line, a_tool_call()])
    with pytest.raises(UnreadableLine) as refused_again:
        readable_records(HEADER, [a_tool_call(), line])

    assert refused.value.position == refused_again.value.position == 1


def test_an_unreadable_line_is_never_quoted_in_the_error() -> None:
    with pytest.raises(UnreadableLine) as refused:
        export_request(HEADER, [b'{"event_type":"hunter2-secret","time_ns":"hunter2-secret"}'])

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "header", [{}, {"resource": None, "scope": 7}, {"resource": {"": 1, "a": {"b": 1}, "c": None}}]
)
def test_a_header_that_says_little_still_gives_a_record(header: dict[str, Any]) -> None:
    request = export_request(header, [a_failed_login()])

    assert request == encode_logs(readable_records(header, [a_failed_login()]))
    assert not request.resource_logs[0].resource.attributes
