"""ASGI applications under a real server with a real socket, and the events that they leave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from otel_audit import AuditEvent, AuditLogger, AuditMiddleware, AuditUnavailable
from tests.chain_check import application_events
from tests.journal.writing import leave_no_room
from tests.recording import a_trail
from tests.servers import poll

__all__ = [
    "Call",
    "Served",
    "a_logger",
    "an_app",
    "ask_raw",
    "audited",
    "events_of",
    "fill",
    "get",
    "greet",
    "pass_on",
    "served",
    "the_event",
]

_ENDING_S = 30.0


class Served:
    """An application that is served. `url` and `address` say where."""

    def __init__(self, app: Any, **config: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        options = {
            "lifespan": "on",
            "log_config": None,
            "proxy_headers": False,
            "access_log": False,
            "log_level": "critical",
            **config,
        }
        self._server = uvicorn.Server(uvicorn.Config(app, **options))
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with contextlib.suppress(SystemExit):  # a startup that failed
            self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """It answers."""
        self._thread.start()
        poll(lambda: self._server.started or not self._thread.is_alive(), what="the server to start")
        assert self._server.started, "the server ended before it started"

    def stop(self) -> None:
        """Its requests and its lifespan are over."""
        self._server.should_exit = True
        self._thread.join(_ENDING_S)
        self._socket.close()
        assert not self._thread.is_alive(), "the server did not end"


Call = Callable[[Served], object]


@contextmanager
def served(app: Any, **config: Any) -> Iterator[Served]:
    """The application, until the end of the block; then all its requests are over."""
    server = Served(app, **config)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def a_logger(directory: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> AuditLogger:
    """A logger whose journal is its own destination."""
    return AuditLogger(a_trail(directory, **(settings or {})), **options)


def audited(app: Any, directory: Path, **options: Any) -> AuditMiddleware:
    """The application inside the middleware, with a logger of its own."""
    return AuditMiddleware(app, audit=a_logger(directory), **options)


def events_of(app: Any, directory: Path, call: Callable[[Served], object], **config: Any) -> list[dict[str, Any]]:
    """All events that a served application has left after it was called, and has ended."""
    with served(app, **config) as server:
        call(server)
    return application_events(directory) if directory.exists() else []


def the_event(app: Any, directory: Path, call: Callable[[Served], object], **config: Any) -> dict[str, Any]:
    """The only event that a served application has left."""
    events = events_of(app, directory, call, **config)
    assert len(events) == 1, events
    return events[0]


def fill(audit: AuditLogger, disk: Path) -> None:
    """No event fits on the disk any more: these are shorter than that of any request.

    Its last block goes too, or the next look at the disk would find it, and let another event in.
    """
    while True:
        try:
            receipt = audit.log(AuditEvent(event_type="fill"))
        except AuditUnavailable:
            break
        assert receipt is not None
        if not receipt.durable:
            break
    leave_no_room(disk)


def ask_raw(server: Served, request: bytes) -> bytes:
    """All that the server answers to these bytes, until it closes the connection or is silent for a second."""
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(request)
        return _all_of(connection)


def _all_of(connection: socket.socket) -> bytes:
    answer = b""
    connection.settimeout(1)
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except (TimeoutError, ConnectionResetError):
        pass
    return answer


def get(path: str = "/", **options: Any) -> Call:
    """A call that asks for a path."""

    def call(server: Served) -> httpx.Response:
        return httpx.get(server.url + path, **options)

    return call


async def greet(request: Request) -> Response:
    """Says hello."""
    return PlainTextResponse("hello")


async def _answer_with(request: Request) -> Response:
    return Response(status_code=int(request.path_params["status"]))


def an_app(*more: Route | Mount, **options: Any) -> Starlette:
    """An application that greets at `/`, and answers `/status/N` with that status."""
    return Starlette(routes=[Route("/", greet), Route("/status/{status}", _answer_with), *more], **options)


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """A middleware that adds nothing."""
    return await call_next(request)
