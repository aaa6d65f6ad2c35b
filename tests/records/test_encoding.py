"""Journal lines as LogRecords: the exact bytes, and the same as the official encoder makes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from otel_audit.event import AuditPrincipal, AuditResource, AuditSource, Outcome
from otel_audit.fast_line import Action, Draft, Principal, Resource, Source
from otel_audit.records import attributes as keys
from otel_audit.records.attributes import ATTRIBUTES, KEY_PATTERN, MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES, ValueType
from otel_audit.records.encoding import UnreadableLine, encoded_request, read_usual
from otel_audit.records.mapping import KEPT
from otel_audit.records.sdk import readable_records
from tests.examples import examples
from tests.journal_lines import HEADER, raw_line
from tests.record_lines import LINES, MANDATORY, a_failed_login, attributes_of, export_request, record_of, size_of
from tests.recording import line_of_receipt, recorder

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", LINES)
def test_a_line_becomes_exactly_the_golden_request(name: str) -> None:
    """To accept a wanted change, run once with OTEL_AUDIT_TESTS_WRITE_GOLDEN=1 and review the difference."""
    request = MessageToDict(export_request(HEADER, [LINES[name]()]))
    path = GOLDEN / f"{name}.json"
    if os.environ.get("OTEL_AUDIT_TESTS_WRITE_GOLDEN") == "1":
        path.write_text(json.dumps(request, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    assert request == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LINES)
def test_the_body_is_the_line_byte_for_byte(name: str) -> None:
    line = LINES[name]()

    assert record_of(line).body.string_value.encode() == line
    assert record_of(line + b"\n").body.string_value.encode() == line


def test_all_lines_of_a_request_share_one_resource_and_one_scope_and_keep_their_order() -> None:
    lines = [make() for make in LINES.values()]
    (resource_logs,) = export_request(HEADER, lines).resource_logs
    (scope_logs,) = resource_logs.scope_logs

    assert [record.body.string_value.encode() for record in scope_logs.log_records] == lines
    assert {pair.key for pair in resource_logs.resource.attributes} == HEADER["resource"].keys()


def test_building_a_record_twice_gives_equal_bytes() -> None:
    lines = [make() for make in LINES.values()]

    first, second = (export_request(HEADER, lines).SerializeToString(deterministic=True) for _ in range(2))

    assert first == second


def test_the_span_of_the_exporting_thread_never_gets_into_a_record() -> None:
    span = NonRecordingSpan(SpanContext(1, 2, False, TraceFlags(1)))
    with use_span(span):
        request = export_request(HEADER, [a_failed_login()])
        (record,) = readable_records(HEADER, [a_failed_login()])

    assert request.resource_logs[0].scope_logs[0].log_records[0].trace_id == b""
    assert (record.log_record.trace_id, record.log_record.span_id) == (0, 0)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = st.one_of(
    texts, st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False)
)
names = st.one_of(texts, st.sampled_from([row.key for row in ATTRIBUTES]), st.from_regex(KEY_PATTERN, fullmatch=True))
values = st.one_of(
    scalars, st.none(), st.lists(scalars, max_size=5), st.just([1] * 6000), st.just("ü" * 9000), st.just({"a": 1})
)
anything = st.recursive(
    st.one_of(st.none(), scalars),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with any of these fields, or anything else in its place."""
    return st.one_of(st.fixed_dictionaries({}, optional=fields), anything)


ids = st.one_of(st.sampled_from(["0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "0" * 32]), anything)
hostile_events = st.fixed_dictionaries(
    {
        "event_type": st.one_of(
            st.sampled_from(
                ["http.request", "mcp.tools.call", "mcp.resources.read", "mcp.prompts.get", "authz.decision"]
            ),
            texts,
        )
    },
    optional={
        "request_id": anything,
        "trace_id": ids,
        "span_id": ids,
        "trace_flags": st.one_of(st.integers(-1, 300), anything),
        "jsonrpc_id": anything,
        "principal": objects(
            username=values, roles=st.one_of(st.lists(texts, max_size=3), anything), auth_type=texts, kind=anything
        ),
        "source": objects(ip=texts, transport=texts, user_agent=values),
        "action": objects(mcp_tool=values, path=st.one_of(st.just("/a?b"), values), verb=texts, method=texts),
        "resource": objects(type=texts, name=values, actions=st.one_of(st.lists(texts, max_size=3), anything)),
        "outcome": st.one_of(st.sampled_from(list(Outcome)), anything),
        "duration_ms": anything,
        "detail": st.one_of(st.just("GET /x -> 200"), values),
        "event_id": anything,
        "status_code": st.one_of(st.integers(0, 999), anything),
        "attributes": st.one_of(st.dictionaries(names, values, max_size=12), anything),
    },
)
numbers = st.integers(0, 2**63 - 1)
hostile_lines = st.builds(raw_line, hostile_events, seq=numbers, time_ns=st.integers(-1, 2**64), observed_ns=numbers)
hostile_headers = st.one_of(
    st.just(HEADER),
    st.fixed_dictionaries(
        {},
        optional={
            "resource": st.one_of(st.dictionaries(texts, values, max_size=5), anything),
            "resource_schema_url": anything,
            "scope": objects(
                name=texts, version=texts, schema_url=texts, attributes=st.dictionaries(texts, values, max_size=3)
            ),
        },
    ),
)


@given(hostile_headers, st.lists(hostile_lines, min_size=1, max_size=4))
@settings(deadline=None)
def test_the_official_encoder_makes_an_equal_request(header: dict[str, Any], lines: list[bytes]) -> None:
    ours = export_request(header, lines)
    official = encode_logs(readable_records(header, lines))

    assert ours == official
    assert ExportLogsServiceRequest.FromString(ours.SerializeToString()) == official


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
usual_texts = plain | st.sampled_from(
    ["", "/a?b", "GET /a -> 200", "GET  -> 999", "GET -> 200", "a b -> c -> 404", "é"]
)
usual_lines = st.builds(
    raw_line,
    st.builds(
        lambda fields, span: msgspec.to_builtins(Draft(**fields, **span)),
        st.fixed_dictionaries(
            {
                "event_type": st.sampled_from(["http.request", "mcp.tools.call", "mcp.prompts.get", "own"]) | plain,
                "timestamp": plain,
                "request_id": usual_texts,
                "jsonrpc_id": plain | st.just(UNSET),
                "principal": st.builds(Principal, plain, st.lists(plain, max_size=3), plain, plain | st.just(UNSET)),
                "source": st.builds(Source, plain, plain, plain | st.just(UNSET)),
                "action": st.builds(Action, plain, usual_texts, st.sampled_from(["GET", "get", "", UNSET])),
                "resource": st.builds(Resource, plain, plain, st.lists(plain, max_size=3)),
                "outcome": st.sampled_from(list(Outcome)) | plain,
                "duration_ms": st.sampled_from([1.25, 12.0, 0, 7, 1e-5, 1e16, 2**60, -0.0, UNSET]) | st.floats(0, 1e6),
                "detail": usual_texts,
                "event_id": st.sampled_from(["0199aabb-0001-7000-8000-000000000001", ""]) | plain,
                "trace_flags": st.sampled_from([0, 1, 3, 255, 256, UNSET]),
                "status_code": st.sampled_from([200, 404, 599, 600, 99, UNSET]),
                "error_type": plain | st.just(UNSET),
                "parent_id": plain | st.just(UNSET),
                "attributes": st.sampled_from(
                    [UNSET, UNSET, {KEPT[0]: "/a/{b}"}, {KEPT[2]: "00-1", KEPT[1]: "é"}, {KEPT[0]: ""}, {"own": "b"}]
                ),
            }
        ),
        st.sampled_from(
            [
                {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"},
                {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "0" * 16},
                {"trace_id": "0" * 32, "span_id": "b7ad6b7169203331"},
                {"trace_id": UNSET, "span_id": UNSET},
            ]
        ),
    ),
    seq=st.sampled_from([1, 127, 128, 2**63 - 1, 2**63]),
    time_ns=st.sampled_from([1790000000123456789, 0, -1, 2**63 - 1, 2**63]),
    observed_ns=st.sampled_from([1790000000123456789, 2**63]),
)


def request_or_error(encode: Callable[[dict[str, Any], list[bytes]], Any], line: bytes) -> Any:
    try:
        return encode(HEADER, [line])
    except UnreadableLine as error:
        return str(error)


@given(usual_lines, st.data())
@examples(300)
def test_a_usual_line_makes_the_record_that_it_makes_when_read_as_any_other(line: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(line)))
    piece = data.draw(st.sampled_from([b"", b'"', b"\\", b",", b"}", b"0", b"a", b" ", b"\x01", b"\xff", "é".encode()]))
    cut = data.draw(st.integers(0, 2))

    for each in (line, line[:at] + piece + line[at + cut :]):
        ours = request_or_error(
            lambda header, lines: ExportLogsServiceRequest.FromString(encoded_request(header, lines)), each
        )
        assert ours == request_or_error(lambda header, lines: encode_logs(readable_records(header, lines)), each)


def test_other_threads_are_let_in_after_every_32_records() -> None:
    ways: list[None] = []

    encoded_request(HEADER, [a_failed_login()] * 97, give_way=lambda: ways.append(None))

    assert len(ways) == 3


def calls_to_encode(lines: list[bytes]) -> int:
    """Return how many functions encoding these lines calls, which no other load of the machine changes."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        encoded_request(HEADER, lines)
    finally:
        sys.setprofile(None)
    return calls


def test_what_a_user_does_for_the_first_time_costs_no_more_than_what_they_have_done_before() -> None:
    def did(user: str, tool: str) -> bytes:
        event = Draft(
            "mcp.tools.call", "2026-09-21T14:13:20.123Z", "1", UNSET, UNSET, UNSET, Principal(user, ["reader"], "oidc"),
            Source("10.0.0.7", "mcp-http"), Action(tool, ""), Resource("view", "stats", ["READ"]), "success", 1.5, "",
            "0199aabb-0001-7000-8000-000000000001", UNSET,
        )  # fmt: skip
        return raw_line(msgspec.to_builtins(event))

    encoded_request(HEADER, [did("alice", "get"), did("bruno", "put")])
    known = calls_to_encode([did("alice", "get"), did("bruno", "put")])

    assert calls_to_encode([did("alice", "put"), did("bruno", "get")]) == known


def test_what_the_helpers_write_is_a_usual_line(tmp_path: Path) -> None:
    principal = AuditPrincipal(username='zoë "z"', roles=["reader"], id="7", issuer="https://id.example")
    source, resource = AuditSource(ip="10.0.0.7", user_agent="curl/8"), AuditResource(type="view", actions=["READ"])
    with recorder(tmp_path) as audit:
        receipts = [
            audit.log_http_request(method="GET", path="/a?b", principal=principal, source=source, duration_ms=1.5),
            audit.log_mcp_call(tool_name="get", resource=resource, outcome="error", detail="no", jsonrpc_id="1"),
            audit.log_authn(outcome="denied", source=source),
            audit.log_authz(outcome="allow", principal=principal, resource=resource),
        ]

        assert all(read_usual(line_of_receipt(tmp_path, receipt)) for receipt in receipts)


@given(hostile_lines)
@settings(deadline=None)
def test_whatever_the_event_says_its_attributes_obey_the_rules(line: bytes) -> None:
    types = {ValueType.STRING: str, ValueType.INT: int, ValueType.DOUBLE: float, ValueType.STRINGS: list}
    table = {row.key: types[row.type] for row in ATTRIBUTES}
    found = attributes_of(line)

    assert found.keys() >= MANDATORY
    assert all(found[key] for key in MANDATORY)
    assert len(found) <= MAX_ATTRIBUTES
    assert size_of(found) <= MAX_ATTRIBUTES_BYTES
    assert all(KEY_PATTERN.fullmatch(key) for key in found)
    assert len({key.replace(".", "_") for key in found}) == len(found)
    assert all(type(value) is table[key] for key, value in found.items() if key in table)
    assert all(key in table or key.startswith(keys.FREE_PREFIX) or not key.startswith("audit.") for key in found)
    assert record_of(line).body.string_value.encode() == line
