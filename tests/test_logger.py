"""The audit logger: what it fills in, what it leaves out, and that nothing a caller passes costs the event."""

from __future__ import annotations

import asyncio
import enum
import errno
import json
import os
import resource as process_resource
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource, Outcome, PrincipalKind
from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.policy import read_policy
from otel_audit.settings import OnLoss
from otel_audit.sinks import AuditSink, JsonlEvent
from tests.chain_check import application_events, read_streams
from tests.recording import a_trail, event_of, line_of_receipt, recorder, without_place

NOW_NS = 1_790_000_000_123_456_789
REQUEST_ID = "11111111-2222-4333-8444-555555555555"
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Recorder(AuditLogger):
    """With ids that are known beforehand."""

    @staticmethod
    def new_request_id() -> str:
        return REQUEST_ID


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path) as logger:
        yield logger


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditLogger]]:
    """One journal for all examples of a property."""
    directory = tmp_path_factory.mktemp("many")
    logger = Recorder(a_trail(directory, segment_bytes=1 << 20), clock=lambda: NOW_NS)
    yield directory, logger
    logger.close()


def span_context(*, flags: int = 1) -> trace.SpanContext:
    return trace.SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), False, trace.TraceFlags(flags))


def in_span(*, flags: int = 1) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(span_context(flags=flags)), Context())


# --- a helper writes what log() writes ---------------------------------------------------------------------------

SECRETS = ["Bearer abcdefghij1234567890XYZ", "password=hunter2hunter2", "https://ann:s3cretpw@host/x", "x" * 5000]
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "success", "failure", "allow", '<&>"\\/', "a\u2028b", "\x00\x7f", *SECRETS]),
)
durations = (
    st.none()
    | st.floats()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([True, "1.5", 1e15, 1e16, 1e-5, 1e-7, -0.0])
)
tools = st.sampled_from(["get_online_features", "list_projects", ""]) | words
actions = st.lists(st.sampled_from(["READ_ONLINE", "WRITE_ONLINE"]) | words, max_size=3)


def parts(model: type, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.builds(model, **fields)


CALLS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "principal": {
        "principal": parts(
            AuditPrincipal,
            username=words,
            roles=st.lists(words, max_size=3) | st.just(["r"] * 100),
            auth_type=words,
            kind=st.sampled_from([None, *PrincipalKind]),
            on_behalf_of=st.none() | words,
        )
    },
    "source": {"source": parts(AuditSource, ip=words, transport=words, user_agent=st.none() | words)},
    "resource": {"resource": parts(AuditResource, type=words, name=words, actions=actions)},
}
WHO, WHERE, WHAT = CALLS["principal"], CALLS["source"], CALLS["resource"]
TIMED: dict[str, st.SearchStrategy[Any]] = {**WHO, **WHERE, **WHAT, "outcome": words, "duration_ms": durations}
calls = st.one_of(
    st.tuples(
        st.just("log_mcp_call"),
        st.fixed_dictionaries(
            {"tool_name": tools},
            optional={**TIMED, "request_id": words, "path": words, "detail": words, "jsonrpc_id": words},
        ),
    ),
    st.tuples(
        st.just("log_http_request"),
        st.fixed_dictionaries(
            {"method": words, "path": words}, optional={**TIMED, "request_id": words, "status_code": st.integers()}
        ),
    ),
    st.tuples(
        st.just("log_authn"),
        st.fixed_dictionaries({"outcome": words}, optional={**WHO, **WHERE, "request_id": words, "detail": words}),
    ),
    st.tuples(
        st.just("log_authz"),
        st.fixed_dictionaries({"outcome": words}, optional={**WHO, **WHAT, "request_id": words, "detail": words}),
    ),
)


def event_like(method: str, arguments: Mapping[str, Any]) -> AuditEvent:
    """The event that a helper stands for, in the words of its documentation."""
    defaults = {"log_mcp_call": "mcp-http", "log_http_request": "http"}
    fields: dict[str, Any] = {
        "request_id": arguments.get("request_id", ""),
        "principal": arguments.get("principal") or AuditPrincipal(),
        "source": arguments.get("source") or AuditSource(transport=defaults.get(method, "")),
        "resource": arguments.get("resource") or AuditResource(),
        "outcome": arguments.get("outcome", "success"),
        "duration_ms": arguments.get("duration_ms"),
        "detail": arguments.get("detail", ""),
    }
    match method:
        case "log_mcp_call":
            action = AuditAction(mcp_tool=arguments["tool_name"], path=arguments.get("path", ""))
            fields |= {"event_type": "mcp.tools.call", "action": action, "jsonrpc_id": arguments.get("jsonrpc_id")}
        case "log_http_request":
            verb, path = arguments["method"], arguments["path"]
            fields |= {"event_type": "http.request", "action": AuditAction(path=path)}
            fields["detail"] = f"{verb} {path} -> {arguments.get('status_code', 200)}"
        case "log_authn":
            fields["event_type"] = "authn.success" if arguments["outcome"] == "success" else "authn.failure"
        case "log_authz":
            fields["event_type"] = "authz.decision"
    return AuditEvent(**fields)


@settings(max_examples=400, deadline=None)
@given(call=calls, flags=st.sampled_from([None, 0, 1]))
def test_a_helper_writes_the_line_that_log_writes_for_the_same_event(
    many: tuple[Path, AuditLogger], call: tuple[str, dict[str, Any]], flags: int | None
) -> None:
    directory, logger = many
    method, arguments = call
    context = Context() if flags is None else in_span(flags=flags)

    of_helper = line_of_receipt(directory, getattr(logger, method)(**arguments, context=context))
    of_log = line_of_receipt(directory, logger.log(event_like(method, arguments), context=context))

    assert without_place(of_helper) == without_place(of_log)
    assert json.loads(of_helper)["event_id"] != json.loads(of_log)["event_id"]


POLICIES = """\
rules:
  - {type: authn.*, outcome: failure, keep: false}
  - {type: http.request, outcome: success, level: metadata}
  - {tool: get_*, actor: "*a*", level: none}
  - {route: /a*, outcome: denied, level: metadata}
"""


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditLogger]]:
    """A journal under a policy, for all examples of a property."""
    directory = tmp_path_factory.mktemp("chosen")
    (directory / "policy.yaml").write_text(POLICIES)
    policy = read_policy(directory / "policy.yaml")
    trail = a_trail(directory / "journal", segment_bytes=1 << 20)
    logger = Recorder(trail, clock=lambda: NOW_NS, policy=policy, log_successful_reads=False)
    yield directory / "journal", logger
    logger.close()


@settings(max_examples=300, deadline=None)
@given(call=calls, path=st.sampled_from(["/a", "/a/7?q", "/b"]), outcome=st.sampled_from(["", "success", "deny"]))
def test_a_policy_chooses_the_event_of_a_helper_as_it_chooses_that_of_log(
    chosen: tuple[Path, AuditLogger], call: tuple[str, dict[str, Any]], path: str, outcome: str
) -> None:
    directory, logger = chosen
    method, arguments = call
    arguments |= {name: value for name, value in {"path": path, "outcome": outcome}.items() if name in arguments}

    by_helper = getattr(logger, method)(**arguments, context=Context())
    filtered = logger.stats().filtered
    by_log = logger.log(event_like(method, arguments), context=Context())

    assert (by_helper is None) == (by_log is None)
    if by_log is None:
        assert logger.stats().filtered == filtered + 1
    else:
        assert without_place(line_of_receipt(directory, by_helper)) == without_place(line_of_receipt(directory, by_log))


# --- what is filled in -------------------------------------------------------------------------------------------


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


def test_the_callers_event_is_never_changed(audit: AuditLogger) -> None:
    event = AuditEvent(
        event_type="x",
        detail=SECRETS[0],
        principal=AuditPrincipal(roles=["password=hunter2hunter2"]),
        attributes={"password": "hunter2hunter2", "long": ["x" * 5000]},
    )
    before = event.model_copy(deep=True)

    with trace.use_span(trace.NonRecordingSpan(span_context())):
        audit.log(event)

    assert event == before


def test_the_arguments_of_a_helper_are_never_changed(audit: AuditLogger) -> None:
    principal = AuditPrincipal(username=SECRETS[0], roles=["x" * 5000])
    before = principal.model_copy(deep=True)

    audit.log_authn(outcome="success", principal=principal)

    assert principal == before


# --- the span ----------------------------------------------------------------------------------------------------


def ids_of(event: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return event.get("trace_id"), event.get("span_id"), event.get("trace_flags")


def test_the_active_span_is_recorded_with_its_flags(audit: AuditLogger, tmp_path: Path) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("work") as span:
        receipts = [audit.log(AuditEvent(event_type="x")), audit.log_authn(outcome="success")]
    ids = span.get_span_context()

    assert ids.trace_flags.sampled
    for receipt in receipts:
        assert ids_of(event_of(tmp_path, receipt)) == (
            f"{ids.trace_id:032x}",
            f"{ids.span_id:016x}",
            int(ids.trace_flags),
        )


def test_a_span_that_is_not_sampled_is_recorded_too(audit: AuditLogger, tmp_path: Path) -> None:
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("t").start_as_current_span("work") as span:
        line = event_of(tmp_path, audit.log_authn(outcome="success"))
    ids = span.get_span_context()

    assert not ids.trace_flags.sampled
    assert ids_of(line) == (f"{ids.trace_id:032x}", f"{ids.span_id:016x}", int(ids.trace_flags))


def test_without_a_span_there_are_no_ids(audit: AuditLogger, tmp_path: Path) -> None:
    assert ids_of(event_of(tmp_path, audit.log_authn(outcome="success"))) == (None, None, None)


def test_a_span_that_is_not_valid_is_none(audit: AuditLogger, tmp_path: Path) -> None:
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(0, 7, False))):
        assert ids_of(event_of(tmp_path, audit.log(AuditEvent(event_type="x")))) == (None, None, None)


def test_a_context_that_is_passed_in_comes_before_the_active_span(audit: AuditLogger, tmp_path: Path) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("other"):
        receipts = [
            audit.log(AuditEvent(event_type="x"), context=in_span(flags=0)),
            audit.log_authz(outcome="deny", context=in_span(flags=0)),
        ]
        without = audit.log(AuditEvent(event_type="x"), context=Context())

    assert [ids_of(event_of(tmp_path, receipt)) for receipt in receipts] == [(TRACE_ID, SPAN_ID, 0)] * 2
    assert ids_of(event_of(tmp_path, without)) == (None, None, None)


def test_a_trace_id_that_is_set_already_is_kept_and_nothing_of_the_active_span_is_mixed_in(
    audit: AuditLogger, tmp_path: Path
) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("work"):
        line = event_of(tmp_path, audit.log(AuditEvent(event_type="x", trace_id="ab" * 16)))

    assert ids_of(line) == ("ab" * 16, None, None)


def test_the_keys_of_a_line_are_in_the_order_of_the_model(audit: AuditLogger, tmp_path: Path) -> None:
    event = AuditEvent(event_type="x", span_id=SPAN_ID, jsonrpc_id="1", reason="r", attributes={"a": 1}, trace_flags=1)

    keys = [key for key in event_of(tmp_path, audit.log(event)) if key in AuditEvent.model_fields]

    assert keys == [name for name in AuditEvent.model_fields if name in keys]


# --- what is left out --------------------------------------------------------------------------------------------


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


# --- nothing a caller passes costs the event ---------------------------------------------------------------------


class Raising:
    """Every way to look at it raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not equal to anything")


class Text(str):
    """A text that cannot be asked anything."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not equal to anything")

    __hash__ = str.__hash__


class Fading:
    """A list that breaks off."""

    def __iter__(self) -> Iterator[str]:
        yield "a"
        raise RuntimeError("no more")


def ascii_type(value: object) -> str:
    return type(value).__name__


def endless() -> dict[str, Any]:
    holder: dict[str, Any] = {}
    holder["self"] = holder
    return holder


HOSTILE: list[Any] = [
    None,
    7,
    2**100,
    10**5000,
    float("nan"),
    float("inf"),
    b"\xff",
    "\ud800",
    "\ud800" * 3000,
    Text("text"),
    iter(Fading()),
    object(),
    Raising(),
    [Raising()],
    ["\ud800"],
    {"a": Raising()},
    endless(),
    [[[[[[[[1]]]]]]]],
    {1: 2},
    {"\ud800": "\ud800"},
    datetime(2026, 1, 1, tzinfo=UTC),
]
hostile = pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)


@hostile
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    ("method", "required"),
    [
        ("log_mcp_call", {"tool_name": "t"}),
        ("log_http_request", {"method": "GET", "path": "/"}),
        ("log_authn", {"outcome": "success"}),
        ("log_authz", {"outcome": "success"}),
    ],
)
def test_a_hostile_argument_of_a_helper_does_not_cost_the_event(
    tmp_path: Path, method: str, required: dict[str, Any], value: Any, reads: bool
) -> None:
    names = [name for name in AuditLogger.__dict__[method].__kwdefaults__ if name != "context"]
    with recorder(tmp_path, log_successful_reads=reads) as audit:
        receipts = [getattr(audit, method)(**{**required, name: value}) for name in [*names, *required]]
        lines = [json.loads(line_of_receipt(tmp_path, receipt)) for receipt in receipts]

    assert len(application_events(tmp_path)) == len(lines) == len({line["event_id"] for line in lines})
    assert_are_of_the_model(lines)


@hostile
@pytest.mark.parametrize("reads", [True, False])
def test_a_hostile_value_assigned_to_a_field_does_not_cost_the_event(tmp_path: Path, value: Any, reads: bool) -> None:
    with recorder(tmp_path, log_successful_reads=reads) as audit:
        receipts = []
        for name in AuditEvent.model_fields:
            event = AuditEvent(event_type="http.request", outcome="success")
            setattr(event, name, value)
            receipts.append(audit.log(event))
        for part, name in [("principal", "roles"), ("resource", "actions"), ("action", "mcp_tool"), ("source", "ip")]:
            event = AuditEvent(event_type="http.request", outcome="success")
            setattr(getattr(event, part), name, value)
            receipts.append(audit.log(event))
        lines = [json.loads(line_of_receipt(tmp_path, receipt)) for receipt in receipts]

    assert len(application_events(tmp_path)) == len(lines)
    assert_are_of_the_model(lines)


def assert_are_of_the_model(lines: list[dict[str, Any]]) -> None:
    """Whoever reads a line finds the types that docs/schema.md says."""
    for line in lines:
        AuditEvent.model_validate(line)


@hostile
def test_a_hostile_attribute_does_not_cost_the_event(audit: AuditLogger, tmp_path: Path, value: Any) -> None:
    event = AuditEvent(event_type="x", attributes={"kept": 1})
    assert event.attributes is not None
    event.attributes["hostile"] = value

    line = event_of(tmp_path, audit.log(event))

    assert (line["event_type"], line["attributes"]["kept"]) == ("x", 1)


@hostile
def test_what_is_no_event_at_all_is_recorded_as_that(audit: AuditLogger, tmp_path: Path, value: Any) -> None:
    line = event_of(tmp_path, audit.log(value))

    assert line["event_type"] == "unknown"


def test_a_hostile_object_in_a_helper_leaves_the_other_facts(audit: AuditLogger, tmp_path: Path) -> None:
    bad: Any = Raising()

    line = event_of(tmp_path, audit.log_http_request(method=bad, path="/x", principal=AuditPrincipal(username="ann")))

    assert (line["principal"]["username"], line["action"]["path"]) == ("ann", "/x")


def test_an_event_without_a_field_that_the_model_has_is_recorded(audit: AuditLogger, tmp_path: Path) -> None:
    line = event_of(tmp_path, audit.log(AuditEvent.model_construct(outcome="denied")))

    assert (line["event_type"], line["outcome"]) == ("unknown", "denied")


@pytest.mark.parametrize("value", [7, "text", [1, 2], float("nan")], ids=str)
def test_attributes_that_are_no_mapping_are_kept_as_one(audit: AuditLogger, tmp_path: Path, value: Any) -> None:
    line = event_of(tmp_path, audit.log(AuditEvent.model_construct(event_type="x", attributes=value)))

    assert line["attributes"] == {"value": "NaN" if value != value else value}


class Word(enum.Enum):
    SUCCESS = "success"


@pytest.mark.parametrize("outcome", [Word.SUCCESS, Outcome.SUCCESS, Text("success")], ids=ascii_type)
def test_an_outcome_may_be_a_member_of_an_enum(audit: AuditLogger, tmp_path: Path, outcome: Any) -> None:
    line = event_of(tmp_path, audit.log_authn(outcome=outcome))

    assert (line["event_type"], line["outcome"]) == ("authn.success", "success")


# --- secrets -----------------------------------------------------------------------------------------------------


def test_a_secret_in_an_event_is_removed_and_its_path_is_listed(audit: AuditLogger, tmp_path: Path) -> None:
    event = AuditEvent(
        event_type="x",
        detail="Authorization: Bearer abcdefghij1234567890XYZ",
        principal=AuditPrincipal(username="ann", roles=["token=abcdefghij1234567890"]),
        attributes={"password": "hunter2hunter2", "count": 1},
    )

    line = line_of_receipt(tmp_path, audit.log(event))

    assert [secret for secret in (b"abcdefghij", b"hunter2") if secret in line] == []
    assert json.loads(line)["redacted"] == ["$.attributes.password", "$.detail", "$.principal.roles[0]"]


@pytest.mark.parametrize(
    ("method", "arguments", "path"),
    [
        ("log_mcp_call", {"tool_name": "t", "detail": SECRETS[0]}, "$.detail"),
        ("log_mcp_call", {"tool_name": SECRETS[1]}, "$.action.mcp_tool"),
        ("log_mcp_call", {"tool_name": "t", "jsonrpc_id": SECRETS[0]}, "$.jsonrpc_id"),
        ("log_http_request", {"method": "GET", "path": "/?password=hunter2hunter2"}, "$.action.path"),
        ("log_authn", {"outcome": "failure", "request_id": SECRETS[0]}, "$.request_id"),
        ("log_authn", {"outcome": SECRETS[0]}, "$.outcome"),
        ("log_authn", {"outcome": "x", "source": AuditSource(user_agent=SECRETS[2])}, "$.source.user_agent"),
        (
            "log_authz",
            {"outcome": "deny", "principal": AuditPrincipal(on_behalf_of=SECRETS[0])},
            "$.principal.on_behalf_of",
        ),
        ("log_authz", {"outcome": "deny", "resource": AuditResource(actions=[SECRETS[1]])}, "$.resource.actions[0]"),
    ],
)
def test_a_secret_in_any_argument_of_a_helper_is_removed(
    audit: AuditLogger, tmp_path: Path, method: str, arguments: dict[str, Any], path: str
) -> None:
    line = line_of_receipt(tmp_path, getattr(audit, method)(**arguments))

    assert [secret for secret in (b"abcdefghij", b"hunter2", b"s3cretpw") if secret in line] == []
    assert path in json.loads(line)["redacted"]


def test_a_nested_attribute_is_kept_as_text_without_its_secret(audit: AuditLogger, tmp_path: Path) -> None:
    given_fields: Any = {"event_type": "x", "attributes": {"user": {"name": "ann", "password": "hunter2hunter2"}}}

    class Foreign:
        def model_dump(self) -> dict[str, Any]:
            return dict(given_fields)

    line = line_of_receipt(tmp_path, audit.log(Foreign()))

    assert b"hunter2" not in line
    assert "ann" in json.loads(line)["attributes"]["user"]


# --- losses ------------------------------------------------------------------------------------------------------


class Refusing(AuditSink):
    """A destination that fails as it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = OSError(errno.EIO, "broken")
        self.lines: list[str] = []

    def emit(self, event: JsonlEvent) -> None:
        if self.error is not None:
            raise self.error
        self.lines.append(event.to_jsonl())


def test_a_loss_is_counted_and_said_at_most_once_a_minute_and_the_application_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    sink = Refusing()
    audit = AuditLogger(sink, notices=Notices(clock=lambda: now[0]))

    receipts = [audit.log_authn(outcome="success") for _ in range(5)]
    now[0] = 61.0
    audit.log_authn(outcome="success")
    said = capsys.readouterr().err.splitlines()
    sink.error = None
    audit.log_authn(outcome="success")

    assert all(receipt is not None and not receipt.durable for receipt in receipts)
    assert len(said) == 2
    assert all("Refusing: expected to take an event, got OSError" in line for line in said)
    stats = audit.stats()
    assert (stats.emitted, stats.exported, stats.dropped, stats.pending) == (7, 1, 6, 0)
    assert len(sink.lines) == 1


def test_with_on_loss_closed_a_loss_is_raised_and_counted() -> None:
    sink = Refusing()
    audit = AuditLogger(sink, on_loss=OnLoss.CLOSED)

    with pytest.raises(AuditUnavailable, match="broken") as caught:
        audit.log_authn(outcome="success")

    assert caught.value.__context__ is sink.error
    assert audit.stats().dropped == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), SystemExit(3)], ids=repr)
def test_what_is_no_error_of_the_sink_is_not_swallowed(error: BaseException) -> None:
    sink = Refusing()
    sink.error = error
    audit = AuditLogger(sink)

    with pytest.raises(type(error)):
        audit.log_authn(outcome="success")

    sink.error = None
    assert audit.log_authn(outcome="success") is not None  # the lock was let go


class FileTooLarge:
    """No file may grow beyond what it has, for as long as this is open."""

    def __init__(self, path: Path) -> None:
        self._bytes = path.stat().st_size
        self._before = process_resource.getrlimit(process_resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        process_resource.setrlimit(process_resource.RLIMIT_FSIZE, (self._bytes, self._before[1]))

    def __exit__(self, *_: object) -> None:
        process_resource.setrlimit(process_resource.RLIMIT_FSIZE, self._before)


@pytest.mark.parametrize("on_loss", OnLoss)
def test_a_disk_that_takes_no_more_is_a_loss_that_the_journal_tells_of_later(
    tmp_path: Path, on_loss: OnLoss, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorder(tmp_path, on_loss=on_loss) as audit:
        audit.log_authn(outcome="success", detail="before")
        (path,) = tmp_path.glob("*.jsonl")
        with FileTooLarge(path):
            for _ in range(3):
                if on_loss is OnLoss.CLOSED:
                    with pytest.raises(AuditUnavailable):
                        audit.log_authn(outcome="success", detail="lost")
                else:
                    receipt = audit.log_authn(outcome="success", detail="lost")
                    assert receipt is not None
                    assert not receipt.durable
        audit.log_authn(outcome="success", detail="after")
        stats = audit.stats()

    assert (stats.emitted, stats.dropped) == (5, 3)
    assert [event["detail"] for event in application_events(tmp_path)] == ["before", "after"]
    assert [gap["lines"] for gap in gaps_in(tmp_path)] == [3]
    assert ("events are lost" in capsys.readouterr().err) == (on_loss is OnLoss.OPEN)


def gaps_in(directory: Path) -> list[dict[str, Any]]:
    events = [event for stream in read_streams(directory).values() for event in stream]
    return [event["gap"] for event in events if event.get("system") == "gap"]


# --- closing, threads, asyncio -----------------------------------------------------------------------------------


def test_an_event_after_close_is_recorded_in_a_new_stream(tmp_path: Path) -> None:
    audit = AuditLogger(a_trail(tmp_path))
    first = audit.log_authn(outcome="success")
    audit.close()
    second = audit.log_authn(outcome="failure")
    audit.close()
    audit.close()

    assert first is not None
    assert second is not None
    assert second.durable
    assert second.stream_id != first.stream_id
    assert {event["event_id"] for event in application_events(tmp_path)} == {first.event_id, second.event_id}


def test_flush_of_a_journal_that_is_the_destination_is_done_at_once(audit: AuditLogger) -> None:
    audit.log_authn(outcome="success")

    report = audit.flush(timeout_s=0)

    assert report.complete
    stats = audit.stats()
    assert (stats.emitted, stats.exported, stats.pending) == (1, 1, 0)


def test_a_sink_is_called_by_one_thread_at_a_time() -> None:
    class Narrow(AuditSink):
        def __init__(self) -> None:
            self.inside = 0
            self.most_inside = 0
            self.count = 0

        def emit(self, event: JsonlEvent) -> None:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            os.sched_yield()
            self.count += 1
            self.inside -= 1

    sink = Narrow()
    audit = AuditLogger(sink)
    threads = [
        threading.Thread(target=lambda: [audit.log_authn(outcome="success") for _ in range(200)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (sink.count, sink.most_inside) == (1600, 1)


def test_the_timestamp_is_that_of_the_call_whichever_thread_asks(tmp_path: Path) -> None:
    seconds = threading.local()

    def clock() -> int:
        return int(seconds.now) * 10**9

    with recorder(tmp_path, clock=clock) as audit:

        def record(start: int) -> None:
            for number in range(300):
                seconds.now = start + number
                audit.log_authn(outcome="success")

        threads = [threading.Thread(target=record, args=(start,)) for start in (0, 86_400, 1_790_000_000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for event in application_events(tmp_path):
        assert int(datetime.fromisoformat(event["timestamp"]).timestamp()) * 10**9 == event["time_ns"]


def test_alog_keeps_the_span_of_its_task(tmp_path: Path) -> None:
    tracer = TracerProvider().get_tracer("t")

    async def one(audit: AuditLogger) -> tuple[str, Receipt | None]:
        with tracer.start_as_current_span("work") as span:
            return f"{span.get_span_context().span_id:016x}", await audit.alog(AuditEvent(event_type="x"))

    async def many(audit: AuditLogger) -> list[tuple[str, Receipt | None]]:
        return await asyncio.gather(*(one(audit) for _ in range(50)))

    with recorder(tmp_path) as audit:
        recorded = asyncio.run(many(audit))

    by_id = {event["event_id"]: event for event in application_events(tmp_path)}
    for span_id, receipt in recorded:
        assert receipt is not None
        assert by_id[str(receipt.event_id)]["span_id"] == span_id


class Gate(AuditSink):
    """Holds each event until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.lines: list[str] = []

    def emit(self, event: JsonlEvent) -> None:
        self.entered.set()
        assert self.opened.wait(10)
        self.lines.append(event.to_jsonl())


def test_alog_leaves_the_loop_free_and_a_cancelled_one_is_still_recorded() -> None:
    gate = Gate()
    audit = AuditLogger(gate)

    async def cancelled_while_the_disk_is_slow() -> None:
        task = asyncio.create_task(audit.alog(AuditEvent(event_type="x")))
        deadline = time.monotonic() + 10
        while not gate.entered.is_set():  # the loop runs on while the sink waits
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.lines == []
        gate.opened.set()

    asyncio.run(cancelled_while_the_disk_is_slow())  # ends when the threads of the loop have ended

    assert [json.loads(line)["event_type"] for line in gate.lines] == ["x"]


def test_an_alog_that_was_cancelled_at_once_is_recorded(tmp_path: Path) -> None:
    async def cancelled(audit: AuditLogger) -> None:
        task = asyncio.create_task(audit.alog(AuditEvent(event_type="x")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with recorder(tmp_path) as audit:
        asyncio.run(cancelled(audit))

    assert len(application_events(tmp_path)) == 1


def test_alog_tells_of_a_loss_when_it_is_told_to() -> None:
    audit = AuditLogger(Refusing(), on_loss=OnLoss.CLOSED)

    with pytest.raises(AuditUnavailable):
        asyncio.run(audit.alog(AuditEvent(event_type="x")))
