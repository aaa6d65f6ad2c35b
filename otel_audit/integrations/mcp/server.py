"""`audit_server`, which finds out which SDK a server uses and lets the module for that SDK record its calls."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

from otel_audit.integrations.lease import Instrumentation
from otel_audit.integrations.mcp import fastmcp, sdk1, sdk2
from otel_audit.integrations.mcp.call import FindPrincipal, note_contexts
from otel_audit.integrations.parent import current_event
from otel_audit.logger import AuditLogger

__all__ = ["audit_server", "current_event"]

S = TypeVar("S")


def audit_server(server: S, audit: AuditLogger, *, principal: FindPrincipal | None = None) -> S:
    """Record the server's calls from now on, over HTTP and stdio. A second call changes nothing.

    `server` is a low-level `Server` of the official SDK (1.x or 2.x), its `FastMCP` (1.x) or `MCPServer` (2.x), or a
    `FastMCP` of the package `fastmcp` (2 to 4). The same object is returned. The caller is the subject of a verified
    token. If there is none, `principal` is called with the HTTP request (None on stdio) to name the caller. Tools may
    add to their event: see `current_event`.

    Raises:
        TypeError: `server` is none of these, or `principal` is a coroutine function.
    """
    if inspect.iscoroutinefunction(principal) or inspect.iscoroutinefunction(getattr(principal, "__call__", None)):  # noqa: B004
        raise TypeError(
            f"audit_server: expected a plain function as principal, got the coroutine function {principal!r}; await it "
            "in an authentication middleware around the server, whose user is recorded without `principal`"
        )
    given: Any = server
    middleware = getattr(given, "middleware", None)
    of_sdk1 = _of_sdk1(given)
    if of_sdk1 is not None:
        sdk1.record_calls(of_sdk1, audit, principal)
    elif not isinstance(middleware, list):
        raise TypeError(
            "audit_server: expected a server of the official MCP SDK (Server, FastMCP, MCPServer) or of fastmcp "
            f"(FastMCP), got {type(server).__module__}.{type(server).__qualname__}; give it the server object, not its "
            "ASGI app"
        )
    elif hasattr(given, "add_middleware"):
        fastmcp.record_calls(given, audit, principal)
    else:
        sdk2.record_calls(middleware, audit, principal)
    _note_contexts_from_now_on()
    return server


@functools.cache
def _note_contexts_from_now_on() -> None:
    note_contexts(Instrumentation(None))


def _of_sdk1(server: Any) -> Any:
    """Return the low-level server of SDK 1.x that this object is or contains, if any. Releases 2 and 3 of the package
    `fastmcp` are built on one.
    """
    return next(
        (each for each in (server, getattr(server, "_mcp_server", None)) if hasattr(each, "request_handlers")), None
    )
