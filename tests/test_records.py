"""Journal lines as LogRecords: the exact bytes, and the same as the official encoder makes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from otel_audit import attributes as keys
from otel_audit.attributes import ATTRIBUTES, KEY_PATTERN, MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES, ValueType
from otel_audit.delivery.sdk_records import readable_record, readable_records
from otel_audit.derived import verdict_of
from otel_audit.event import (
    AuditAction,
    AuditEvent,
    AuditPrincipal,
    AuditResource,
    AuditSource,
    Outcome,
    PrincipalKind,
)
from otel_audit.records import UnreadableLine, export_request
from tests.journal_lines import HEADER, STREAM_ID, line_of, raw_line

GOLDEN = Path(__file__).parent / "golden" / "records"
MANDATORY = {keys.RECORD_ID, keys.ACTOR_ID, keys.ACTOR_TYPE, keys.ACTION, keys.OUTCOME}

SPAN: dict[str, Any] = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "trace_flags": 3}
ALICE = AuditPrincipal(username="alice", roles=["reader", "ops"], auth_type="oidc")


def a_denied_http_request() -> bytes:
    return line_of(
        AuditEvent(
            event_type="http.request",
            timestamp="2026-09-21T14:13:20.123Z",
            request_id="0b3c1d2e-0000-4000-8000-000000000001",
            principal=ALICE,
            source=AuditSource(ip="203.0.113.9", transport="http", user_agent="curl/8.5.0"),
            action=AuditAction(path="/get-online-features"),
            resource=AuditResource(type="feature_view", name="driver_stats", actions=["READ_ONLINE"]),
            outcome="denied",
            duration_ms=1.5,
            detail="POST /get-online-features -> 403",
            event_id="0199aabb-0001-7000-8000-000000000001",
            error_type="PermissionError",
            attributes={
                "http.route": "/get-online-features",
                "tenant": "blue",
                "Café Größe": 3,
                "audit.outcome": "success",
            },
            **SPAN,
        ),
        seq=2,
    )


def a_tool_call() -> bytes:
    return line_of(
        AuditEvent(
            event_type="mcp.tools.call",
            timestamp="2026-09-21T14:13:20.123Z",
            request_id="0b3c1d2e-0000-4000-8000-000000000002",
            jsonrpc_id="7",
            principal=AuditPrincipal(username="agent-7", auth_type="mtls", kind=PrincipalKind.SERVICE),
            source=AuditSource(ip="2001:db8::1", transport="mcp-http"),
            action=AuditAction(mcp_tool="get_online_features", path="/mcp"),
            outcome="success",
            duration_ms=12.25,
            event_id="0199aabb-0001-7000-8000-000000000002",
            attributes={"rows": 12, "cached": False, "ratio": 0.5, "views": ["a", "b"], "mixed": [1, "b", True]},
            **SPAN,
        ),
        seq=3,
    )


def a_failed_login() -> bytes:
    return line_of(
        AuditEvent(
            event_type="authn.failure",
            timestamp="2026-09-21T14:13:20.123Z",
            source=AuditSource(ip="203.0.113.9"),
            outcome="failure",
            detail='bad signature for "mallory" \u2028 ü \u0000',
            event_id="0199aabb-0001-7000-8000-000000000003",
        ),
        seq=4,
    )


def a_refused_permission() -> bytes:
    return line_of(
        AuditEvent(
            event_type="authz.decision",
            timestamp="2026-09-21T14:13:20.123Z",
            principal=ALICE,
            resource=AuditResource(type="feature_view", name="driver_stats", actions=["WRITE_ONLINE"]),
            outcome="deny",
            detail="no permission",
            event_id="0199aabb-0001-7000-8000-000000000004",
            parent_id="0199aabb-0001-7000-8000-000000000001",
        ),
        seq=5,
    )


def a_segment_header() -> bytes:
    return raw_line(
        {
            "system": "segment",
            "event_type": "audit.segment",
            "timestamp": "2026-09-21T14:13:20.123Z",
            "request_id": "",
            "principal": {"username": "otel_audit", "roles": [], "auth_type": "", "kind": "system"},
            "source": {"ip": "", "transport": ""},
            "action": {"mcp_tool": "", "path": ""},
            "resource": {"type": "", "name": "", "actions": []},
            "outcome": "success",
            "detail": "",
            "event_id": "0199aabb-0001-7000-8000-000000000000",
            "segment": HEADER,
        },
        seq=1,
    )


LINES = {
    "http_denied": a_denied_http_request,
    "mcp_success": a_tool_call,
    "authn_failure": a_failed_login,
    "authz_deny": a_refused_permission,
    "system_segment": a_segment_header,
}


def record_of(line: bytes, header: dict[str, Any] = HEADER) -> LogRecord:
    (resource_logs,) = export_request(header, [line]).resource_logs
    (scope_logs,) = resource_logs.scope_logs
    (record,) = scope_logs.log_records
    return record


def value_of(value: AnyValue) -> Any:
    if value.WhichOneof("value") == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")


def attributes_of(line: bytes, header: dict[str, Any] = HEADER) -> dict[str, Any]:
    pairs = [(pair.key, value_of(pair.value)) for pair in record_of(line, header).attributes]
    found = dict(pairs)
    assert len(found) == len(pairs), "a key stands twice"
    return found


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
        request, record = export_request(HEADER, [a_failed_login()]), readable_record(HEADER, a_failed_login())

    assert request.resource_logs[0].scope_logs[0].log_records[0].trace_id == b""
    assert (record.log_record.trace_id, record.log_record.span_id) == (0, 0)


@pytest.mark.parametrize(
    ("word", "number", "text", "draft", "result"),
    [
        ("success", 9, "INFO", "success", Outcome.SUCCESS),
        ("allow", 9, "INFO", "success", Outcome.SUCCESS),
        ("", 9, "INFO", "unknown", Outcome.UNKNOWN),
        ("unknown", 9, "INFO", "unknown", Outcome.UNKNOWN),
        ("sucess", 9, "INFO", "unknown", Outcome.UNKNOWN),
        (["success"], 9, "INFO", "unknown", Outcome.UNKNOWN),
        ("failure", 13, "WARN", "failure", Outcome.FAILURE),
        ("denied", 13, "WARN", "failure", Outcome.DENIED),
        ("deny", 13, "WARN", "failure", Outcome.DENIED),
        ("cancelled", 13, "WARN", "failure", Outcome.CANCELLED),
        ("error", 17, "ERROR", "failure", Outcome.ERROR),
        ("mcp_error", 17, "ERROR", "failure", Outcome.ERROR),
    ],
)
def test_the_stored_word_decides_severity_and_outcome(
    word: object, number: int, text: str, draft: str, result: Outcome
) -> None:
    line = raw_line({"event_type": "x", "outcome": word})
    record, found = record_of(line), attributes_of(line)

    assert (record.severity_number, record.severity_text) == (number, text)
    assert (found[keys.OUTCOME], found[keys.RESULT]) == (draft, result.value)


def test_every_outcome_has_a_verdict() -> None:
    assert [verdict_of(outcome).result for outcome in Outcome] == list(Outcome)


@pytest.mark.parametrize(
    ("event", "action"),
    [
        ({"event_type": "http.request", "action": {"method": "GET"}}, "READ"),
        ({"event_type": "http.request", "action": {"method": "HEAD"}}, "READ"),
        ({"event_type": "http.request", "action": {"method": "OPTIONS"}}, "READ"),
        ({"event_type": "http.request", "action": {"method": "POST"}}, "CREATE"),
        ({"event_type": "http.request", "action": {"method": "PUT"}}, "UPDATE"),
        ({"event_type": "http.request", "action": {"method": "PATCH"}}, "UPDATE"),
        ({"event_type": "http.request", "detail": "DELETE /x -> 204"}, "DELETE"),
        ({"event_type": "http.request", "action": {"method": "BREW"}}, "EXECUTE"),
        ({"event_type": "http.request", "action": {"method": "GET", "verb": "EXPORT"}}, "EXPORT"),
        ({"event_type": "mcp.tools.call"}, "EXECUTE"),
        ({"event_type": "mcp.resources.read"}, "READ"),
        ({"event_type": "mcp.prompts.get"}, "READ"),
        ({"event_type": "authn.success"}, "LOGIN"),
        ({"event_type": "authn.failure"}, "LOGIN"),
        ({"event_type": "authz.decision"}, "EXECUTE"),
        ({"event_type": "authz.decision", "resource": {"actions": ["DELETE"]}}, "DELETE"),
        ({"event_type": "authz.decision", "resource": {"actions": ["READ", "DELETE"]}}, "EXECUTE"),
        ({"event_type": "invoice.paid"}, "EXECUTE"),
        ({"event_type": "invoice.paid", "action": {"verb": "APPROVE"}}, "APPROVE"),
        ({"event_type": "audit.segment"}, "EXECUTE"),
    ],
)
def test_the_action_is_the_verb_or_follows_from_the_type(event: dict[str, Any], action: str) -> None:
    assert attributes_of(raw_line(event))[keys.ACTION] == action


@pytest.mark.parametrize(
    ("principal", "actor"),
    [
        ({}, ("anonymous", "system")),
        ({"username": "alice"}, ("alice", "user")),
        ({"username": "cron", "kind": "service"}, ("cron", "service")),
        ({"username": "", "kind": "user"}, ("anonymous", "user")),
        ({"username": "alice", "kind": "robot"}, ("alice", "user")),
        ({"username": ["alice"], "kind": {}}, ("anonymous", "system")),
        ("alice", ("anonymous", "system")),
    ],
)
def test_there_is_always_an_actor(principal: object, actor: tuple[str, str]) -> None:
    found = attributes_of(raw_line({"event_type": "x", "principal": principal}))

    assert (found[keys.ACTOR_ID], found[keys.ACTOR_TYPE]) == actor


def http(event: dict[str, Any]) -> tuple[Any, Any, Any]:
    found = attributes_of(raw_line({"event_type": "http.request", **event}))
    return found.get(keys.HTTP_METHOD), found.get(keys.URL_PATH), found.get(keys.HTTP_STATUS_CODE)


def test_what_a_feast_event_says_only_in_its_detail_becomes_attributes() -> None:
    assert http({"action": {"path": "/a b"}, "detail": "POST /a b -> 403"}) == ("POST", "/a b", 403)
    assert http({"detail": "GET /x -> y -> 200"}) == ("GET", "/x -> y", 200)


def test_explicit_fields_go_before_the_detail() -> None:
    event = {"action": {"method": "PUT", "path": "/b"}, "status_code": 409, "detail": "POST /a -> 403"}

    assert http(event) == ("PUT", "/b", 409)


@pytest.mark.parametrize(
    "detail", ["", "POST", "-> 200", "POST /x", "POST /x -> ok", "POST /x -> ２００", "POST /x -> 999", 7]
)
def test_a_detail_in_another_form_says_no_status(detail: object) -> None:
    assert http({"detail": detail})[2] is None


def test_the_detail_of_another_event_is_never_taken_for_a_request() -> None:
    found = attributes_of(raw_line({"event_type": "invoice.paid", "detail": "POST /x -> 200"}))

    assert not found.keys() & {keys.HTTP_METHOD, keys.URL_PATH, keys.HTTP_STATUS_CODE}


def test_a_query_is_not_part_of_the_path() -> None:
    assert http({"action": {"path": "/x?token=abc"}})[1] == "/x"


def test_an_unknown_method_is_other_and_kept_beside() -> None:
    found = attributes_of(raw_line({"event_type": "http.request", "action": {"method": "BREW"}}))

    assert (found[keys.HTTP_METHOD], found[keys.HTTP_METHOD_ORIGINAL]) == ("_OTHER", "BREW")


def test_mcp_events_say_their_method_and_what_they_were_about() -> None:
    tool = attributes_of(raw_line({"event_type": "mcp.tools.call", "action": {"mcp_tool": "t"}}))
    named = attributes_of(raw_line({"event_type": "mcp.resources.read", "resource": {"name": "file:///a"}}))
    by_path = attributes_of(raw_line({"event_type": "mcp.resources.read", "action": {"path": "file:///b"}}))
    prompt = attributes_of(raw_line({"event_type": "mcp.prompts.get", "resource": {"name": "greet"}}))

    assert (tool[keys.MCP_METHOD], tool["gen_ai.tool.name"]) == ("tools/call", "t")
    assert (named[keys.MCP_METHOD], named[keys.MCP_RESOURCE_URI]) == ("resources/read", "file:///a")
    assert by_path[keys.MCP_RESOURCE_URI] == "file:///b"
    assert keys.URL_PATH not in by_path
    assert (prompt[keys.MCP_METHOD], prompt[keys.PROMPT_NAME]) == ("prompts/get", "greet")


def test_a_line_without_an_id_is_known_by_its_place() -> None:
    assert attributes_of(raw_line({"event_type": "x"}, seq=9))[keys.RECORD_ID] == f"{STREAM_ID}:9"


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

    assert request == encode_logs([readable_record(header, a_failed_login())])
    assert not request.resource_logs[0].resource.attributes


def test_own_attributes_keep_their_name_unless_it_would_pose_as_another_fact() -> None:
    given = {
        "tenant": "blue",
        "http.route": "/items/{id}",
        "audit.outcome": "success",
        "audit_result": "success",
        "audit.verified": True,
        "service_name": "other",
        "trace.id": "other",
        "client_address": "10.0.0.1",
        "X-Forwarded-For": "10.0.0.2",
        "a.b": 1,
        "a_b": 2,
        "A.B": 3,
    }
    line = raw_line({"event_type": "x", "outcome": "error", "attributes": given})
    found = attributes_of(line)

    assert (found["tenant"], found["http.route"], found["a.b"]) == ("blue", "/items/{id}", 1)
    assert (found["audit.outcome"], found["audit.attribute.audit.outcome"]) == ("failure", "success")
    assert found["audit.attribute.audit_result"] == "success"
    assert found["audit.attribute.audit.verified"] is True
    assert found["audit.attribute.service_name"] == "other"
    assert found["audit.attribute.trace.id"] == "other"
    assert found["audit.attribute.client_address"] == "10.0.0.1"
    assert found["audit.attribute.x_forwarded_for"] == "10.0.0.2"
    assert found["audit.attribute.a_b"] == 2
    assert record_of(line).dropped_attributes_count == 1  # A.B would overwrite a_b


def test_lists_of_mixed_types_become_lists_of_one_type() -> None:
    found = attributes_of(raw_line({"event_type": "x", "attributes": {"n": [1, 2.5], "m": [1, "b", True], "e": []}}))

    assert (found["n"], found["m"], found["e"]) == ([1.0, 2.5], ["1", "b", "true"], [])


def test_what_does_not_fit_is_the_callers_last_and_is_counted() -> None:
    line = raw_line({"event_type": "x", "attributes": {f"k{n:03}": n for n in range(100)}})
    found = attributes_of(line)
    kept = [key for key in found if key.startswith("k")]

    assert len(found) == MAX_ATTRIBUTES
    assert kept == [f"k{n:03}" for n in range(len(kept))]
    assert record_of(line).dropped_attributes_count == 100 - len(kept)


def test_a_huge_event_keeps_its_mandatory_attributes_within_the_limit() -> None:
    huge = "é" * 20_000
    line = raw_line(
        {
            "event_type": "x",
            "event_id": huge,
            "principal": {"username": huge, "roles": [huge]},
            "action": {"verb": huge},
            "resource": {"name": huge, "type": huge},
            "detail": huge,
            "request_id": huge,
        }
    )
    found = attributes_of(line)

    assert found.keys() >= MANDATORY
    assert found[keys.ACTOR_ID].endswith("…")
    assert size_of(found) <= MAX_ATTRIBUTES_BYTES
    assert record_of(line).dropped_attributes_count > 0
    assert record_of(line).body.string_value.encode() == line


def size_of(found: dict[str, Any]) -> int:
    def size(value: Any) -> int:
        if isinstance(value, list):
            return sum(map(size, value))
        return len(value.encode()) if isinstance(value, str) else 8

    return sum(len(key.encode()) + size(value) for key, value in found.items())


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
