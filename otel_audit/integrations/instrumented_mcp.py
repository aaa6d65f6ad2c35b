"""Servers of the MCP SDKs and of FastMCP that record their calls, though no line of theirs says so.

A server that was given to `audit_server`, with SDK 1.x before it first runs, keeps to that: its logger counts.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from otel_audit.integrations import fastmcp, mcp_sdk1, mcp_sdk2
from otel_audit.integrations.instrumentation import Instrumentation
from otel_audit.integrations.kept_out import is_kept_out
from otel_audit.integrations.mcp_call import EVENT_TYPES, note_contexts

__all__ = ["audit_fastmcp_servers", "audit_sdk_servers"]

CallNext = Callable[[Any], Awaitable[Any]]

# By class of server. A recorder stays in its server, and records again when the class is instrumented anew.
_latest: dict[type, Instrumentation] = {}


def audit_sdk_servers(kind: type, instrumentation: Instrumentation) -> None:
    """The calls of low-level servers of this class are recorded: of those made from here on; with SDK 1.x of all."""
    _latest[kind] = instrumentation

    async def run(original: Callable[..., Awaitable[None]], server: Any, *args: Any, **kwargs: Any) -> None:
        if instrumentation.is_on and not _is_of_fastmcp(server):
            _prepare(server, instrumentation)
        if hasattr(server, "middleware"):
            await original(server, *args, **kwargs)
        else:
            await mcp_sdk1.run_watched(server, functools.partial(original, server), *args, **kwargs)

    def init(original: Callable[..., None], server: Any, *args: Any, **kwargs: Any) -> None:
        original(server, *args, **kwargs)
        if instrumentation.is_on and hasattr(server, "middleware") and not _is_of_fastmcp(server):
            mcp_sdk2.insert(server.middleware, _SdkRecorder(server, kind))

    note_contexts(instrumentation)
    instrumentation.wrap(kind, "run", run)
    instrumentation.wrap(kind, "__init__", init)


def audit_fastmcp_servers(kind: type, instrumentation: Instrumentation) -> None:
    """The calls of servers of this class that are made from here on are recorded."""
    from fastmcp.server.middleware import Middleware

    _latest[kind] = instrumentation
    recorder = type("AutomaticAudit", (_FastMcpRecorder, Middleware), {})

    def init(original: Callable[..., None], server: Any, *args: Any, **kwargs: Any) -> None:
        original(server, *args, **kwargs)
        if instrumentation.is_on and not _has(server.middleware, recorder):
            server.middleware.insert(0, recorder(server, kind))

    async def run(original: Callable[..., Awaitable[None]], server: Any, *args: Any, **kwargs: Any) -> None:
        if instrumentation.is_on and not _has(server.middleware, fastmcp.CallRecorder):
            _ = instrumentation.audit  # a wrong setting ends the server before its first call
        await original(server, *args, **kwargs)

    note_contexts(instrumentation)
    instrumentation.wrap(kind, "__init__", init)
    instrumentation.wrap(kind, "run_async", run)


def _prepare(server: Any, instrumentation: Instrumentation) -> None:
    """It is about to run, over stdio or, with SDK 1.x, for one more session. A wrong setting ends it here."""
    if hasattr(server, "middleware"):
        if not _has(server.middleware, mcp_sdk2.AuditMiddleware):
            _ = instrumentation.audit
    elif not is_kept_out(server) and not mcp_sdk1.is_audited(server):
        mcp_sdk1.audit_handlers(server, instrumentation.audit, None, lambda: instrumentation.is_on)


class _SdkRecorder:
    """Middleware of a server of SDK 2.x that records, unless `audit_server` has put another one beside it."""

    def __init__(self, server: Any, kind: type) -> None:
        self._server = server
        self._kind = kind

    async def __call__(self, ctx: Any, call_next: CallNext) -> Any:
        instrumentation = _latest[self._kind]
        if not instrumentation.is_on or _has(self._server.middleware, mcp_sdk2.AuditMiddleware):
            return await call_next(ctx)
        return await mcp_sdk2.AuditMiddleware(instrumentation.audit)(ctx, call_next)


class _FastMcpRecorder:
    """Middleware of a FastMCP server that records, unless `audit_server` or the server it is mounted on does."""

    def __init__(self, server: Any, kind: type) -> None:
        self._server = server
        self._kind = kind

    async def __call__(self, context: Any, call_next: CallNext) -> Any:
        instrumentation = _latest[self._kind]
        if not instrumentation.is_on or context.type != "request" or context.method not in EVENT_TYPES:
            return await call_next(context)
        if _has(self._server.middleware, fastmcp.CallRecorder) or fastmcp.recorded_by_outer_server() is not None:
            return await call_next(context)
        return await fastmcp.CallRecorder(instrumentation.audit)(context, call_next)


def _has(middleware: list[Any], kind: type) -> bool:
    return any(isinstance(each, kind) for each in middleware)


def _is_of_fastmcp(server: Any) -> bool:
    """FastMCP's servers hold one of the SDK, and have an instrumentor of their own."""
    return type(server).__module__.partition(".")[0] == "fastmcp"
