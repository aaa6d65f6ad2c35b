"""The server span of a request, wherever it lies: around the audit middleware, or somewhere inside of it.

A span inside has ended, or is out of sight, when the event is recorded. OpenTelemetry's own ASGI middleware, which its
instrumentors put into applications, is therefore watched: it has a hook for the span that it begins. The spans of other
tracers are found where the application sends or receives.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import UNSET
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext, SpanKind, get_current_span

from otel_audit.fast_line import SpanIds
from otel_audit.integrations.asgi.types import Receive, Scope, Send

__all__ = ["ServerSpan", "watch_opentelemetry"]

_MODULE: Final = "opentelemetry.instrumentation.asgi"
_KEY: Final = "otel_audit.server_span"


class ServerSpan:
    """The ids of the server span of one request, as far as they are known.

    OpenTelemetry's middleware has the last word, of several the outermost. Without it the server span is the one that
    is active around the audit middleware, else the first one that is seen inside of it. Never one of another process:
    where nothing is traced here, the span that the client named may be the active one.
    """

    __slots__ = ("_is_noted", "ids")

    def __init__(self, ids: SpanIds, *, is_noted: bool) -> None:
        self.ids = ids
        self._is_noted = is_noted

    @classmethod
    def of(cls, scope: Scope) -> ServerSpan:
        """Return the one of this scope, from where it is reached until `forget`."""
        found: ServerSpan | None = scope.get(_KEY)
        if found is None:
            span = get_current_span()
            ids = _NO_SPAN if span is INVALID_SPAN else _own(span.get_span_context())
            found = scope[_KEY] = cls(ids, is_noted=False)
        return found

    @staticmethod
    def note(span: SpanContext, scope: Scope) -> None:
        """OpenTelemetry's middleware has begun this span for the request, outside of ours or inside."""
        found: ServerSpan | None = scope.get(_KEY)
        if found is None:
            scope[_KEY] = ServerSpan(_own(span), is_noted=True)
        elif not found._is_noted:
            found.ids, found._is_noted = _own(span), True

    @staticmethod
    def forget(scope: Scope) -> None:
        """The request is over."""
        scope.pop(_KEY, None)

    def look(self) -> None:
        """Where nothing is known yet, it is the span that is active here, inside the application, or its parent."""
        if self.ids.trace_id is UNSET and (span := get_current_span()) is not INVALID_SPAN:
            self.ids = _own(_of_request(span))


_NO_SPAN: Final = SpanIds()


def _own(span: SpanContext) -> SpanIds:
    return _NO_SPAN if span.is_remote else SpanIds.of(span)


def _of_request(span: Span) -> SpanContext:
    """The parent of a span that is a part of the request, such as one named `http receive`; else the span itself."""
    parent: SpanContext | None = getattr(span, "parent", None)  # a span that is not sampled does not tell it
    if parent is None or parent.is_remote or getattr(span, "kind", None) is SpanKind.SERVER:
        return span.get_span_context()
    return parent


class _Hook:
    """A `server_request_hook` of OpenTelemetry's middleware: it notes the span, and calls the one that was there."""

    __slots__ = ("_next",)

    def __init__(self, following: Callable[[Span, Scope], None] | None) -> None:
        self._next = following

    def __call__(self, span: Span, scope: Scope) -> None:
        ServerSpan.note(span.get_span_context(), scope)
        if self._next is not None:
            self._next(span, scope)


_watched: type | None = None


def watch_opentelemetry() -> None:
    """From here on OpenTelemetry's middleware, if it is imported by now, notes the span of each request.

    To be called before each request, since the import may come late. The class is changed, as an application may have
    built its middleware long ago; each of them gets the hook at its next request.
    """
    global _watched
    kind = getattr(sys.modules.get(_MODULE), "OpenTelemetryMiddleware", None)
    if kind is None or kind is _watched:
        return
    _watched = kind
    original: Callable[..., Awaitable[None]] = kind.__call__

    @functools.wraps(original)
    async def call(middleware: Any, scope: Scope, receive: Receive, send: Send) -> None:
        # A release without the attribute has its spans looked for as those of any other tracer.
        with contextlib.suppress(AttributeError):
            if type(hook := middleware.server_request_hook) is not _Hook:
                middleware.server_request_hook = _Hook(hook if callable(hook) else None)
        return await original(middleware, scope, receive, send)

    kind.__call__ = call
