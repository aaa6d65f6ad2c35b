"""Find the server span of a request, whether it is around the audit middleware or somewhere inside it.

A span inside has ended, or is out of sight, when the event is recorded. OpenTelemetry's own ASGI middleware, which its
instrumentors put into applications, has a hook for the span that it begins, and we use that. The spans of other tracers
are found when the application sends or receives.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from opentelemetry.context import get_current
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext, SpanKind, get_current_span

from otel_audit.fast_line import SpanIds, span_ids
from otel_audit.integrations.asgi.scope import Receive, Scope, Send

__all__ = ["NO_SPAN", "OPENTELEMETRY_ASGI", "ids_of", "span_around", "span_inside", "watch_opentelemetry"]

NO_SPAN: Final = SpanIds()

OPENTELEMETRY_ASGI: Final = "opentelemetry.instrumentation.asgi"

Note = Callable[[SpanContext, Scope], None]


def ids_of(span: SpanContext) -> SpanIds:
    """Return the ids of a span of this process. A remote span, named by the client, is not believed."""
    return NO_SPAN if span[2] else span_ids(span)  # `is_remote`, without the call of its property


def span_around() -> SpanIds:
    """Return the span that is active here, around the audit middleware."""
    context = get_current()
    span = get_current_span(context) if context else INVALID_SPAN  # nothing is traced in an empty context
    return NO_SPAN if span is INVALID_SPAN else ids_of(span.get_span_context())


def span_inside() -> SpanIds:
    """Return the span active here, inside the application, or its parent if it covers only part of the request."""
    span = get_current_span()
    if span is INVALID_SPAN:
        return NO_SPAN
    parent: SpanContext | None = getattr(span, "parent", None)  # spans that are not sampled do not have it
    if parent is None or parent.is_remote or getattr(span, "kind", None) is SpanKind.SERVER:
        return ids_of(span.get_span_context())
    return ids_of(parent)  # the active one is a span such as `http receive`


class _Hook:
    """A `server_request_hook` of OpenTelemetry's middleware that notes the span and calls the original hook."""

    __slots__ = ("_next", "_note")

    def __init__(self, note: Note, following: Callable[[Span, Scope], None] | None) -> None:
        self._note = note
        self._next = following

    def __call__(self, span: Span, scope: Scope) -> None:
        self._note(span.get_span_context(), scope)
        if self._next is not None:
            self._next(span, scope)


_watched: type | None = None


def watch_opentelemetry(note: Note) -> None:
    """From now on, note the span that OpenTelemetry's middleware begins for each request, if it is imported by now.

    Call this before each request, since the import may come late. It changes the class, since an application may have
    built its middleware long ago. Each instance gets the hook at its next request.
    """
    global _watched
    kind = getattr(sys.modules.get(OPENTELEMETRY_ASGI), "OpenTelemetryMiddleware", None)
    if kind is None or kind is _watched:
        return
    _watched = kind
    original: Callable[..., Awaitable[None]] = kind.__call__

    @functools.wraps(original)
    async def call(middleware: Any, scope: Scope, receive: Receive, send: Send) -> None:
        # In a release without this attribute, spans are found like those of any other tracer.
        with contextlib.suppress(AttributeError):
            if type(hook := middleware.server_request_hook) is not _Hook:
                middleware.server_request_hook = _Hook(note, hook if callable(hook) else None)
        return await original(middleware, scope, receive, send)

    kind.__call__ = call
