"""Requests of a collector's archive: whole, torn at any byte, joined on one line."""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.stores.archive import halves_of, read_archive_line, records_in


def a_request(*names: str, service: str = "shop") -> dict[str, Any]:
    records = [
        {
            "timeUnixNano": "1767225600000000001",
            "observedTimeUnixNano": "1767225600000000002",
            "severityNumber": 9,
            "severityText": "INFO",
            "body": {"stringValue": f"{name} {{}} \U0001f600"},
            "attributes": [{"key": "n", "value": {"intValue": "9007199254740993"}}],
            "flags": 3,
            "traceId": "0af7651916cd43dd8448eb211c80319c",
            "spanId": "b7ad6b7169203331",
            "eventName": name,
        }
        for name in names
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    scopes = [{"scope": {"name": "s", "version": "1"}, "logRecords": records}]
    return {"resourceLogs": [{"resource": resource, "scopeLogs": scopes}]}


def as_official(request: dict[str, Any]) -> ExportLogsServiceRequest:
    """By the parser of Protocol Buffers, whose ids are base64."""
    copy = json.loads(json.dumps(request))
    for logs in copy["resourceLogs"]:
        for record in (record for scope in logs["scopeLogs"] for record in scope["logRecords"]):
            for key in ("traceId", "spanId"):
                record[key] = base64.b64encode(bytes.fromhex(record[key])).decode()
    return ParseDict(copy, ExportLogsServiceRequest())


def written(request: dict[str, Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


def test_a_request_is_read_as_it_was_sent() -> None:
    request = a_request("a", "b")

    read = read_archive_line(written(request))

    assert list(read.requests) == [as_official(request)]
    assert list(read.unreadable) == []


def test_requests_that_were_joined_on_one_line_are_all_read() -> None:
    requests = [a_request("a"), a_request("b"), a_request("c")]

    read = read_archive_line(b"".join(map(written, requests)))

    assert list(read.requests) == [as_official(request) for request in requests]
    assert list(read.unreadable) == []


@given(st.data())
def test_a_request_torn_at_any_byte_costs_no_other_one(data: st.DataObject) -> None:
    first, torn, last = written(a_request("a")), written(a_request("torn")), written(a_request("z"))
    cut = data.draw(st.integers(1, len(torn) - 1))

    read = read_archive_line(first + torn[:cut] + last)

    assert [request.resource_logs[0].scope_logs[0].log_records[0].event_name for request in read.requests] == ["a", "z"]
    assert len(read.unreadable) == 1


def test_what_is_json_but_not_otlp_is_unreadable() -> None:
    for line in (
        b'{"resourceLogs":5}',
        b'{"resourceLogs":[5]}',
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"traceId":"x"}]}]}]}',
    ):
        read = read_archive_line(line)
        assert list(read.requests) == []
        assert len(read.unreadable) == 1


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda counts: sum(counts) > 1))
def test_the_halves_of_a_request_hold_each_record_once_with_its_resource(counts: list[int]) -> None:
    request = ExportLogsServiceRequest()
    for index, count in enumerate(counts):
        names = [f"{index}-{number}" for number in range(count)]
        request.MergeFrom(as_official(a_request(*names, service=f"service-{index}")))

    halves = halves_of(request)

    assert [records_in(half) for half in halves] == [sum(counts) // 2, sum(counts) - sum(counts) // 2]
    assert [pair for half in halves for pair in named(half)] == named(request)


def named(request: ExportLogsServiceRequest) -> list[tuple[str, str]]:
    return [
        (logs.resource.attributes[0].value.string_value, record.event_name)
        for logs in request.resource_logs
        for scope in logs.scope_logs
        for record in scope.log_records
    ]
