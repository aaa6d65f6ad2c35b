"""What a call of an MCP client becomes, whatever SDK it comes through. With real SDKs: tests/environments/mcp."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
import random
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.requests import Request

from otel_audit.event import PrincipalKind
from otel_audit.integrations.mcp import audit_server, current_event
from otel_audit.integrations.mcp.call import (
    Call,
    asserted_by,
    digest_of,
    recorded,
    source_of,
    token_attributes,
    token_of_request,
)
from otel_audit.logger import AuditLogger
from otel_audit.redaction.names import is_secret_name
from tests.chain_check import application_events
from tests.recording import recorder
from tests.screen_work import Work, work_of

SAID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@dataclass
class Token:
    """What the verifiers of both SDKs give."""

    client_id: str = "notebook"
    scopes: list[str] = field(default_factory=list)
    subject: str | None = None
    claims: dict[str, Any] | None = None
    token: str = "a-bearer-token-f00ba4"


def a_request(headers: Mapping[str, str] | None = None, **scope: Any) -> Request:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    known = {"type": "http", "method": "POST", "path": "/mcp", "headers": pairs, "query_string": b""}
    return Request({**known, **scope})


@given(json_values)
def test_the_digest_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    arguments = {"a": value, "b": 1, "c": [value]}
    keys = list(arguments)
    random.Random(4).shuffle(keys)

    assert digest_of({key: arguments[key] for key in keys}) == digest_of(json.loads(json.dumps(arguments)))


@given(json_values, json_values)
def test_different_arguments_have_different_digests(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)

    assert (digest_of({"a": one}) == digest_of({"a": other})) is same


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_arguments_are_an_empty_object(nothing: dict[str, Any] | None) -> None:
    assert digest_of(nothing) == hashlib.sha256(b"{}").hexdigest()


def test_what_json_cannot_hold_has_no_digest_and_does_no_harm() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    assert [digest_of(arguments) for arguments in (circle, {"deep": deep}, {"set": {1}}, {1: 2, "a": 3})] == [None] * 4


def test_a_lone_surrogate_has_a_digest() -> None:
    assert digest_of({"a": "\ud800"}) != digest_of({"a": "\ud801"})


@pytest.mark.parametrize(
    ("token", "principal"),
    [
        (None, None),
        (Token(), ("notebook", PrincipalKind.SERVICE)),
        (Token(subject="alice"), ("alice", PrincipalKind.USER)),
        (Token(claims={"sub": "alice"}), ("alice", PrincipalKind.USER)),
        (Token(subject="notebook"), ("notebook", PrincipalKind.SERVICE)),
    ],
    ids=["no token", "no subject", "subject", "subject among claims", "a client for itself"],
)
def test_the_subject_of_a_token_is_who_called_else_its_client(token: Any, principal: Any) -> None:
    found = Call(method="tools/call", target="a", token=token).principal(None)

    assert (None if found is None else (found.username, found.kind)) == principal


def test_nothing_of_a_token_is_recorded_but_what_names_the_caller() -> None:
    token = Token(subject="alice", scopes=["read"], claims={"iss": "https://issuer", "email": "alice@example.org"})

    assert token_attributes(token) == {
        "mcp.auth.client_id": "notebook",
        "mcp.auth.scopes": ["read"],
        "mcp.auth.issuer": "https://issuer",
    }


def test_no_key_of_ours_is_taken_for_the_name_of_a_secret() -> None:
    keys = [*token_attributes(Token(scopes=["read"], claims={"iss": "i"})), *asserted_by({"user": "u"}, None)]

    assert [key for key in keys if is_secret_name(key)] == []


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"user": "eve"}, {"user": "eve"}),
        ({"org.example/user-id": 7}, {"user": "7"}),
        ({"enduser.id": "eve"}, {"user": "eve"}),
        ({"x/tenantId": "blue", "agent": "helper-7"}, {"tenant": "blue", "agent": "helper-7"}),
        ({"user": {"name": "eve"}, "progressToken": 4, "traceparent": SAID, "user_id": True}, {}),
        ({"user": "first", "sub": "second"}, {"user": "first"}),
    ],
)
def test_claims_in_the_message_are_asserted(meta: dict[str, Any], said: dict[str, str]) -> None:
    assert asserted_by(meta, None) == {f"mcp.client.asserted_{name}": value for name, value in said.items()}


def test_a_token_is_read_from_its_own_request() -> None:
    @dataclass
    class User:
        access_token: Token

    token = Token()

    assert token_of_request(a_request(user=User(token))) is token
    assert token_of_request(a_request()) is None
    assert token_of_request(None) is None


@dataclass
class UserWithText:
    """Of an application that has authentication of its own."""

    username: str = "ann"
    access_token: str = "a-bearer-token-f00ba4"


def test_a_user_of_the_application_that_keeps_the_text_of_a_token_is_who_called() -> None:
    request = a_request(user=UserWithText())

    principal = a_call(request=request, token=token_of_request(request)).principal(None)

    assert principal is not None
    assert (principal.username, principal.auth_type) == ("ann", "")


@pytest.mark.parametrize("found", ["ann", {"sub": "ann"}, UserWithText()], ids=["name", "claims", "object"])
def test_who_called_may_be_a_name_or_what_has_one(found: object) -> None:
    principal = a_call().principal(lambda request: found)

    assert principal is not None
    assert principal.username == "ann"


def test_a_principal_that_had_to_be_awaited_is_refused(tmp_path: Path) -> None:
    async def find(request: object) -> str:
        return "ann"

    class Find:
        async def __call__(self, request: object) -> str:
            return "ann"

    for each in (find, Find()):
        with recorder(tmp_path) as audit, pytest.raises(TypeError, match="expected a plain function as principal"):
            audit_server({}, audit, principal=each)


def test_a_query_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    request = a_request(path="/mcp/a?b", query_string=b"token=\xff")

    with recorder(tmp_path) as audit:
        event = a_call(request=request).operation(audit, None, trace.INVALID_SPAN).event

    assert event.action.path == "/mcp/a%3Fb"


def test_a_call_over_http_comes_from_the_peer_of_its_connection() -> None:
    source = source_of(a_request({"user-agent": "curl", "x-forwarded-for": "9.9.9.9"}, client=("10.1.2.3", 4711)))

    assert (source.ip, source.transport, source.user_agent) == ("10.1.2.3", "mcp-http", "curl")
    assert source_of(None).transport == "mcp-stdio"


def a_call(**fields: Any) -> Call:
    return Call(method="tools/call", target="add", **fields)


def a_span(number: int, *, is_remote: bool = False) -> trace.Span:
    return trace.NonRecordingSpan(trace.SpanContext(number, number, is_remote))


def in_call(call: Call, active: trace.Span | None = None) -> tuple[int, int]:
    """The spans of the event and of what the call does, by number, where this one is active around the call."""

    def look() -> tuple[int, int]:
        with trace.use_span(active or trace.INVALID_SPAN), call.trace() as of_event:
            return of_event.get_span_context().span_id, trace.get_current_span().get_span_context().span_id

    return contextvars.Context().run(look)


def carried_by(span: trace.Span) -> Request:
    """A request in whose task this span was the active one."""
    return a_request(None, **{"otel_audit.context": trace.set_span_in_context(span)})


META = {"traceparent": f"00-{7:032x}-{7:016x}-01"}
OWN, POST, FIRST = a_span(1), a_span(2), a_span(3)
REMOTE = a_span(4, is_remote=True)


@pytest.mark.parametrize(
    ("call", "active", "expected"),
    [
        # SDK 2.x, whose calls run in the context of their request.
        (a_call(request=carried_by(POST), meta=META), OWN, (1, 1)),
        (a_call(request=carried_by(POST), meta=META), POST, (7, 2)),
        (a_call(request=carried_by(POST)), POST, (2, 2)),
        (a_call(request=carried_by(REMOTE), meta=META), REMOTE, (7, 7)),
        (a_call(request=carried_by(REMOTE)), REMOTE, (0, 4)),
        # SDK 1.x, whose calls run in that of the first request of their session.
        (a_call(request=carried_by(POST), meta=META, inherited=FIRST), OWN, (1, 1)),
        (a_call(request=carried_by(POST), meta=META, inherited=FIRST), FIRST, (7, 2)),
        (a_call(request=carried_by(POST), inherited=FIRST), FIRST, (2, 2)),
        (a_call(request=carried_by(trace.INVALID_SPAN), meta=META, inherited=FIRST), FIRST, (7, 7)),
        (a_call(request=carried_by(trace.INVALID_SPAN), inherited=FIRST), FIRST, (0, 0)),
        (a_call(request=a_request(), inherited=FIRST), FIRST, (0, 0)),
        # Without HTTP.
        (a_call(meta=META), None, (7, 7)),
        (a_call(meta=META), OWN, (7, 7)),
        (a_call(), OWN, (1, 1)),
        (a_call(), None, (0, 0)),
    ],
)
def test_the_event_has_the_calls_own_span_else_that_of_the_message_else_that_of_the_request(
    call: Call, active: trace.Span | None, expected: tuple[int, int]
) -> None:
    assert in_call(call, active) == expected


def test_without_http_a_span_of_the_server_in_the_trace_of_the_message_stays() -> None:
    of_server = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=False))

    assert in_call(a_call(meta=META), of_server) == (8, 8)


@pytest.mark.parametrize(
    "nonsense", ["", "00-zz", 7, None, ["00"], {"a": 1}, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
def test_a_broken_traceparent_is_no_trace(nonsense: Any) -> None:
    assert in_call(a_call(meta={"traceparent": nonsense})) == (0, 0)


def test_baggage_of_a_client_is_not_taken_over() -> None:
    from opentelemetry import baggage

    with a_call(meta={"traceparent": SAID, "baggage": "role=admin"}).trace():
        assert baggage.get_all() == {}


LARGE = ["\u200b", "password=a,", "token: ", "authorization: digest a=", "a\u200bpass=a1 ", "\u0130/", "x"]
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "tool": lambda text: {"target": text},
    "URI": lambda text: {"method": "resources/read", "target": text},
    "prompt": lambda text: {"method": "prompts/get", "target": text},
    "arguments": lambda text: {"arguments": {"a": text}},
    "items of an argument": lambda text: {"arguments": {"a": list(text)}},
    "names of arguments": lambda text: {"arguments": {f"{text[:9]}{at}": 1 for at in range(len(text))}},
    "id": lambda text: {"jsonrpc_id": text},
    "said user": lambda text: {"meta": {"user": text}},
    "key of what is said": lambda text: {"meta": {f"{text}/user": "a"}},
    "keys of what is said": lambda text: {"meta": {f"{at}/agent": "a" for at in range(len(text))}},
    "client": lambda text: {"client": SimpleNamespace(name=text, version=text)},
    "version of the protocol": lambda text: {"protocol_version": text},
    "user agent": lambda text: {"request": a_request({"user-agent": text})},
    "header of a trace": lambda text: {"request": a_request({"traceparent": text, "tracestate": text})},
    "path": lambda text: {"request": a_request(path=f"/mcp/{text}")},
}


def test_a_trace_that_is_longer_than_any_is_not_parsed() -> None:
    longer = f"01-{7:032x}-{7:016x}-01-"  # which a later version may have made

    assert in_call(a_call(meta={"traceparent": f"{longer}{'a' * 50}"})) == (7, 7)
    assert in_call(a_call(meta={"traceparent": f"{longer}{'a' * 500}"})) == (0, 0)
    for chars, taken_over in ((500, 1), (1000, 0)):
        with a_call(meta={**META, "tracestate": f"a={'b' * 200},{' ' * chars}"[: chars + 1]}).trace() as span:
            assert len(span.get_span_context().trace_state) == taken_over


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_text_of_a_megabyte_takes_no_more_work_than_one_of_its_cap(place: str, tmp_path: Path) -> None:
    async def work() -> None: ...

    def work_with(text: str) -> Work:
        call = Call(**{"method": "tools/call", "target": "add", **PLACES[place](text)})
        running = recorded(audit, call, work, refusal=RuntimeError)
        return work_of(lambda: asyncio.run(running))

    with recorder(tmp_path) as audit:
        for piece in LARGE:
            chars = 100_000 if " of " in place else 1_000_000
            long, longest = (work_with(piece * (most // len(piece))) for most in (10_000, chars))

            # The marker of what was cut is a digit longer, and a file or a batch may fall into one of them.
            assert longest.screened_bytes <= long.screened_bytes * 1.01 + 64, piece
            assert longest.calls <= long.calls * 1.05 + 500, piece


class _Never:
    """What is awaited and never comes."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def test_a_call_that_is_thrown_away_with_its_event_loop_is_cancelled(tmp_path: Path) -> None:
    async def work() -> None:
        await _Never()

    def begin(audit: AuditLogger) -> Coroutine[None, None, None]:
        running = recorded(audit, a_call(meta={"traceparent": SAID}), work, refusal=RuntimeError)
        running.send(None)
        return running

    with recorder(tmp_path) as audit:
        running = contextvars.Context().run(begin, audit)
        running.close()  # in a context that is not its own, as a garbage collection does

    (event,) = application_events(tmp_path)
    assert (event["outcome"], event["error_type"]) == ("cancelled", "GeneratorExit")
    assert f"00-{event['trace_id']}-{event['span_id']}-01" == SAID


def test_there_is_no_event_to_fill_in_outside_of_a_call() -> None:
    assert current_event() is None


@pytest.mark.parametrize("server", [{}, Starlette()], ids=["dict", "ASGI app"])
def test_what_is_no_server_is_refused_with_what_is_expected(server: Any, tmp_path: Path) -> None:
    with (
        recorder(tmp_path) as audit,
        pytest.raises(TypeError, match=rf"expected a server of the official MCP SDK .*\.{type(server).__name__};"),
    ):
        audit_server(server, audit)


def test_a_call_that_is_thrown_away_with_its_loop_leaves_no_noise_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def call() -> None:
        with Call(method="tools/call", target="x", meta={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}).trace():
            await asyncio.get_running_loop().create_future()

    async def begun() -> Coroutine[Any, Any, None]:
        running = call()
        contextvars.Context().run(running.send, None)
        return running

    asyncio.run(begun()).close()

    assert caplog.records == []
