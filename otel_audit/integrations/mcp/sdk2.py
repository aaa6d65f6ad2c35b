"""The official MCP SDK 2.x: a middleware for its servers, both the low-level one and `MCPServer`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from otel_audit.integrations.mcp.call import EVENT_TYPES, Call, FindPrincipal, recorded, token_of_request
from otel_audit.logger import AuditLogger

__all__ = ["CallMiddleware", "call_of", "insert", "origin_of", "record_calls", "refusal"]


def record_calls(middleware: list[Any], audit: AuditLogger, find_principal: FindPrincipal | None) -> None:
    """Record the calls of a server from now on by adding our middleware to its list, once."""
    if not any(isinstance(each, CallMiddleware) for each in middleware):
        insert(middleware, CallMiddleware(audit, find_principal))


def insert(middleware: list[Any], recorder: Callable[[Any, Any], Awaitable[Any]]) -> None:
    """Insert the recorder inside the SDK's span of the request, and outside everything else."""
    spans = [place for place, each in enumerate(middleware) if type(each).__name__ == "OpenTelemetryMiddleware"]
    middleware.insert(spans[0] + 1 if spans else 0, recorder)


class CallMiddleware:
    """Record tool calls, resource reads and prompts, including those that fail before a handler is found."""

    def __init__(self, audit: AuditLogger, find_principal: FindPrincipal | None = None) -> None:
        self._audit = audit
        self._find_principal = find_principal

    async def __call__(self, ctx: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run one request or notification, as the SDK gives it."""
        self._audit.start()
        if ctx.request_id is None or ctx.method not in EVENT_TYPES:
            return await call_next(ctx)
        return await recorded(
            self._audit,
            call_of(ctx),
            lambda: call_next(ctx),
            refusal=refusal,
            find_principal=self._find_principal,
        )


def call_of(ctx: Any) -> Call:
    """Return the call in the SDK's context of a request. Its parameters are not validated yet."""
    params = ctx.params if isinstance(ctx.params, Mapping) else {}
    target = params.get("uri" if ctx.method == "resources/read" else "name")
    return Call(
        method=ctx.method,
        target=target if isinstance(target, str) else "",
        arguments=params.get("arguments"),
        **origin_of(ctx, params.get("_meta")),
    )


def origin_of(ctx: Any, meta: Any) -> dict[str, Any]:
    """Return the origin of a call, as arguments of `Call`, from the request context of the SDK or of FastMCP."""
    return {
        "meta": meta if isinstance(meta, Mapping) else {},
        "jsonrpc_id": None if ctx.request_id is None else str(ctx.request_id),
        "request": ctx.request,
        "token": _ambient_token() if ctx.request is None else token_of_request(ctx.request),
        "client": getattr(ctx.session.client_params, "client_info", None),
        "protocol_version": ctx.protocol_version,
    }


def refusal(message: str) -> Exception:
    """Return the error that a client gets for a call that must not run."""
    from mcp import MCPError
    from mcp.types import INTERNAL_ERROR

    error: Exception = MCPError(code=INTERNAL_ERROR, message=message)
    return error


def _ambient_token() -> Any:
    from mcp.server.auth.middleware.auth_context import get_access_token

    return get_access_token()
