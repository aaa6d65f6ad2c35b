"""However a request ends, it leaves one event that says how: through a real server and a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from otel_audit import AuditMiddleware
from otel_audit.settings import OnLoss
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, an_app, ask_raw, audited, events_of, get, pass_on, the_event
from tests.servers import poll


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


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


@pytest.mark.parametrize("layers", [1, 4])
def test_a_stream_that_breaks_off_below_other_middleware_is_an_error_although_it_is_ended_as_if_it_were_whole(
    directory: Path, layers: int
) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"half of "
        raise ConnectionError("the database went away")

    async def stream(request: Request) -> Response:
        return StreamingResponse(half())

    inner = an_app(
        Route("/stream", stream), middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on) for _ in range(layers)]
    )

    event = the_event(audited(inner, directory), directory, get("/stream"))

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


def test_a_body_that_the_server_copies_from_a_file_is_whole(directory: Path) -> None:
    async def copying(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.zerocopysend", "file": 3})

    audit = a_logger(directory)
    asyncio.run(AuditMiddleware(copying, audit=audit)(a_scope(), nothing_more, into_nothing))
    audit.close()

    (event,) = application_events(directory)
    assert (event["outcome"], event["status_code"]) == ("success", 200)


def test_a_shorter_body_than_was_announced_is_an_error(directory: Path) -> None:
    async def short(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"short"})

    def call(server: Served) -> None:
        ask_raw(server, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    event = the_event(audited(short, directory), directory, call, lifespan="off", http="h11")

    assert (event["outcome"], event["status_code"]) == ("error", 200)


@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize(("status", "outcome"), [(200, "success"), (503, "error")])
def test_the_event_is_there_with_the_last_byte_while_a_task_goes_on_behind_it(
    directory: Path, status: int, outcome: str, durability: str
) -> None:
    may_end = threading.Event()
    audit = a_logger(directory, settings={"durability": durability})

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(0.3)
        yield b"two"

    async def go_on() -> None:
        while not may_end.is_set():
            await asyncio.sleep(0.02)

    async def stream(request: Request) -> Response:
        return StreamingResponse(chunks(), status, background=BackgroundTask(go_on))

    def call(server: Served) -> None:
        try:
            assert httpx.get(f"{server.url}/stream").text == "onetwo"
            poll(lambda: audit.stats().emitted, what="the event")
        finally:
            may_end.set()

    event = the_event(AuditMiddleware(an_app(Route("/stream", stream)), audit=audit), directory, call)

    assert (event["outcome"], event["status_code"]) == (outcome, status)
    assert event["duration_ms"] >= 300


def fail_in_a_thread() -> None:
    raise LookupError


async def fail_at_once() -> None:
    raise LookupError


async def chunks_of_a_body() -> AsyncIterator[bytes]:
    yield b"one"


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("task", [fail_at_once, fail_in_a_thread])
@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_fails_behind_the_last_byte_does_not_change_how_the_request_ended(
    directory: Path, layers: int, task: Callable[[], object], status: int, is_streamed: bool
) -> None:
    async def with_task(request: Request) -> Response:
        if is_streamed:
            return StreamingResponse(chunks_of_a_body(), status, background=BackgroundTask(task))
        return PlainTextResponse("done", status, background=BackgroundTask(task))

    inner = an_app(
        Route("/task", with_task), middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on) for _ in range(layers)]
    )

    event = the_event(audited(inner, directory), directory, get("/task"))

    assert (event["outcome"], event["status_code"]) == ("success" if status == 200 else "error", status)
    assert "error_type" not in event


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


async def run_out_of_time() -> None:
    async with asyncio.timeout(0.05):
        await asyncio.sleep(30)


async def run_out_of_time_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(run_out_of_time())


class Cancelled(BaseException):
    """As other libraries of tasks have it."""


async def be_cancelled_by_another_library() -> None:
    raise Cancelled


@pytest.mark.parametrize(
    ("end", "status", "error_type"),
    [
        (run_out_of_time, 500, "TimeoutError"),
        (run_out_of_time_in_a_group, 500, "ExceptionGroup"),
        (be_cancelled_by_another_library, None, "Cancelled"),
    ],
)
def test_a_request_that_is_stopped_is_cancelled(
    directory: Path, end: Callable[[], Awaitable[None]], status: int | None, error_type: str
) -> None:
    async def stopped(request: Request) -> Response:
        await end()
        raise AssertionError

    event = the_event(audited(an_app(Route("/stopped", stopped)), directory), directory, get("/stopped"))

    assert (event["outcome"], event["error_type"], event.get("status_code")) == ("cancelled", error_type, status)


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


@pytest.mark.parametrize("on_loss", list(OnLoss))
def test_a_request_that_is_thrown_away_with_its_event_loop_is_cancelled(directory: Path, on_loss: OnLoss) -> None:
    audit = a_logger(directory, on_loss=on_loss)
    started = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    async def begin(request: Coroutine[Any, Any, None]) -> None:
        running.append(asyncio.ensure_future(request))
        await started.wait()

    running: list[asyncio.Future[None]] = []
    request = AuditMiddleware(endless, audit=audit)(a_scope(), nothing_more, into_nothing)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin(request))
    request.close()  # in another context than that of its task, as the garbage collector does it
    running[0].cancel()
    with contextlib.suppress(asyncio.CancelledError, RuntimeError):
        loop.run_until_complete(running[0])
    loop.close()
    audit.close()

    *_, event = application_events(directory)
    assert (event["outcome"], event["error_type"]) == ("cancelled", "GeneratorExit")


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_request_that_is_cancelled_while_its_begin_is_recorded_leaves_that_it_did_not_take_place(
    directory: Path, durability: str
) -> None:
    async def unreachable(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    audit = a_logger(directory, settings={"durability": durability}, on_loss=OnLoss.CLOSED)
    scope = a_scope(headers=[(b"x-request-id", b"r-17")])

    async def cancelled() -> None:
        app = AuditMiddleware(unreachable, audit=audit, trusted_proxies=["203.0.113.7"])
        task = asyncio.ensure_future(app(scope, nothing_more, into_nothing))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    audit.close()

    begin, end = application_events(directory)
    assert (begin["outcome"], end["outcome"], end["error_type"]) == ("unknown", "cancelled", "CancelledError")
    assert begin["request_id"] == end["request_id"] == "r-17"
    assert end["duration_ms"] < 60_000


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
