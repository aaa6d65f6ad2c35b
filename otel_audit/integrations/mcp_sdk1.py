"""The official MCP SDK 1.x: its low-level server, and the FastMCP class in it.

In a session over HTTP that SDK runs every call in a task of the session's first request, with the span, the token and
all other ContextVars of that one. So nothing is read from them here; what belongs to a call is read from its request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from otel_audit.integrations.mcp_call import EVENT_TYPES, Call, FindPrincipal
from otel_audit.integrations.mcp_caller import token_of_request
from otel_audit.integrations.mcp_recording import recorded
from otel_audit.logger import AuditLogger

__all__ = ["AuditedHandlers", "install"]

Handler = Callable[[Any], Awaitable[Any]]

_under_way: ContextVar[object] = ContextVar("otel_audit_mcp_under_way", default=None)


def install(server: Any, audit: AuditLogger, find_principal: FindPrincipal | None) -> None:
    """From here on the calls of this low-level server are recorded, also those of handlers that are added later."""
    if not isinstance(server.request_handlers, AuditedHandlers):
        server.request_handlers = AuditedHandlers(server.request_handlers, audit, find_principal)


class AuditedHandlers(dict[Any, Handler]):
    """The handlers of a server by type of request; what is looked up records its calls.

    What is stored stays as it is, so that a handler may be put in place, or wrapped by others, at any time.
    """

    def __init__(self, handlers: Mapping[Any, Handler], audit: AuditLogger, find: FindPrincipal | None) -> None:
        super().__init__(handlers)
        self._audit = audit
        self._find_principal = find

    def __getitem__(self, kind: Any) -> Handler:
        return self._recording(kind, super().__getitem__(kind))

    def get(self, kind: Any, default: Any = None) -> Any:
        """The recording handler of this type of request, else `default`."""
        return self._recording(kind, super().__getitem__(kind)) if kind in self else default

    def _recording(self, kind: Any, handler: Handler) -> Handler:
        method = kind.model_fields["method"].default if hasattr(kind, "model_fields") else None
        if method not in EVENT_TYPES:
            return handler

        async def recording(request: Any) -> Any:
            context = _context()
            if context is not None and _under_way.get() is context:
                return await handler(request)  # looked up and wrapped by others: the outer one records
            token = _under_way.set(context)
            try:
                return await self._recorded(method, request, context, handler)
            finally:
                _under_way.reset(token)

        return recording

    async def _recorded(self, method: str, request: Any, context: Any, handler: Handler) -> Any:
        from mcp import McpError
        from mcp.types import INTERNAL_ERROR, ErrorData

        answer: Any = None

        async def run() -> Any:
            nonlocal answer
            answer = await handler(request)
            return getattr(answer, "root", answer)  # what says how it went is inside

        await recorded(
            self._audit,
            _call(method, request.params, context),
            run,
            refusal=lambda message: McpError(ErrorData(code=INTERNAL_ERROR, message=message)),
            find_principal=self._find_principal,
        )
        return answer


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
            "owns_task": context.request is None,
        }
    return Call(
        method=method,
        target=params.name if uri is None else str(uri),
        arguments=getattr(params, "arguments", None),
        meta=params.meta.model_dump() if params.meta is not None else {},
        **known,
    )


def _ambient_token() -> Any:
    from mcp.server.auth.middleware.auth_context import get_access_token

    return get_access_token()
