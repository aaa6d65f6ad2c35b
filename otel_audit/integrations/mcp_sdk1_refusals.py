"""Requests that SDK 1.x refuses before it looks for a handler: malformed parameters, or a session that has not begun.

It does so in the loop that reads the streams of a session, and calls nobody. What is seen of it is on those streams,
which are arguments of `Server.run`: a request that came in, and an error in answer to it that no handler has made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry.trace import Span, get_current_span

from otel_audit.failures import described
from otel_audit.integrations.mcp_call import EVENT_TYPES, Call
from otel_audit.integrations.mcp_caller import token_of_request
from otel_audit.notices import Notices

__all__ = ["Refusals", "WatchedReading", "WatchedWriting", "refusals_of_session", "span_of_session"]

Record = Callable[[Call, Any], Awaitable[None]]

refusals_of_session: Final[ContextVar[Refusals | None]] = ContextVar("otel_audit_mcp_refusals", default=None)
"""Those of the session in which a handler runs."""


class Refusals:
    """The requests of one session that no handler has taken yet. `record` gets a refused one, and its error.

    `span` is the one that was active where the session began, and is so in all of its calls.
    """

    def __init__(self, record: Record, span: Span) -> None:
        self.span = span
        self._record = record
        self._waiting: dict[Any, Any] = {}
        self._notices = Notices()

    def came(self, item: Any) -> None:
        """A message of the client; an exception of the transport is none."""
        message: Any = getattr(getattr(item, "message", None), "root", None)
        if getattr(message, "method", None) in EVENT_TYPES and hasattr(message, "id"):
            self._waiting[message.id] = item

    def was_taken(self, request_id: Any) -> None:
        """A handler records it."""
        self._waiting.pop(request_id, None)

    async def was_answered(self, item: Any) -> None:
        """A message of the server. One that is an answer to a request that nobody took is recorded."""
        from mcp.types import INVALID_PARAMS, METHOD_NOT_FOUND, JSONRPCError

        answer = item.message.root
        if not isinstance(answer, JSONRPCError) or answer.error.code not in (INVALID_PARAMS, METHOD_NOT_FOUND):
            return  # of a request that is cancelled before its handler is called, that handler makes the event
        request = self._waiting.pop(answer.id, None)
        if request is None:
            return
        try:
            await self._record(_call(request), answer.error)
        except Exception as failure:  # the client gets its answer all the same
            self._notices.say("refusal", f"a refused call could not be recorded: {described(failure)}")


def span_of_session() -> Span:
    """The span that every call of this session inherits. Of one that began unwatched it is what is active here."""
    session = refusals_of_session.get()
    return get_current_span() if session is None else session.span


class _Watched:
    """A stream of a session, with all that it can do."""

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
        """The event of a refusal is recorded before the client has its answer."""
        await self._refusals.was_answered(item)
        await self._stream.send(item)


def _call(item: Any) -> Call:
    """The call from a message whose parameters may be anything."""
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
