"""The official MCP SDK 1.x: its low-level server, and the FastMCP class in it.

In a session over HTTP that SDK runs every call in a task of the session's first request, with the span, the token and
all other ContextVars of that one. So nothing is read from them here; what belongs to a call is read from its request,
and a call runs with the span of that.
"""

from __future__ import annotations

import contextlib
import functools
from collections import UserDict
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from opentelemetry.trace import get_current_span

from otel_audit.integrations.mcp_call import EVENT_TYPES, Call, FindPrincipal
from otel_audit.integrations.mcp_caller import token_of_request
from otel_audit.integrations.mcp_recording import recorded, set_meanwhile
from otel_audit.integrations.mcp_sdk1_refusals import (
    Refusals,
    WatchedReading,
    WatchedWriting,
    refusals_of_session,
    span_of_session,
)
from otel_audit.logger import AuditLogger

__all__ = ["AuditedHandlers", "audit_handlers", "install", "is_audited", "run_watched"]

Handler = Callable[[Any], Awaitable[Any]]

_under_way: ContextVar[object] = ContextVar("otel_audit_mcp_under_way", default=None)


def install(server: Any, audit: AuditLogger, find_principal: FindPrincipal | None) -> None:
    """From here on the calls of this low-level server are recorded, also those of handlers that are added later.

    A session that runs already is recorded too, but for what it refuses before any handler.
    """
    if not is_audited(server):
        audit_handlers(server, audit, find_principal, lambda: True)
        server.run = functools.partial(run_watched, server, server.run)


def is_audited(server: Any) -> bool:
    """Whether the calls of this low-level server are recorded."""
    return isinstance(server.request_handlers, AuditedHandlers) and server.request_handlers.is_on()


def audit_handlers(
    server: Any, audit: AuditLogger, find_principal: FindPrincipal | None, is_on: Callable[[], bool]
) -> None:
    """The handlers of this server, of which none records now, do so as long as `is_on`."""
    handlers = server.request_handlers
    inner = handlers.data if isinstance(handlers, AuditedHandlers) else handlers
    server.request_handlers = AuditedHandlers(inner, audit, find_principal, is_on)


async def run_watched(
    server: Any, run: Callable[..., Awaitable[None]], /, read_stream: Any, write_stream: Any, *args: Any, **kwargs: Any
) -> None:
    """A session of this server, in which what is refused before any handler is recorded too."""
    handlers = server.request_handlers
    if isinstance(handlers, AuditedHandlers) and not isinstance(read_stream, WatchedReading):
        handlers.audit.start()
        refusals = Refusals(handlers.record_refusal, get_current_span())
        with set_meanwhile(refusals_of_session, refusals):
            reading, writing = WatchedReading(read_stream, refusals), WatchedWriting(write_stream, refusals)
            await run(reading, writing, *args, **kwargs)
    else:
        await run(read_stream, write_stream, *args, **kwargs)


class AuditedHandlers(UserDict[Any, Handler]):
    """The handlers of a server by type of request; what is looked up records its calls.

    What is stored stays as it is, and where it is, so that a handler may be put in place, or wrapped by others, at any
    time; the SDK's own task support keeps the mapping that was there before.
    """

    def __init__(
        self,
        handlers: MutableMapping[Any, Handler],
        audit: AuditLogger,
        find: FindPrincipal | None,
        is_on: Callable[[], bool],
    ) -> None:
        self.data = handlers  # type: ignore[assignment]  # not copied, as `super().__init__` does
        self.is_on = is_on
        self.audit = audit
        self._find_principal = find

    def __getitem__(self, kind: Any) -> Handler:
        return self._recording(kind, self.data[kind])

    async def record_refusal(self, call: Call, error: Any) -> None:
        """A call that the SDK has refused with this error, before any handler."""
        from mcp import McpError

        async def refused() -> None:
            raise McpError(error)

        if self.is_on():
            with contextlib.suppress(Exception):  # that error, or what `principal=` raised: by then it is recorded
                await recorded(self.audit, call, refused, refusal=_refusal, find_principal=self._find_principal)

    def _recording(self, kind: Any, handler: Handler) -> Handler:
        method = kind.model_fields["method"].default if hasattr(kind, "model_fields") else None
        if method not in EVENT_TYPES or not self.is_on():
            return handler

        async def recording(request: Any) -> Any:
            context = _context()
            if context is not None and _under_way.get() is context:
                return await handler(request)  # looked up and wrapped by others: the outer one records
            session = refusals_of_session.get()
            if session is not None and context is not None:
                session.was_taken(context.request_id)
            with set_meanwhile(_under_way, context):
                return await self._recorded(method, request, context, handler)

        return recording

    async def _recorded(self, method: str, request: Any, context: Any, handler: Handler) -> Any:
        answer: Any = None

        async def run() -> Any:
            nonlocal answer
            answer = await handler(request)
            return getattr(answer, "root", answer)  # what says how it went is inside

        await recorded(
            self.audit,
            _call(method, request.params, context),
            run,
            refusal=_refusal,
            find_principal=self._find_principal,
        )
        return answer


def _refusal(message: str) -> Exception:
    from mcp import McpError
    from mcp.types import INTERNAL_ERROR, ErrorData

    error: Exception = McpError(ErrorData(code=INTERNAL_ERROR, message=message))
    return error


def _context() -> Any:
    from mcp.server.lowlevel.server import request_ctx

    return request_ctx.get(None)


def _call(method: str, params: Any, context: Any) -> Call:
    uri = getattr(params, "uri", None)
    known: dict[str, Any] = {}
    if context is not None:
        handshake = context.session.client_params
        known = {
            "jsonrpc_id": str(context.request_id),
            "request": context.request,
            "token": _ambient_token() if context.request is None else token_of_request(context.request),
            "client": getattr(handshake, "clientInfo", None),
            "protocol_version": str(getattr(handshake, "protocolVersion", "")),
            "inherited": None if context.request is None else span_of_session(),
        }
    return Call(
        method=method,
        target=params.name if uri is None else str(uri),
        arguments=getattr(params, "arguments", None),
        meta=(params.meta.model_extra or {}) if params.meta is not None else {},  # not copied: it may be large
        **known,
    )


def _ambient_token() -> Any:
    from mcp.server.auth.middleware.auth_context import get_access_token

    return get_access_token()
