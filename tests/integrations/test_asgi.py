"""One event for each request, and what it says. Everything goes through a real server and a real socket."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import use_span
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from otel_audit import AuditMiddleware, AuditPrincipal
from otel_audit.settings import OnLoss
from tests.integrations.serving import Served, a_logger, an_app, audited, events_of, get, the_event

PROXY = ["127.0.0.1"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def test_an_event_says_who_asked_for_what_from_where_and_how_it_ended(directory: Path) -> None:
    app = audited(
        an_app(),
        directory,
        principal=lambda scope: AuditPrincipal(username="ann", auth_type="oidc"),
        trusted_proxies=PROXY,
    )

    event = the_event(
        app, directory, get("/status/200?token=hunter2", headers={"user-agent": "curl/8", "x-request-id": "r-17"})
    )

    assert event["event_type"] == "http.request"
    assert event["principal"] == {"username": "ann", "roles": [], "auth_type": "oidc"}
    assert event["source"] == {"ip": "127.0.0.1", "transport": "http", "user_agent": "curl/8"}
    assert event["action"] == {"mcp_tool": "", "path": "/status/200", "method": "GET"}
    assert event["attributes"] == {"http.route": "/status/{status}"}
    assert event["request_id"] == "r-17"
    assert event["outcome"] == "success"
    assert event["status_code"] == 200
    assert event["detail"] == "GET /status/200 -> 200"
    assert event["duration_ms"] > 0
    assert "hunter2" not in json.dumps(event)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "success"),
        (204, "success"),
        (302, "success"),
        (400, "failure"),
        (401, "denied"),
        (403, "denied"),
        (404, "failure"),
        (422, "failure"),
        (499, "cancelled"),
        (500, "error"),
        (503, "error"),
    ],
)
def test_the_outcome_follows_from_the_status(directory: Path, status: int, outcome: str) -> None:
    event = the_event(audited(an_app(), directory), directory, get(f"/status/{status}"))

    assert (event["status_code"], event["outcome"]) == (status, outcome)


@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize("on_loss", list(OnLoss))
def test_the_end_of_a_request_is_the_same_however_it_is_written(
    directory: Path, durability: str, on_loss: OnLoss
) -> None:
    audit = a_logger(directory, settings={"durability": durability}, on_loss=on_loss)
    app = AuditMiddleware(an_app(), audit=audit, principal=lambda scope: "ann", trusted_proxies=PROXY)

    events = events_of(app, directory, get("/status/403", headers={"user-agent": "curl/8", "x-request-id": "r-17"}))

    end = events[-1]
    own = {
        "event_id",
        "timestamp",
        "duration_ms",
        "parent_id",
        "time_ns",
        "observed_ns",
        "stream_id",
        "seq",
        "prev_hash",
    }
    assert {key: value for key, value in end.items() if key not in own} == {
        "event_type": "http.request",
        "request_id": "r-17",
        "principal": {"username": "ann", "roles": [], "auth_type": ""},
        "source": {"ip": "127.0.0.1", "transport": "http", "user_agent": "curl/8"},
        "action": {"mcp_tool": "", "path": "/status/403", "method": "GET"},
        "resource": {"type": "", "name": "", "actions": []},
        "outcome": "denied",
        "detail": "GET /status/403 -> 403",
        "status_code": 403,
        "attributes": {"http.route": "/status/{status}"},
    }
    if on_loss is OnLoss.CLOSED:
        begin = events[0]
        assert len(events) == 2
        assert (begin["outcome"], begin["event_id"]) == ("unknown", end["parent_id"])
        assert begin["action"] == end["action"]
    else:
        assert len(events) == 1


def test_a_question_mark_in_a_path_does_not_hide_what_follows_it(directory: Path) -> None:
    event = the_event(audited(an_app(), directory), directory, get("/admin%3Fx/secret?q=1"))

    assert event["action"]["path"] == "/admin%3Fx/secret"


@pytest.mark.parametrize(
    "given",
    ["", "a b", "ü", "x" * 129, "<script>", 'a"b', "a\tb"],
    ids=["empty", "space", "umlaut", "long", "tag", "quote", "tab"],
)
def test_a_request_id_that_is_not_sane_is_replaced(directory: Path, given: str) -> None:
    call = get(headers=[(b"x-request-id", given.encode())])

    event = the_event(audited(an_app(), directory, trusted_proxies=PROXY), directory, call)

    assert len(event["request_id"]) == 36
    assert given == "" or given not in json.dumps(event, ensure_ascii=False)


def test_two_request_ids_are_none(directory: Path) -> None:
    call = get(headers=[("x-request-id", "one"), ("x-request-id", "two")])

    event = the_event(audited(an_app(), directory, trusted_proxies=PROXY), directory, call)

    assert event["request_id"] not in ("one", "two", "one,two")


def test_a_request_id_is_believed_from_a_trusted_proxy_only(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = get(headers={"x-request-id": "r-17"})

    events = events_of(audited(an_app(), directory), directory, lambda server: (call(server), call(server)))

    assert [event["attributes"]["audit.request.claimed_id"] for event in events] == ["r-17", "r-17"]
    assert {len(event["request_id"]) for event in events} == {36}
    (notice,) = [line for line in capsys.readouterr().err.splitlines() if "X-Request-Id" in line]
    assert "127.0.0.1" in notice
    assert "OTEL_AUDIT_TRUSTED_PROXIES" in notice


def test_a_server_that_hides_the_trusted_proxy_is_named(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = get(headers={"x-request-id": "r-17", "x-forwarded-for": "198.51.100.7"})

    event = the_event(audited(an_app(), directory, trusted_proxies=PROXY), directory, call, proxy_headers=True)

    assert (event["attributes"]["audit.request.claimed_id"], event["source"]["ip"]) == ("r-17", "198.51.100.7")
    assert "--no-proxy-headers" in capsys.readouterr().err


def test_beside_a_trusted_proxy_nobody_else_names_a_request_and_nothing_is_said_of_it(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = audited(an_app(), directory, trusted_proxies=["192.0.2.1"])

    event = the_event(app, directory, get(headers={"x-request-id": "r-17"}))

    assert (event["attributes"]["audit.request.claimed_id"], event["request_id"] == "r-17") == ("r-17", False)
    assert "X-Request-Id" not in capsys.readouterr().err


def test_excluded_paths_leave_no_event_and_work(directory: Path) -> None:
    app = audited(an_app(), directory, exclude=["/status/204", "/status/3*"])

    def call(server: Served) -> None:
        assert [httpx.get(f"{server.url}/status/{status}").status_code for status in (204, 304, 202)] == [204, 304, 202]

    assert the_event(app, directory, call)["status_code"] == 202


def test_one_path_to_exclude_needs_no_list(directory: Path) -> None:
    def call(server: Served) -> None:
        assert [httpx.get(server.url + path).status_code for path in ("/status/204", "/")] == [204, 200]

    app = audited(an_app(), directory, exclude="/status/204")

    assert the_event(app, directory, call)["action"]["path"] == "/"


def test_two_middlewares_leave_one_event(directory: Path) -> None:
    audit = a_logger(directory)
    inner = an_app(middleware=[Middleware(AuditMiddleware, audit=audit)])

    assert the_event(AuditMiddleware(inner, audit=audit), directory, get())["status_code"] == 200


def test_the_answer_names_its_event_if_it_is_asked_to(directory: Path) -> None:
    answers: list[httpx.Response] = []
    app = audited(an_app(), directory, audit_id_header=True)

    event = the_event(app, directory, lambda server: answers.append(httpx.get(server.url)))

    assert answers[0].headers["x-audit-id"] == event["event_id"]


def test_the_answer_names_no_event_unless_it_is_asked_to(directory: Path) -> None:
    answers: list[httpx.Response] = []

    the_event(audited(an_app(), directory), directory, lambda server: answers.append(httpx.get(server.url)))

    assert "x-audit-id" not in answers[0].headers


@pytest.mark.parametrize("on_loss", list(OnLoss))
def test_the_events_of_a_request_belong_to_the_span_that_is_active_around_it(directory: Path, on_loss: OnLoss) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    ids: list[tuple[str, str]] = []
    flags: set[int] = set()
    app = AuditMiddleware(an_app(), audit=a_logger(directory, on_loss=on_loss))

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        span = tracer.start_span("request")
        context = span.get_span_context()
        ids.append((f"{context.trace_id:032x}", f"{context.span_id:016x}"))
        flags.add(int(context.trace_flags))
        with use_span(span, end_on_exit=True):
            await app(scope, receive, send)

    events = events_of(traced, directory, lambda server: (get()(server), get()(server)))

    found = [(event["trace_id"], event["span_id"]) for event in events]
    assert found == ids if on_loss is OnLoss.OPEN else [ids[0]] * 2 + [ids[1]] * 2
    assert {event["trace_flags"] for event in events} == flags


def test_the_span_of_a_tracer_further_inside_is_seen_where_there_is_none_outside(directory: Path) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    trace_ids: list[str] = []
    inner = an_app()

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        with tracer.start_as_current_span("request") as span:
            trace_ids.append(f"{span.get_span_context().trace_id:032x}")
            await inner(scope, receive, send)

    event = the_event(audited(traced, directory), directory, get(), lifespan="off")

    assert event["trace_id"] == trace_ids[0]


def test_a_denial_by_the_framework_is_a_denied_request(directory: Path) -> None:
    async def forbidden(request: Request) -> Response:
        raise HTTPException(403)

    event = the_event(audited(an_app(Route("/no", forbidden)), directory), directory, get("/no"))

    assert (event["outcome"], event["status_code"]) == ("denied", 403)


@pytest.mark.processes
def test_the_middleware_needs_no_web_framework() -> None:
    program = "import otel_audit, sys; print(otel_audit.AuditMiddleware, {'starlette', 'fastapi'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split()[-1] == "set()"
