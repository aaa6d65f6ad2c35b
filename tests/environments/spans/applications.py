"""One application in every framework, with the audit middleware and OpenTelemetry's in every order that there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import fastapi
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from starlette import applications
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from otel_audit import AuditLogger, AuditMiddleware
from otel_audit.integrations.auto import FastAPIAuditor, StarletteAuditor

__all__ = ["CANNOT_BE", "ORDERS", "Order", "build", "uninstrument"]

Hook = Callable[[Any, Any], None]

CANNOT_BE = {
    ("plain", "add_middleware"): "an application that is a mere function has no stack to add a middleware to",
    ("plain", "zero_code"): "the instrumentors change the classes of Starlette and FastAPI, and a function has none",
}
"""The combinations of framework and way that nobody can write, and why."""


@dataclass(frozen=True)
class Order:
    """Who is around whom. `place`: where OpenTelemetry's middleware is, seen from ours.

    `with_base`: a `BaseHTTPMiddleware`, which runs what is below it in another task, is between the two.
    """

    framework: str
    way: str
    place: str
    with_base: bool

    def __str__(self) -> str:
        return "-".join((self.framework, self.way, self.place, *(["base"] if self.with_base else [])))


ORDERS = [
    Order(framework, way, place, with_base)
    for framework in ("fastapi", "starlette", "plain")
    for way in ("add_middleware", "around", "zero_code")
    if (framework, way) not in CANNOT_BE
    for place in ("inside", "outside")
    for with_base in (False, True)
]


def build(order: Order, audit: AuditLogger, hook: Hook) -> Any:
    """The application in this order. OpenTelemetry's middleware calls `hook` with each server span that it begins."""
    if order.framework == "plain":
        return _plain(order, audit, hook)
    if order.way == "zero_code":
        return _zero_code(order, audit, hook)
    app = _application(order.framework)
    if order.way == "around":
        return _around(order, app, audit, hook)
    return _added(order, app, audit, hook)


def uninstrument() -> None:
    """The frameworks are as they were."""
    for instrumentor in (FastAPIAuditor(), StarletteAuditor(), FastAPIInstrumentor(), StarletteInstrumentor()):
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


def _plain(order: Order, audit: AuditLogger, hook: Hook) -> Any:
    below: Any = plain
    if order.place == "inside":
        below = _with_base(OpenTelemetryMiddleware(below, server_request_hook=hook), order)
        return AuditMiddleware(below, audit=audit)
    below = _with_base(AuditMiddleware(below, audit=audit), order)
    return OpenTelemetryMiddleware(below, server_request_hook=hook)


def _zero_code(order: Order, audit: AuditLogger, hook: Hook) -> Any:
    """As `opentelemetry-instrument` does, in the order in which it finds the entry points."""
    if order.place == "inside":
        FastAPIInstrumentor().instrument(server_request_hook=hook)
    FastAPIAuditor().instrument(audit=audit)
    StarletteAuditor().instrument(audit=audit)
    if order.place == "inside":
        StarletteInstrumentor().instrument(server_request_hook=hook)
    app = _application(order.framework)
    _add_base(app, order)
    return app if order.place == "inside" else OpenTelemetryMiddleware(app, server_request_hook=hook)


def _around(order: Order, app: Any, audit: AuditLogger, hook: Hook) -> Any:
    if order.place == "outside":
        _add_base(app, order)
        return OpenTelemetryMiddleware(AuditMiddleware(app, audit=audit), server_request_hook=hook)
    _instrument(order.framework, app, hook)
    _add_base(app, order)
    return AuditMiddleware(app, audit=audit)


def _added(order: Order, app: Any, audit: AuditLogger, hook: Hook) -> Any:
    """What is added last is outermost, but for OpenTelemetry's instrumentor of FastAPI, which always is."""
    if order.place == "inside":
        app.add_middleware(OpenTelemetryMiddleware, server_request_hook=hook)
        _add_base(app, order)
        app.add_middleware(AuditMiddleware, audit=audit)
    else:
        app.add_middleware(AuditMiddleware, audit=audit)
        _add_base(app, order)
        _instrument(order.framework, app, hook)
    return app


def _instrument(framework: str, app: Any, hook: Hook) -> None:
    instrumentor = FastAPIInstrumentor if framework == "fastapi" else StarletteInstrumentor
    instrumentor.instrument_app(app, server_request_hook=hook)


def _with_base(app: Any, order: Order) -> Any:
    return BaseHTTPMiddleware(app, dispatch=_pass_on) if order.with_base else app


def _add_base(app: Any, order: Order) -> None:
    if order.with_base:
        app.add_middleware(BaseHTTPMiddleware, dispatch=_pass_on)


async def _pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


async def _answer(request: Request) -> Response:
    return Response(status_code=int(request.path_params["status"]))


async def _boom(request: Request) -> Response:
    raise RuntimeError("boom")


async def _chunks(path: str) -> AsyncIterator[bytes]:
    yield b"1"
    if path == "/broken":
        raise RuntimeError("broken")
    while path == "/endless":
        await asyncio.sleep(0.001)
        yield b"2"


async def _stream(request: Request) -> Response:
    return StreamingResponse(_chunks(request.url.path))


async def _talk(socket: WebSocket) -> None:
    await socket.accept()
    if await socket.receive_text() == "break":
        raise RuntimeError("broken")
    await socket.close()


def _application(framework: str) -> Any:
    """Found where an instrumentor may have put its own class."""
    if framework == "fastapi":
        app = fastapi.FastAPI()
        app.add_api_route("/status/{status}", _fastapi_answer)
        app.add_api_route("/boom", _fastapi_boom)
        for path in ("/stream", "/broken", "/endless"):
            app.add_api_route(path, _fastapi_stream)
        app.add_api_websocket_route("/socket", _talk)
        return app
    streams = [Route(path, _stream) for path in ("/stream", "/broken", "/endless")]
    return applications.Starlette(
        routes=[
            Route("/status/{status}", _answer),
            Route("/boom", _boom),
            *streams,
            WebSocketRoute("/socket", _talk),
        ]
    )


def _fastapi_answer(status: int) -> None:
    """In a thread, as FastAPI runs what is not async."""
    if status >= 400:
        raise fastapi.HTTPException(status)


def _fastapi_boom() -> None:
    raise RuntimeError("boom")


async def _fastapi_stream(request: Request) -> StreamingResponse:
    return StreamingResponse(_chunks(request.url.path))


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """The same application as a function, without a framework."""
    if scope["type"] == "websocket":
        await _talk(WebSocket(scope, receive, send))
        return
    path = scope["path"]
    if path == "/boom":
        raise RuntimeError("boom")
    if path in ("/stream", "/broken", "/endless"):
        await StreamingResponse(_chunks(path))(scope, receive, send)
    else:
        status = int(path.removeprefix("/status/")) if path.startswith("/status/") else 404
        await Response(status_code=status)(scope, receive, send)
