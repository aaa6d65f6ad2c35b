"""Log records of the plain OTel API: journalled as OTLP-JSON, and sent and shown as what they were."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otel_audit.event import AuditEvent
from otel_audit.records.sdk import ForeignEvents, readable_records
from tests.journal_lines import HEADER, line_of, raw_line
from tests.record_lines import export_request

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.booleans() | texts | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
# Not a null inside another value: earlier releases of the official encoder leave its AnyValue out.
bodies = st.none() | st.recursive(
    scalars | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)
attributes = st.dictionaries(texts.filter(bool), scalars | st.lists(texts, max_size=3), max_size=5)
spans = st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
names = texts.filter(bool) | st.none()

SHOP = Resource({"service.name": "shop", "zones": ["a", "b"]}, "https://example.test/resource")
SCOPES = (
    InstrumentationScope("orders", "1.0", "https://example.test/scope", {"layer": "web"}),
    InstrumentationScope("stock"),
)


@st.composite
def records(draw: st.DrawFn) -> ReadWriteLogRecord:
    span = draw(st.none() | spans)
    context = Context()
    if span is not None:
        known = SpanContext(span[0], span[1], False, TraceFlags(span[2]))
        context = set_span_in_context(NonRecordingSpan(known), context)
    record = LogRecord(
        timestamp=draw(st.none() | st.integers(1, 2**62)),
        observed_timestamp=draw(st.integers(1, 2**62)),
        context=context,
        severity_number=draw(st.none() | st.sampled_from(SeverityNumber)),
        severity_text=draw(names),
        body=draw(bodies),
        attributes=draw(attributes),
        event_name=draw(names),
    )
    return ReadWriteLogRecord(record, SHOP, draw(st.sampled_from(SCOPES)))


def readable(record: ReadWriteLogRecord) -> ReadableLogRecord:
    return ReadableLogRecord(record.log_record, record.resource or SHOP, record.instrumentation_scope)


def line(seq: int, record: ReadWriteLogRecord, events: ForeignEvents) -> bytes:
    made = events.event(record)
    return raw_line(json.loads(made.event), seq=seq, time_ns=made.time_ns, observed_ns=made.observed_ns)


def flat(request: ExportLogsServiceRequest) -> list[tuple[Any, ...]]:
    """Every record with what stands around it, without regard to what stands together."""
    return [
        (logs.resource, logs.schema_url, scope_logs.scope, scope_logs.schema_url, _official(record))
        for logs in request.resource_logs
        for scope_logs in logs.scope_logs
        for record in scope_logs.log_records
    ]


def _official(record: Any) -> Any:
    """The official encoder sends an empty body where there is none."""
    record.body.SetInParent()
    return record


@given(given_records=st.lists(records(), min_size=1, max_size=6))
def test_a_record_is_sent_as_the_official_exporter_would_have_sent_it(given_records: list[ReadWriteLogRecord]) -> None:
    events = ForeignEvents()
    lines = [line(seq, record, events) for seq, record in enumerate(given_records, 1)]

    sent = export_request(HEADER, lines)

    official = [flat(encode_logs([readable(record)]))[0] for record in given_records]
    assert flat(sent) == official


@given(given_records=st.lists(records(), min_size=1, max_size=6))
def test_an_exporter_of_the_sdk_gets_the_record_that_the_application_made(
    given_records: list[ReadWriteLogRecord],
) -> None:
    events = ForeignEvents()
    lines = [line(seq, record, events) for seq, record in enumerate(given_records, 1)]

    handed_over = readable_records(HEADER, lines)

    assert flat(encode_logs(handed_over)) == flat(encode_logs([readable(record) for record in given_records]))


def test_records_of_both_kinds_keep_their_order_and_neighbours_of_one_logger_stand_together() -> None:
    events = ForeignEvents()
    foreign = [
        ReadWriteLogRecord(LogRecord(timestamp=number, body=f"foreign {number}"), SHOP, SCOPES[number // 3])
        for number in range(1, 6)
    ]
    ours = line_of(AuditEvent(event_type="authn.success"))
    lines = [ours, *(line(seq, record, events) for seq, record in enumerate(foreign, 2)), ours]

    sent = export_request(HEADER, lines)

    shape = [[len(scope.log_records) for scope in logs.scope_logs] for logs in sent.resource_logs]
    assert shape == [[1], [2, 3], [1]]
    bodies_sent = [record[-1].body.string_value for record in flat(sent)]
    assert bodies_sent[1:-1] == [f"foreign {number}" for number in range(1, 6)]


class Silent:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_a_record_that_no_encoder_takes_is_journalled_all_the_same() -> None:
    record = LogRecord(
        timestamp=-5,
        observed_timestamp=-1,
        body={"nan": math.nan, "huge": 2**70, "half": "\ud800", "silent": Silent()},  # type: ignore[dict-item]
        event_name="half \ud800",
        severity_text="\ud800",
    )

    made = ForeignEvents().event(ReadWriteLogRecord(record, SHOP, SCOPES[0]))

    told = json.loads(made.event)
    assert told["event_type"] == "half \ufffd"
    assert made.observed_ns > 0
    (_, _, _, _, sent), *_ = flat(export_request(HEADER, [raw_line(told)]))
    values = {pair.key: pair.value for pair in sent.body.kvlist_value.values}
    assert math.isnan(values["nan"].double_value)
    assert values["huge"].string_value == str(2**70)
    assert values["half"].string_value == "\ufffd"
    assert values["silent"].string_value == "<Silent>"
