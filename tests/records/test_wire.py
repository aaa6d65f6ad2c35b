"""Pieces of a request: put together, they are what the official messages encode."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit.records import wire

SCALARS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
)
VALUES = SCALARS | st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3)


def _record(heads: wire.Heads, values: dict[str, Any]) -> LogRecord:
    parts: list[bytes] = []
    heads.add_attributes(parts, values)
    return LogRecord.FromString(b"".join(parts))


def _official(values: dict[str, Any]) -> LogRecord:
    record = LogRecord()
    for key, value in values.items():
        held = record.attributes.add(key=key).value
        match value:
            case bool():
                held.bool_value = value
            case int():
                held.int_value = value
            case float():
                held.double_value = value
            case str():
                held.string_value = value
            case _:
                held.array_value.SetInParent()
                for item in value:
                    held.array_value.values.add(string_value=item)
    return record


@given(st.lists(st.dictionaries(st.text("abc._", min_size=1), VALUES, max_size=5), min_size=1, max_size=4))
def test_attributes_are_those_of_the_official_messages_also_when_their_shapes_are_known(
    records: list[dict[str, Any]],
) -> None:
    heads = wire.Heads()

    for values in records + records:
        assert _record(heads, values) == _official(values)


@pytest.mark.parametrize("length", [0, 1, 60, 127, 128, 16_383, 16_384, 70_000])
def test_a_text_of_any_length_is_whole_in_attribute_and_body(length: int) -> None:
    heads, text = wire.Heads(), "é" * length
    parts: list[bytes] = []

    heads.add_body(parts, text.encode())

    assert LogRecord.FromString(b"".join(parts)).body.string_value == text
    assert _record(heads, {"a.b": text}) == _official({"a.b": text})


@pytest.mark.parametrize("number", [0, 127, 128, 2**14 - 1, 2**14, 2**62, 2**63 - 1, -1, -(2**63)])
def test_a_number_is_the_same_at_every_length_of_its_encoding(number: int) -> None:
    assert _record(wire.Heads(), {"n": number}) == _official({"n": number})


@pytest.mark.parametrize("number", [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324])
def test_a_double_keeps_every_bit(number: float) -> None:
    kept = _record(wire.Heads(), {"d": number}).attributes[0].value.double_value

    assert wire.attributes({"d": kept}) == wire.attributes({"d": number})


def test_more_shapes_than_are_kept_are_encoded_all_the_same() -> None:
    heads = wire.Heads()

    assert all(_record(heads, {f"k{n}": "v"}) == _official({f"k{n}": "v"}) for n in range(9000))


@pytest.mark.parametrize("span_id", [b"\1" * 8, b""])
@pytest.mark.parametrize("flags", [0, 1, 255])
def test_a_span_is_whole_with_and_without_its_own_id(span_id: bytes, flags: int) -> None:
    trace_id = bytes(range(16))

    parts: list[bytes] = []

    wire.add_span(parts, trace_id, span_id, flags)

    assert LogRecord.FromString(b"".join(parts)) == LogRecord(trace_id=trace_id, span_id=span_id, flags=flags)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_both_times_are_whole(time_ns: int, observed_ns: int) -> None:
    assert LogRecord.FromString(wire.times(time_ns, observed_ns)) == LogRecord(
        time_unix_nano=time_ns, observed_time_unix_nano=observed_ns
    )


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_request_has_its_records_in_order_under_one_resource_and_one_scope(count: int) -> None:
    encode = wire.envelope(
        {"service.name": "shop"}, "https://r", {"name": "n", "version": "1", "schema_url": "https://s"}, {"a": 1}
    )
    records = [LogRecord(event_name=f"event {n}").SerializeToString() for n in range(count)]

    expected = ExportLogsServiceRequest()
    resource_logs = expected.resource_logs.add(schema_url="https://r")
    resource_logs.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope_logs = resource_logs.scope_logs.add(schema_url="https://s")
    scope_logs.scope.name, scope_logs.scope.version = "n", "1"
    scope_logs.scope.attributes.add(key="a").value.int_value = 1
    for n in range(count):
        scope_logs.log_records.add(event_name=f"event {n}")
    assert ExportLogsServiceRequest.FromString(encode(records)) == expected
