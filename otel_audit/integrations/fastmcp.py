"""FastMCP 4, the package `fastmcp`: a middleware that sees each call with its own exceptions."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from otel_audit.event import AuditEvent, Outcome
from otel_audit.integrations.fastmcp_authz import decided_once
from otel_audit.integrations.mcp_call import EVENT_TYPES, Call, FindPrincipal
from otel_audit.integrations.mcp_recording import name_error, recorded, set_meanwhile
from otel_audit.integrations.mcp_sdk2 import origin_of, refusal
from otel_audit.logger import AuditLogger

__all__ = ["CallRecorder", "install", "recorded_by_outer_server"]

_METHODS: Final = frozenset({"call_tool", "read_resource", "render_prompt"})
_MOUNTS: Final = "fastmcp.server.providers.fastmcp_provider"

_recorded_by: ContextVar[AuditLogger | None] = ContextVar("otel_audit_fastmcp_recorded_by", default=None)


def install(server: Any, audit: AuditLogger, find_principal: FindPrincipal | None) -> None:
    """The recorder is the outermost of the server's middleware, so that what another one refuses is recorded too."""
    from fastmcp.server.middleware import Middleware

    if not any(isinstance(each, CallRecorder) for each in server.middleware):
        kind = type("AuditMiddleware", (CallRecorder, Middleware), {})  # made here: the package is not ours to need
        server.middleware.insert(0, kind(audit, find_principal))


class CallRecorder:
    """Records tool calls, resource reads and prompts: those of clients, and those that code makes on the server.

    A call that a tool makes on a server is an event of its own, with the tool's as its parent. One that is handed on to
    a mounted server is not, where the outer server has recorded it with the same logger.
    """

    def __init__(self, audit: AuditLogger, find_principal: FindPrincipal | None = None) -> None:
        self._audit = audit
        self._find_principal = find_principal

    async def __call__(self, context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """One message. FastMCP calls this once for each, whether it reaches a tool or fails before."""
        self._audit.start()
        if context.type != "request" or context.method not in EVENT_TYPES:
            return await call_next(context)
        if recorded_by_outer_server() is self._audit:
            return await call_next(context)
        with set_meanwhile(_recorded_by, self._audit), decided_once():
            return await recorded(
                self._audit,
                _call(context),
                lambda: call_next(context),
                refusal=refusal,
                find_principal=self._find_principal,
                on_error=_tool_failed if context.method == "tools/call" else _failed,
            )


def recorded_by_outer_server() -> AuditLogger | None:
    """The logger that has the call of which the one that begins here is a part; None where it is a call of its own.

    It is a part where the outer server hands it on to one that is mounted on it. The stack says it, and nothing else: a
    tool that calls another server itself does so for the same request of the same client.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in _METHODS and frame.f_globals.get("__name__") == "fastmcp.server.server":
            caller = frame.f_back
            is_mounted = caller is not None and caller.f_globals.get("__name__") == _MOUNTS
            return _recorded_by.get() if is_mounted else None
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return None


def _call(context: Any) -> Call:
    """The message, which may be one that a tool made, and the client's request that it is part of."""
    message = context.message if isinstance(context.message, Mapping) else vars(context.message)
    target = message.get("uri" if context.method == "resources/read" else "name")
    live = context.fastmcp_context.request_context if context.fastmcp_context is not None else None
    return Call(
        method=context.method,
        target="" if target is None else str(target),
        arguments=message.get("arguments"),
        **({"is_local": True} if live is None else origin_of(live, live.meta)),
    )


def _failed(event: AuditEvent, error: BaseException) -> None:
    from fastmcp.exceptions import AuthorizationError

    cause = error.__cause__ if isinstance(error, Exception) else None  # FastMCP wraps what a tool raises
    if isinstance(error, AuthorizationError) or isinstance(cause, PermissionError):
        event.outcome = event.outcome or Outcome.DENIED.value
    if _is_time_out(cause):
        event.outcome = event.outcome or Outcome.CANCELLED.value
        event.error_type = event.error_type or TimeoutError.__qualname__
    if cause is not None:
        event.error_type = event.error_type or type(cause).__qualname__
    name_error(event, error)


def _is_time_out(cause: BaseException | None) -> bool:
    """A time-out in the tool, or the end of the time that it has on the server: FastMCP makes an `MCPError` of that."""
    from mcp import MCPError

    ended = cause.__context__ if isinstance(cause, MCPError) else cause
    return isinstance(ended, TimeoutError)


def _tool_failed(event: AuditEvent, error: BaseException) -> None:
    """FastMCP answers its own exceptions as an error of the tool, all others as one of the protocol."""
    from fastmcp.exceptions import DisabledError, FastMCPError, NotFoundError

    _failed(event, error)
    if isinstance(error, FastMCPError | NotFoundError | DisabledError):
        event.outcome = event.outcome or "mcp_error"
