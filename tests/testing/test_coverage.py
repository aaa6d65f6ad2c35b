"""Every route is called, and those that leave no event are named. Tools: tests/environments/mcp/test_coverage.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket

from otel_audit import AuditLogger, AuditMiddleware
from otel_audit.testing.coverage import AuditCoverage
from otel_audit.testing.events import AuditEvents

FRAMEWORK = ["/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"]


class Seen:
    """The paths that an application was called with."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def around(self, app: Any) -> Callable[..., Any]:
        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                self.paths.append(f"{scope.get('method', 'WEBSOCKET')} {scope['path']}")
            await app(scope, receive, send)

        noted.app = app  # type: ignore[attr-defined]  # as every middleware keeps it
        return noted


def shop() -> FastAPI:
    app, orders, items = FastAPI(), APIRouter(prefix="/orders"), APIRouter()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @orders.delete("/{order}")
    def delete(order: int) -> None:
        raise RuntimeError("no such order")

    @items.post("/items")
    def add() -> None:
        """Nothing is added."""

    @orders.websocket("/{order}/news")
    async def news(socket: WebSocket, order: int) -> None:
        await socket.accept()
        await socket.receive_text()

    orders.include_router(items, prefix="/{order}")
    app.include_router(orders, prefix="/v1")
    app.mount("/files", Starlette(routes=[Route("/{path:path}", plain, methods=["GET", "PUT"])]))
    return app


def plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse("here it is")


def test_every_route_of_every_router_and_mount_is_called(
    audit_trail: AuditLogger, audit_coverage: AuditCoverage
) -> None:
    seen = Seen()

    audit_coverage.every_route(
        seen.around(AuditMiddleware(shop(), audit=audit_trail)), except_for=FRAMEWORK, values={"order": 7}
    )

    assert sorted(seen.paths) == [
        "DELETE /v1/orders/7",
        "GET /files/1",
        "GET /health",
        "POST /v1/orders/7/items",
        "PUT /files/1",
        "WEBSOCKET /v1/orders/7/news",
    ]


def test_the_routes_that_leave_no_event_are_named(audit_trail: AuditLogger, audit_coverage: AuditCoverage) -> None:
    app = AuditMiddleware(shop(), audit=audit_trail, exclude=["/health", "/files/*"])

    with pytest.raises(AssertionError) as failed:
        audit_coverage.every_route(app)

    assert str(failed.value).split("\n")[:4] == [
        "expected an audit event of every route, got none of 3 of 10:",
        "  GET /health",
        "  GET /files/{path:path}",
        "  PUT /files/{path:path}",
    ]
    audit_coverage.every_route(app, except_for=["GET /health", "/files/{path:path}"])


def test_an_exception_that_fits_no_route_is_an_error_of_the_test(audit_coverage: AuditCoverage) -> None:
    with pytest.raises(ValueError, match=r"except_for: expected some of .*/health.*, got /heath"):
        audit_coverage.every_route(shop(), except_for=["/heath"])


def test_an_application_without_routes_is_refused(audit_coverage: AuditCoverage) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        """An application of no framework."""

    with pytest.raises(TypeError, match="expected an application of FastAPI or Starlette"):
        audit_coverage.every_route(bare)


def test_a_stream_without_an_end_and_a_handler_that_hangs_are_left(
    audit_trail: AuditLogger, audit_coverage: AuditCoverage, audit_events: AuditEvents
) -> None:
    async def ticking() -> AsyncIterator[str]:
        while True:
            yield "tick\n"
            await asyncio.sleep(0.01)

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(ticking())

    async def hang(request: Request) -> PlainTextResponse:
        await asyncio.Event().wait()
        return PlainTextResponse("never")

    async def chat(socket: StarletteWebSocket) -> None:
        await socket.accept()
        async for _ in socket.iter_text():
            """Nothing is answered."""

    app = Starlette(routes=[Route("/stream", stream), Route("/hang", hang), WebSocketRoute("/chat", chat)])

    audit_coverage.every_route(AuditMiddleware(app, audit=audit_trail), timeout_s=1)


def test_the_application_is_started_and_shut_down(audit_trail: AuditLogger, audit_coverage: AuditCoverage) -> None:
    life: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        life.append("up")
        yield {"database": "open"}
        life.append("down")

    async def read(request: Request) -> PlainTextResponse:
        life.append(request.state.database)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Mount("/v1", routes=[Route("/read", read)])], lifespan=lifespan)

    audit_coverage.every_route(AuditMiddleware(app, audit=audit_trail))

    assert life == ["up", "open", "down"]


def test_an_application_that_does_not_start_is_said(audit_trail: AuditLogger, audit_coverage: AuditCoverage) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    app = Starlette(routes=[Route("/read", plain)], lifespan=lifespan)

    with pytest.raises(AssertionError, match=r"expected the application to start, got (?s:.*)no database"):
        audit_coverage.every_route(AuditMiddleware(app, audit=audit_trail))


def test_it_works_where_an_event_loop_runs(audit_trail: AuditLogger, audit_coverage: AuditCoverage) -> None:
    async def test() -> None:
        audit_coverage.every_route(AuditMiddleware(shop(), audit=audit_trail))

    asyncio.run(test())
