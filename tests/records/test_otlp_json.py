"""OTLP's JSON form: what is written reads back as the official encoder and the general parser have it."""

from __future__ import annotations

import base64
import copy
import json
import math
from collections import OrderedDict
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_audit.records.otlp_json import any_value, key_values, read_request, read_resource_logs

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# Without null: earlier releases of the official encoder leave out the AnyValue of one that is inside another value.
scalars = st.booleans() | texts | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.binary(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


def official_request(body: Any, attributes: dict[str, Any]) -> ExportLogsServiceRequest:
    record = LogRecord(
        timestamp=1_700_000_000_000_000_001,
        observed_timestamp=1_700_000_000_000_000_002,
        severity_number=SeverityNumber.WARN,
        severity_text="WARN",
        body=body,
        event_name="order.placed",
        attributes=BoundedAttributes(attributes=attributes, extended_attributes=True),
    )
    scope = InstrumentationScope("shop", "1.2", "https://example.test/scope", {"layer": "web"})
    resource = Resource({"service.name": "shop", "replicas": 3}, "https://example.test/resource")
    return encode_logs([ReadableLogRecord(record, resource, scope)])


def with_ids_in_hex(message: ExportLogsServiceRequest) -> dict[str, Any]:
    """The general JSON form with the one thing that OTLP writes otherwise."""
    told: dict[str, Any] = copy.deepcopy(MessageToDict(message))
    for resource_logs in told.get("resourceLogs", ()):
        for scope_logs in resource_logs.get("scopeLogs", ()):
            for record in scope_logs.get("logRecords", ()):
                for name in ("traceId", "spanId"):
                    if name in record:
                        record[name] = base64.b64decode(record[name]).hex()
    return told


@given(body=values, attributes=st.dictionaries(texts.filter(bool), scalars, max_size=4))
def test_a_request_in_json_reads_as_the_message_it_was_made_of(body: Any, attributes: dict[str, Any]) -> None:
    message = official_request(body, attributes)
    log = message.resource_logs[0].scope_logs[0].log_records[0]
    log.trace_id, log.span_id, log.flags = bytes(range(16)), bytes(range(8)), 3

    assert read_request(json.loads(json.dumps(with_ids_in_hex(message)))) == message


@given(value=values)
def test_a_value_is_written_as_the_official_encoder_has_it(value: Any) -> None:
    written = json.loads(json.dumps({"scopeLogs": [{"logRecords": [{"body": any_value(value)}]}]}))

    expected = official_request(value, {}).resource_logs[0].scope_logs[0].log_records[0].body
    assert read_resource_logs(written).scope_logs[0].log_records[0].body == expected


@given(attributes=st.dictionaries(texts.filter(bool), values, max_size=4))
def test_written_attributes_are_what_the_general_parser_reads_too(attributes: dict[str, Any]) -> None:
    value = {"scopeLogs": [{"logRecords": [{"attributes": key_values(attributes)}]}]}

    general = ParseDict({"resourceLogs": [value]}, ExportLogsServiceRequest())
    assert read_resource_logs(value).scope_logs[0].log_records == general.resource_logs[0].scope_logs[0].log_records


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([None], {"arrayValue": {"values": [{}]}}),
        (math.nan, {"doubleValue": "NaN"}),
        (-math.inf, {"doubleValue": "-Infinity"}),
        (2**63, {"stringValue": "9223372036854775808"}),
        ("a\ud800b", {"stringValue": "a\ufffdb"}),
        (Decimal("1.50"), {"stringValue": "1.50"}),
        (OrderedDict(a=1), {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": "1"}}]}}),
        ((1, "a"), {"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "a"}]}}),
    ],
    ids=repr,
)
def test_a_value_that_is_out_of_the_ordinary_is_kept_as_far_as_otlp_can_hold_it(
    value: object, expected: dict[str, Any]
) -> None:
    assert any_value(value) == expected


def test_a_value_that_holds_itself_or_cannot_be_written_loses_no_record() -> None:
    endless: list[Any] = []
    endless.append(endless)

    class Silent:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert json.dumps(any_value(endless)).count("arrayValue") == 32
    assert any_value(Silent()) == {"stringValue": "<Silent>"}


@pytest.mark.parametrize(
    "value",
    [
        {"scopeLogs": 1},
        {"scopeLogs": [{"logRecords": [{"traceId": "xyz"}]}]},
        {"scopeLogs": [{"logRecords": [{"attributes": ["a"]}]}]},
        {"scopeLogs": [{"logRecords": [{"timeUnixNano": "soon"}]}]},
        {"scopeLogs": [{"logRecords": [{"timeUnixNano": "-1"}]}]},
        {"scopeLogs": [{"logRecords": [{"severityNumber": "LOUD"}]}]},
        {"scopeLogs": [{"logRecords": [{"body": {"doubleValue": 10**400}}]}]},
        {"scopeLogs": [{"logRecords": [{"body": {"intValue": math.inf}}]}]},
        {"scopeLogs": [{"logRecords": [{"flags": 2**64}]}]},
        {"scopeLogs": [{"logRecords": ["record"]}]},
        {"resource": []},
    ],
    ids=repr,
)
def test_what_is_no_otlp_json_is_refused_and_said(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected OTLP-JSON of log records, got "):
        read_resource_logs(value)


def test_fields_of_a_later_otlp_are_passed_over() -> None:
    read = read_resource_logs({"novelty": 1, "scopeLogs": [{"logRecords": [{"eventName": "a", "novelty": {}}]}]})

    assert read.scope_logs[0].log_records[0].event_name == "a"


def test_a_request_without_a_list_of_resources_is_refused_and_said() -> None:
    with pytest.raises(ValueError, match=r"expected OTLP-JSON with a list, got int - at `\$.resourceLogs`"):
        read_request({"resourceLogs": 5})
