"""The official MCP SDK 1.x: its low-level server, and the FastMCP class in it.

In a session over HTTP, the SDK runs every call in a task of the session's first request, with the span, the token and
all other ContextVars of that request. So ContextVars are not used here. The facts about a call come from its own
request, and the call runs under the span of that request.

The SDK refuses some requests before it looks for a handler: those with malformed parameters, or in a session that has
not begun. It does so in the loop that reads the streams of a session, and calls no hook. Those streams are arguments of
`Server.run`, so they are watched for a request that is answered with an error although no handler has taken it.
"""

from __future__ import annotations

import contextlib
import functools
from collections import UserDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry.trace import Span, get_current_span

from otel_audit.errors import described
from otel_audit.integrations.mcp.call import EVENT_TYPES, Call, FindPrincipal, recorded, set_meanwhile, token_of_request
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices

__all__ = [
    "AuditedHandlers",
    "Refusals",
    "WatchedReading",
    "WatchedWriting",
    "audit_handlers",
    "is_audited",
    "record_calls",
    "refusals_of_session",
    "run_watched",
    "span_of_session",
]


Record = Callable[[Call, Any], Awaitable[None]]

refusals_of_session: Final[ContextVar[Refusals | None]] = ContextVar("otel_audit_mcp_refusals", default=None)
"""The refusals of the session in which a handler runs."""


class Refusals:
    """The requests of one session that no handler has taken yet. `record` gets each refused one and its error.

    `span` is the span that was active when the session began, and stays active in all of its calls.
    """

    def __init__(self, record: Record, span: Span) -> None:
        self.span = span
        self._record = record
        self._waiting: dict[Any, Any] = {}
        self._notices = Notices()

    def came(self, item: Any) -> None:
        """Note a message of the client. Exceptions of the transport are ignored."""
        message: Any = getattr(getattr(item, "message", None), "root", None)
        if getattr(message, "method", None) in EVENT_TYPES and hasattr(message, "id"):
            self._waiting[message.id] = item

    def was_taken(self, request_id: Any) -> None:
        """Note that a handler records this request."""
        self._waiting.pop(request_id, None)

    async def was_answered(self, item: Any) -> None:
        """Record a message of the server if it refuses a request that no handler has taken."""
        from mcp.types import INVALID_PARAMS, METHOD_NOT_FOUND, JSONRPCError

        answer = item.message.root
        if not isinstance(answer, JSONRPCError) or answer.error.code not in (INVALID_PARAMS, METHOD_NOT_FOUND):
            return  # if a request is cancelled before its handler runs, the handler still makes the event
        request = self._waiting.pop(answer.id, None)
        if request is None:
            return
        try:
            await self._record(_refused_call(request), answer.error)
        except Exception as failure:  # the client must get its answer regardless
            self._notices.say("refusal", f"a refused call could not be recorded: {described(failure)}")


def span_of_session() -> Span:
    """Return the span that every call of this session inherits, or the active one if the session began unwatched."""
    session = refusals_of_session.get()
    return get_current_span() if session is None else session.span


class _Watched:
    """A stream of a session, wrapped so that all of its methods still work."""

    def __init__(self, stream: Any, refusals: Refusals) -> None:
        self._stream = stream
        self._refusals = refusals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> Any:
        return await self._stream.__aexit__(kind, error, at)


class WatchedReading(_Watched):
    """The stream that a session reads from."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        item = await self._stream.__anext__()
        self._refusals.came(item)
        return item


class WatchedWriting(_Watched):
    """The stream that a session writes to."""

    async def send(self, item: Any) -> None:
        """Send a message, after recording it if it is a refusal."""
        await self._refusals.was_answered(item)
        await self._stream.send(item)


def _refused_call(item: Any) -> Call:
    """Return the call in a message with unvalidated parameters."""
    message = item.message.root
    params: Mapping[str, Any] = message.params or {}
    meta, target = params.get("_meta"), params.get("uri" if message.method == "resources/read" else "name")
    request = getattr(item.metadata, "request_context", None)
    return Call(
        method=message.method,
        target=target if isinstance(target, str) else "",
        arguments=params.get("arguments"),
        meta=meta if isinstance(meta, Mapping) else {},
        jsonrpc_id=str(message.id),
        request=request,
        token=token_of_request(request),
        inherited=None if request is None else span_of_session(),
    )


Handler = Callable[[Any], Awaitable[Any]]

_under_way: ContextVar[object] = ContextVar("otel_audit_mcp_under_way", default=None)


def record_calls(server: Any, audit: AuditLogger, find_principal: FindPrincipal | None) -> None:
    """Record the calls of this low-level server from now on, including those of handlers that are added later.

    Sessions that already run are recorded too, except for requests refused before any handler.
    """
    if not is_audited(server):
        audit_handlers(server, audit, find_principal, lambda: True)
        server.run = functools.partial(run_watched, server, server.run)


def is_audited(server: Any) -> bool:
    """Return True if the calls of this low-level server are recorded."""
    return isinstance(server.request_handlers, AuditedHandlers) and server.request_handlers.is_on()


def audit_handlers(
    server: Any, audit: AuditLogger, find_principal: FindPrincipal | None, is_on: Callable[[], bool]
) -> None:
    """Make the handlers of this server, which record nothing yet, record their calls as long as `is_on`."""
    handlers = server.request_handlers
    inner = handlers.data if isinstance(handlers, AuditedHandlers) else handlers
    server.request_handlers = AuditedHandlers(inner, audit, find_principal, is_on)


async def run_watched(
    server: Any, run: Callable[..., Awaitable[None]], /, read_stream: Any, write_stream: Any, *args: Any, **kwargs: Any
) -> None:
    """Run a session of this server, and also record the requests that are refused before any handler."""
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
    """The handlers of a server by type of request. A handler that is looked up here records its calls.

    The stored handlers themselves are unchanged, so that handlers may be added or wrapped by others at any time. The
    SDK's own task support keeps a reference to the original mapping.
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
        """Record a call that the SDK refused with this error before any handler."""
        from mcp import McpError

        async def refused() -> None:
            raise McpError(error)

        if self.is_on():
            with contextlib.suppress(Exception):  # that error, or one from `principal=`; both are recorded by then
                await recorded(self.audit, call, refused, refusal=_refusal, find_principal=self._find_principal)

    def _recording(self, kind: Any, handler: Handler) -> Handler:
        method = kind.model_fields["method"].default if hasattr(kind, "model_fields") else None
        if method not in EVENT_TYPES or not self.is_on():
            return handler

        async def recording(request: Any) -> Any:
            context = _context()
            if context is not None and _under_way.get() is context:
                return await handler(request)  # another wrapper looked it up here, and the outer one records
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
            return getattr(answer, "root", answer)  # the result proper is inside

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
