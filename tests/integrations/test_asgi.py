"""One event for each request, whatever becomes of it. Everything goes through a real server and a real socket."""

from __future__ import annotations

import asyncio
import contextvars
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import use_span
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from otel_audit import AuditAction, AuditEvent, AuditMiddleware, AuditPrincipal
from otel_audit.integrations.asgi import set_principal
from otel_audit.policy import read_policy
from otel_audit.settings import OnLoss
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, ask_raw, audited, events_of, fill, served, the_event
from tests.servers import poll

Call = Callable[[Served], object]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def get(path: str = "/", **options: Any) -> Call:
    def call(server: Served) -> httpx.Response:
        return httpx.get(server.url + path, **options)

    return call


async def greet(request: Request) -> Response:
    return PlainTextResponse("hello")


async def answer_with(request: Request) -> Response:
    return Response(status_code=int(request.path_params["status"]))


def an_app(*more: Route | Mount, **options: Any) -> Starlette:
    return Starlette(routes=[Route("/", greet), Route("/status/{status}", answer_with), *more], **options)


def test_an_event_says_who_asked_for_what_from_where_and_how_it_ended(directory: Path) -> None:
    app = audited(an_app(), directory, principal=lambda scope: AuditPrincipal(username="ann", auth_type="oidc"))

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
    app = AuditMiddleware(an_app(), audit=audit, principal=lambda scope: "ann")

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


def test_a_request_that_raises_is_an_error_with_the_class_of_the_exception_and_without_its_text(
    directory: Path,
) -> None:
    async def fail(request: Request) -> Response:
        raise LookupError("the password of the database is hunter2")

    answers: list[httpx.Response] = []
    event = the_event(
        audited(an_app(Route("/fail", fail)), directory),
        directory,
        lambda s: answers.append(httpx.get(f"{s.url}/fail")),
    )

    assert answers[0].status_code == 500
    assert (event["outcome"], event["status_code"], event["error_type"]) == ("error", 500, "LookupError")
    assert "hunter2" not in json.dumps(event)


def test_inside_an_application_the_exception_goes_on_as_it_was(directory: Path) -> None:
    seen: list[BaseException] = []

    async def fail(request: Request) -> Response:
        raise LookupError("as it was")

    async def outermost(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except BaseException as error:
            seen.append(error)
            raise

    app = FastAPI()
    app.add_route("/fail", fail)
    app.add_middleware(AuditMiddleware, audit=a_logger(directory))

    event = the_event(outermost, directory, get("/fail"))

    assert [repr(error) for error in seen] == ["LookupError('as it was')"]
    assert (event["outcome"], event["status_code"], event["error_type"]) == ("error", 500, "LookupError")


def test_an_answer_that_breaks_off_half_way_is_an_error_although_its_status_was_200(directory: Path) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"half of "
        raise ConnectionError("the database went away")

    async def stream(request: Request) -> Response:
        return StreamingResponse(half())

    def call(server: Served) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{server.url}/stream")

    event = the_event(audited(an_app(Route("/stream", stream)), directory), directory, call)

    assert (event["outcome"], event["status_code"], event["error_type"]) == ("error", 200, "ConnectionError")


@pytest.mark.parametrize(
    "sends", [[], [{"type": "http.response.start", "status": 200, "headers": []}]], ids=["nothing", "start"]
)
def test_an_application_that_returns_without_its_last_byte_is_an_error(
    directory: Path, sends: list[dict[str, Any]]
) -> None:
    async def careless(scope: Any, receive: Any, send: Any) -> None:
        for message in sends:
            await send(message)

    def call(server: Served) -> None:
        ask_raw(server, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    event = the_event(audited(careless, directory), directory, call, lifespan="off")

    assert (event["outcome"], event["status_code"]) == ("error", 200 if sends else 500)


def test_a_shorter_body_than_was_announced_is_an_error(directory: Path) -> None:
    async def short(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"short"})

    def call(server: Served) -> None:
        ask_raw(server, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    event = the_event(audited(short, directory), directory, call, lifespan="off", http="h11")

    assert (event["outcome"], event["status_code"]) == ("error", 200)


def test_the_event_is_there_with_the_last_byte_while_a_task_goes_on_behind_it(directory: Path) -> None:
    may_end = threading.Event()
    audit = a_logger(directory)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(0.3)
        yield b"two"

    async def go_on() -> None:
        while not may_end.is_set():
            await asyncio.sleep(0.02)

    async def stream(request: Request) -> Response:
        return StreamingResponse(chunks(), background=BackgroundTask(go_on))

    def call(server: Served) -> None:
        try:
            assert httpx.get(f"{server.url}/stream").text == "onetwo"
            poll(lambda: audit.stats().emitted, what="the event")
        finally:
            may_end.set()

    event = the_event(AuditMiddleware(an_app(Route("/stream", stream)), audit=audit), directory, call)

    assert event["outcome"] == "success"
    assert event["duration_ms"] >= 300


def test_what_fails_behind_the_last_byte_does_not_change_how_the_request_ended(directory: Path) -> None:
    async def fail() -> None:
        raise LookupError

    async def with_task(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(fail))

    event = the_event(audited(an_app(Route("/task", with_task)), directory), directory, get("/task"))

    assert (event["outcome"], event["status_code"]) == ("success", 200)
    assert "error_type" not in event


def leave_early(path: str, after_s: float) -> Call:
    """A client that sends its request and leaves without an answer."""

    def call(server: Served) -> None:
        with socket.create_connection(server.address) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            time.sleep(after_s)

    return call


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_client_that_leaves_is_a_cancelled_request_although_the_application_does_not_notice(
    directory: Path, http: str
) -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(0.6)
        return PlainTextResponse("too late")

    app = audited(an_app(Route("/slow", slow)), directory)

    event = the_event(app, directory, leave_early("/slow", 0.2), http=http)

    assert event["outcome"] == "cancelled"


def test_a_client_that_leaves_in_the_middle_of_a_stream_is_a_cancelled_request(directory: Path) -> None:
    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await asyncio.sleep(0.02)

    async def stream(request: Request) -> Response:
        return StreamingResponse(forever())

    event = the_event(audited(an_app(Route("/stream", stream)), directory), directory, leave_early("/stream", 0.2))

    assert (event["outcome"], event["status_code"]) == ("cancelled", 200)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_client_that_leaves_in_the_middle_of_its_body_is_a_cancelled_request(directory: Path, http: str) -> None:
    async def read(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    def call(server: Served) -> None:
        with socket.create_connection(server.address) as connection:
            connection.sendall(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nonly this")
            poll(lambda: reached, what="the application to be reached")

    reached: list[str] = []

    async def reaching(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])
        await inner(scope, receive, send)

    inner = an_app(Route("/read", read, methods=["POST"]))
    event = the_event(audited(reaching, directory), directory, call, http=http, lifespan="off")

    assert (event["outcome"], event["error_type"]) == ("cancelled", "ClientDisconnect")
    assert event["action"]["method"] == "POST"


def test_no_request_holds_up_the_loop_while_it_waits_for_the_disk(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    audit = a_logger(directory, settings={"durability": "fsync"})
    app = AuditMiddleware(an_app(), audit=audit)

    async def many(url: str) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            await asyncio.gather(*(client.get("/") for _ in range(60)))

    events = events_of(app, directory, lambda server: asyncio.run(many(server.url)))

    assert len(events) == 60
    assert "use `await alog()`" not in capfd.readouterr().err  # what a log() that holds up the loop says


def test_a_slow_request_whose_client_waits_is_no_cancelled_one(directory: Path) -> None:
    async def slow(request: Request) -> Response:
        body = await request.body() if request.method == "POST" else b""
        await asyncio.sleep(0.2)
        # A second look at the messages of the client finds them as if nobody had looked.
        return PlainTextResponse(f"{len(body)} {await request.is_disconnected()}")

    def call(server: Served) -> None:
        with httpx.Client(base_url=server.url) as client:
            for _ in range(2):  # on one connection
                assert client.get("/slow").text == "0 False"
                assert client.post("/slow", content=b"x" * 200_000).text == "200000 False"

    app = audited(an_app(Route("/slow", slow, methods=["GET", "POST"])), directory)
    events = events_of(app, directory, call)

    assert [event["outcome"] for event in events] == ["success"] * 4


def test_an_unread_body_is_left_to_the_server(directory: Path) -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(0.2)
        return PlainTextResponse("not read")

    def call(server: Served) -> None:
        request = b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        assert b"100 Continue" not in ask_raw(server, request)

    app = audited(an_app(Route("/slow", slow, methods=["POST"])), directory)

    assert the_event(app, directory, call)["status_code"] == 200


def test_a_time_out_is_a_cancelled_request(directory: Path) -> None:
    async def slow(request: Request) -> Response:
        async with asyncio.timeout(0.05):
            await asyncio.sleep(30)
        raise AssertionError

    event = the_event(audited(an_app(Route("/slow", slow)), directory), directory, get("/slow"))

    assert (event["outcome"], event["error_type"]) == ("cancelled", "TimeoutError")


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_request_whose_task_is_cancelled_leaves_one_event(directory: Path, durability: str) -> None:
    started = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    audit = a_logger(directory, settings={"durability": durability})
    app = AuditMiddleware(endless, audit=audit)

    async def cancelled_twice() -> None:
        task = asyncio.ensure_future(app(a_scope(), nothing_more, into_nothing))
        await started.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # while the event is being written
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled_twice())
    audit.close()

    (event,) = application_events(directory)
    assert (event["outcome"], event["error_type"]) == ("cancelled", "CancelledError")


def a_scope(**more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("203.0.113.7", 5000), **more}


async def nothing_more() -> dict[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError


async def into_nothing(message: Any) -> None:
    return


def test_requests_at_the_same_time_do_not_know_of_each_other(directory: Path) -> None:
    async def echo(request: Request) -> Response:
        request.state.user = request.query_params["user"]
        await asyncio.sleep(0.05)
        return PlainTextResponse("", status_code=int(request.query_params["status"]))

    async def all_at_once(url: str) -> None:
        async with httpx.AsyncClient(base_url=url) as client:
            await asyncio.gather(
                *(client.get("/echo", params={"user": f"u{n}", "status": 200 + n}) for n in range(4, 54))
            )

    app = audited(an_app(Route("/echo", echo)), directory)
    events = events_of(app, directory, lambda server: asyncio.run(all_at_once(server.url)))

    assert {(event["principal"]["username"], event["status_code"]) for event in events} == {
        (f"u{n}", 200 + n) for n in range(4, 54)
    }
    assert len(events) == 50


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_requests_in_a_row_on_one_connection_are_an_event_each(directory: Path, http: str) -> None:
    request = b"GET /status/%d HTTP/1.1\r\nhost: x\r\n\r\n"

    def call(server: Served) -> None:
        answers = ask_raw(server, b"".join(request % status for status in (202, 404, 500)))
        assert answers.count(b"HTTP/1.1 ") == 3

    events = events_of(audited(an_app(), directory), directory, call, http=http)

    assert [event["status_code"] for event in events] == [202, 404, 500]


def test_what_is_no_request_leaves_no_event(directory: Path) -> None:
    def call(server: Served) -> None:
        for rubbish in (
            b"GARBAGE\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
            b"GET /\x00 HTTP/1.1\r\n\r\n",
        ):
            ask_raw(server, rubbish)
        httpx.get(server.url)

    the_event(audited(an_app(), directory), directory, call)


# Who asks.


class ByHeader(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.headers.get("x-user")
        return None if name is None else (AuthCredentials(["authenticated", "orders:read"]), SimpleUser(name))


def test_the_user_of_starlettes_authentication_is_the_principal_although_it_is_set_further_inside(
    directory: Path,
) -> None:
    inner = an_app(middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())])

    event = the_event(audited(inner, directory), directory, get(headers={"x-user": "ann"}))

    assert event["principal"] == {"username": "ann", "roles": ["orders:read"], "auth_type": ""}


def test_a_user_who_is_not_authenticated_is_nobody(directory: Path) -> None:
    inner = an_app(middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())])

    event = the_event(audited(inner, directory), directory, get(headers={"authorization": "Bearer made-up"}))

    assert event["principal"] == {"username": "", "roles": [], "auth_type": ""}


@pytest.mark.parametrize(
    "value",
    [
        "ann",
        AuditPrincipal(username="ann"),
        {"sub": "ann", "exp": 1},
        SimpleUser("ann"),
        type("User", (), {"username": "ann", "password": "hunter2"})(),
    ],
    ids=["name", "principal", "claims", "user", "object"],
)
@pytest.mark.parametrize("key", ["user", "principal", "current_user"])
def test_what_the_application_keeps_in_the_state_of_the_request_is_the_principal(
    directory: Path, key: str, value: object
) -> None:
    async def with_state(request: Request) -> Response:
        setattr(request.state, key, value)
        return PlainTextResponse("")

    event = the_event(audited(an_app(Route("/state", with_state)), directory), directory, get("/state"))

    assert event["principal"]["username"] == "ann"
    assert "hunter2" not in json.dumps(event)


def test_a_context_variable_that_is_set_further_inside_is_the_principal(directory: Path) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    async def with_user(request: Request) -> Response:
        user.set("ann")
        return PlainTextResponse("")

    app = audited(an_app(Route("/me", with_user)), directory, principal=user)

    events = events_of(app, directory, lambda server: (get("/me")(server), get("/")(server)))

    assert [event["principal"]["username"] for event in events] == ["ann", ""]


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def test_the_principal_is_seen_through_other_middleware_and_from_a_thread(directory: Path) -> None:
    app = FastAPI()
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)  # runs the application in another task
    app.add_middleware(AuditMiddleware, audit=a_logger(directory))

    def user() -> str:
        set_principal(AuditPrincipal(username="ann", roles=["reader"]))  # in a thread
        return "ann"

    @app.get("/items/{item}")
    def items(item: int, user: str = Depends(user)) -> str:
        return user

    event = the_event(app, directory, get("/items/5"))

    assert event["principal"] == {"username": "ann", "roles": ["reader"], "auth_type": ""}
    assert event["attributes"] == {"http.route": "/items/{item}"}


def test_a_principal_that_cannot_be_found_out_costs_neither_the_request_nor_its_event(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(scope: Any) -> object:
        raise LookupError("no session")

    answers: list[httpx.Response] = []
    app = audited(an_app(), directory, principal=broken)
    event = the_event(app, directory, lambda server: answers.append(httpx.get(server.url)))

    assert answers[0].status_code == 200
    assert event["principal"]["username"] == ""
    assert "who makes a request could not be found out" in capfd.readouterr().err


def test_a_principal_that_cannot_be_read_where_it_is_told_costs_neither_the_request_nor_its_event(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Detached:
        @property
        def username(self) -> str:
            raise LookupError("no session")

    async def tell(request: Request) -> Response:
        set_principal(Detached())
        return PlainTextResponse("told")

    event = the_event(audited(an_app(Route("/tell", tell)), directory), directory, get("/tell"))

    assert (event["status_code"], event["principal"]["username"]) == (200, "")
    assert "who makes a request could not be found out" in capfd.readouterr().err


# What they ask for.


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

    event = the_event(audited(an_app(), directory), directory, call)

    assert len(event["request_id"]) == 36
    assert given == "" or given not in event["request_id"]


def test_two_request_ids_are_none(directory: Path) -> None:
    call = get(headers=[("x-request-id", "one"), ("x-request-id", "two")])

    assert the_event(audited(an_app(), directory), directory, call)["request_id"] not in ("one", "two", "one,two")


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


# What cannot be recorded.


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_request_that_cannot_be_recorded_is_refused_where_the_rule_is_closed(
    small_disk: Path, durability: str
) -> None:
    called: list[str] = []

    async def act(request: Request) -> Response:
        called.append(request.url.path)
        return PlainTextResponse("done")

    audit = a_logger(small_disk / "audit", on_loss=OnLoss.CLOSED, settings={"durability": durability})
    app = AuditMiddleware(an_app(Route("/act", act)), audit=audit, exclude=["/ready"])

    with served(app) as server:
        assert httpx.get(f"{server.url}/act").status_code == 200
        fill(audit)
        refused = httpx.get(f"{server.url}/act")
        assert httpx.get(f"{server.url}/ready").status_code == 404  # what leaves no event needs none

    assert refused.status_code == 503
    assert called == ["/act"]
    assert refused.headers["retry-after"] == "5"
    assert str(small_disk) not in refused.text


def test_a_request_that_cannot_be_recorded_is_served_where_the_rule_is_open(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    audit = a_logger(small_disk / "audit")

    with served(AuditMiddleware(an_app(), audit=audit)) as server:
        fill(audit)
        before = audit.stats()
        assert httpx.get(server.url).status_code == 200
    after = audit.stats()

    assert (after.emitted, after.dropped) == (before.emitted + 1, before.dropped + 1)
    assert "events are lost" in capfd.readouterr().err


@pytest.mark.parametrize("outcome", ["success", "denied"])
def test_a_rule_of_the_policy_closes_the_requests_that_it_is_about(
    tmp_path: Path, directory: Path, outcome: str
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{route: /status/*, on_loss: closed}, {route: /quiet, keep: false}]")
    audit = a_logger(directory, policy=read_policy(policy))
    app = AuditMiddleware(an_app(Route("/quiet", greet)), audit=audit)
    status = 200 if outcome == "success" else 403

    events = events_of(app, directory, lambda s: [get(p)(s) for p in ("/", "/quiet", f"/status/{status}")])

    assert [(event["action"]["path"], event["outcome"]) for event in events] == [
        ("/", "success"),
        (f"/status/{status}", "unknown"),
        (f"/status/{status}", outcome),
    ]
    assert events[2]["parent_id"] == events[1]["event_id"]


# The lifespan.


def test_the_last_of_two_services_that_share_a_logger_closes_it(directory: Path) -> None:
    audit = a_logger(directory)
    event = AuditEvent(event_type="test", action=AuditAction(path="/"), outcome="success")

    with served(AuditMiddleware(an_app(), audit=audit)):
        with served(AuditMiddleware(an_app(), audit=audit)):
            first = audit.log(event)
        second = audit.log(event)
    third = audit.log(event)
    audit.close()

    assert first is not None
    assert second is not None
    assert third is not None
    assert first.stream_id == second.stream_id
    assert third.stream_id != second.stream_id  # the one before has its end


async def no_lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await greet_raw(scope, receive, send)


async def silent_lifespan(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await greet_raw(scope, receive, send)


async def greet_raw(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


@pytest.mark.parametrize("app", [no_lifespan, silent_lifespan])
def test_an_application_without_a_lifespan_has_its_logger_closed_too(directory: Path, app: Any) -> None:
    audit = a_logger(directory)

    with served(AuditMiddleware(app, audit=audit)) as server:
        assert httpx.get(server.url).text == "hello"
        before = audit.log(AuditEvent(event_type="test", outcome="success"))
    after = audit.log(AuditEvent(event_type="test", outcome="success"))
    audit.close()

    assert before is not None
    assert after is not None
    assert before.stream_id != after.stream_id


def test_a_startup_that_fails_closes_the_logger_and_stays_a_failure(directory: Path) -> None:
    audit = a_logger(directory)
    receipts = []

    @asynccontextmanager
    async def failing(app: Starlette) -> AsyncIterator[None]:
        receipts.append(audit.log(AuditEvent(event_type="test", outcome="success")))
        raise RuntimeError("no database")
        yield

    server = Served(AuditMiddleware(an_app(lifespan=failing), audit=audit))
    with pytest.raises(AssertionError, match="ended before it started"):
        server.start()
    server.stop()
    receipts.append(audit.log(AuditEvent(event_type="test", outcome="success")))
    audit.close()

    first, second = receipts
    assert first is not None
    assert second is not None
    assert first.stream_id != second.stream_id


def test_a_denial_by_the_framework_is_a_denied_request(directory: Path) -> None:
    async def forbidden(request: Request) -> Response:
        raise HTTPException(403)

    event = the_event(audited(an_app(Route("/no", forbidden)), directory), directory, get("/no"))

    assert (event["outcome"], event["status_code"]) == ("denied", 403)


def test_the_middleware_needs_no_web_framework() -> None:
    program = "import otel_audit, sys; print(otel_audit.AuditMiddleware, {'starlette', 'fastapi'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split()[-1] == "set()"
