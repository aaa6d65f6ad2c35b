"""Servers of the official SDK 1.x: the low-level one, and its FastMCP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import mcp.types as types
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from offering import offer
from opentelemetry import trace
from opentelemetry.propagate import extract
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Mount
from tools import NAMES, RESOURCE_URI, TOKENS, Tools

__all__ = ["SERVERS", "asgi_app", "run_stdio"]


class Verifier(TokenVerifier):
    async def verify_token(self, token: str) -> AccessToken | None:
        known = TOKENS.get(token)
        if known is None:
            return None
        claims = {key: known[key] for key in ("iss",) if key in known}
        return AccessToken(
            token=token,
            client_id=known["client_id"],
            scopes=known["scopes"],
            subject=known.get("sub"),
            claims=claims,
        )


def low_level(tools: Tools) -> Server[Any, Any]:
    server: Server[Any, Any] = Server("low-level")

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        return [types.Tool(name=name, inputSchema={"type": "object"}) for name in NAMES]

    @server.call_tool()
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        context = server.request_context

        async def report(progress: float) -> None:
            assert context.meta is not None
            assert context.meta.progressToken is not None
            await context.session.send_progress_notification(
                context.meta.progressToken, progress, related_request_id=str(context.request_id)
            )

        if name in ("wait", "report"):
            arguments = {"report": report}
        if not hasattr(tools, name):
            raise ValueError(f"Unknown tool: {name}")
        return [types.TextContent(type="text", text=await getattr(tools, name)(**arguments))]

    @server.read_resource()
    async def read_resource(uri: Any) -> str:
        if str(uri) != RESOURCE_URI:
            raise ValueError("unknown resource")
        return "rows"

    @server.get_prompt()
    async def get_prompt(name: str, arguments: dict[str, str] | None) -> types.GetPromptResult:
        if name != "explain":
            raise ValueError("unknown prompt")
        text = types.TextContent(type="text", text="explain it")
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])

    return server


def fast(tools: Tools) -> FastMCP:
    server = FastMCP(
        "fast",
        token_verifier=Verifier(),
        auth=AuthSettings(issuer_url=AnyHttpUrl("http://127.0.0.1:9"), resource_server_url=None),
    )
    offer(server, tools, Context)
    return server


SERVERS = {"sdk1-lowlevel": low_level, "sdk1-fastmcp": fast}


def begin_a_span_of_each_call() -> None:
    """As an instrumentation of this SDK does: around the lookup of the handler, with the message as its parent."""
    handle = Server._handle_request

    async def handle_in_span(server: Any, message: Any, req: Any, *rest: Any) -> None:
        meta = getattr(req.params, "meta", None)
        parent = extract(meta.model_dump()) if meta is not None else None
        with trace.get_tracer("instrumentation").start_as_current_span("call", context=parent):
            await handle(server, message, req, *rest)

    Server._handle_request = handle_in_span  # type: ignore[method-assign]  # this is how they do it


def asgi_app(server: Any, transport: str) -> Any:
    if isinstance(server, FastMCP):
        server.settings.stateless_http = transport == "stateless"
        return server.sse_app() if transport == "sse" else server.streamable_http_app()
    manager = StreamableHTTPSessionManager(server, stateless=transport == "stateless")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    return Starlette(
        routes=[Mount("/mcp", app=manager.handle_request)],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(Verifier())),
            Middleware(AuthContextMiddleware),
        ],
        lifespan=lifespan,
    )


async def run_stdio(server: Any) -> None:
    if isinstance(server, FastMCP):
        await server.run_stdio_async()
        return
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
