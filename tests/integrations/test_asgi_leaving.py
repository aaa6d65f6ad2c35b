"""A client that leaves before its answer is whole has made a cancelled request."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from otel_audit import AuditMiddleware
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, an_app, audited, pass_on, the_event
from tests.servers import poll


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


class Leaver:
    """A client that leaves without an answer as soon as the application is at its request."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._begun = threading.Event()
        self._gone = threading.Event()

    def call(self, server: Served) -> None:
        with socket.create_connection(server.address) as connection:
            connection.sendall(f"GET {self._path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert self._begun.wait(30)
        self._gone.set()

    async def outlasted(self) -> None:
        """The client is gone, and the loop of the server has had its turns since, in which it can know."""
        self._begun.set()
        while not self._gone.is_set():
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0.005)


@pytest.fixture
def leaver() -> Leaver:
    return Leaver("/slow")


@pytest.fixture
def slow(leaver: Leaver) -> Route:
    """What answers when it is too late, without a look at its client."""

    async def answer(request: Request) -> Response:
        await leaver.outlasted()
        return PlainTextResponse("too late")

    return Route("/slow", answer)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_client_that_leaves_is_a_cancelled_request_although_the_application_does_not_notice(
    directory: Path, http: str, slow: Route, leaver: Leaver
) -> None:
    event = the_event(audited(an_app(slow), directory), directory, leaver.call, http=http)

    assert event["outcome"] == "cancelled"


def test_a_client_that_leaves_is_noticed_through_middleware_outside_of_this_one(
    directory: Path, slow: Route, leaver: Leaver
) -> None:
    audit = a_logger(directory)
    outside = [Middleware(BaseHTTPMiddleware, dispatch=pass_on), Middleware(AuditMiddleware, audit=audit)]

    event = the_event(an_app(slow, middleware=outside), directory, leaver.call)

    assert event["outcome"] == "cancelled"


def test_a_client_that_leaves_in_the_middle_of_a_stream_is_a_cancelled_request(directory: Path) -> None:
    leaver = Leaver("/stream")

    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await leaver.outlasted()

    async def stream(request: Request) -> Response:
        return StreamingResponse(forever())

    event = the_event(audited(an_app(Route("/stream", stream)), directory), directory, leaver.call)

    assert (event["outcome"], event["status_code"]) == ("cancelled", 200)


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(("declared", "outcome"), [(4, "success"), (9, "cancelled"), (None, "cancelled")])
def test_a_client_that_leaves_before_the_last_message_has_got_all_if_it_has_all_bytes(
    directory: Path, http: str, declared: int | None, outcome: str
) -> None:
    """`BaseHTTPMiddleware` ends a response with an empty message behind its last byte."""
    leaver = Leaver("/whole")

    async def in_two_messages(scope: Any, receive: Any, send: Any) -> None:
        headers = [] if declared is None else [(b"Content-Length", str(declared).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"more", "more_body": True})
        await leaver.outlasted()
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    event = the_event(audited(in_two_messages, directory), directory, leaver.call, http=http, lifespan="off")

    assert (event["outcome"], event["status_code"]) == (outcome, 200)


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


def test_a_server_that_repeats_the_body_without_end_is_asked_no_more_than_twice(directory: Path) -> None:
    asked = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.11)  # so long that it is worth to look whether the client still waits
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("127.0.0.1", 1)}
    with a_logger(directory) as audit:
        asyncio.run(AuditMiddleware(app, audit=audit)(scope, receive, send))

    assert asked == 2
    assert [event["outcome"] for event in application_events(directory)] == ["success"]
