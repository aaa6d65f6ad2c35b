"""What is known of a log record only where it was made: its text, its exception, the active span, the event under way.

A queue between the application and the handler takes all of it away: `QueueHandler` writes exception and traceback
into the text, and its listener runs in a thread with no span. `AuditCapture`, a filter, keeps it in the record.
"""

from __future__ import annotations

import logging
import re
from typing import Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context

from otel_audit.integrations.parent import parent_id

__all__ = ["AuditCapture", "Caller", "caller_of"]

_CAPTURED: Final = "_otel_audit_caller"  # with an underscore: formatters that write all extra fields leave it out
_TRACEBACK: Final = re.compile(r"(?:^|\n)[ |+]*(?:Exception Group )?(?:Traceback|Stack) \(most recent call last\):")
_LEFT_OUT: Final = "[traceback left out]"


class AuditCapture(logging.Filter):
    """Lets every record pass, and keeps in it what only its caller's thread knows. For a `QueueHandler`, as a filter.

    Of an exception that is its class, never its message. The record can be pickled, and read without this package.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep with the record who logged it; always true. Source: `logging.Filter.filter`."""
        if _CAPTURED not in record.__dict__:
            # A plain tuple: a class of ours could be read back from a pickle only where this package is installed.
            record.__dict__[_CAPTURED] = tuple(_here(record))
        return True


class Caller(NamedTuple):
    """What the thread that logged knew. Without a span its ids are 0."""

    text: str
    error_type: str | None
    trace_id: int
    span_id: int
    trace_flags: int
    parent_id: str | None

    @property
    def context(self) -> Context:
        """A context with the span alone."""
        span = SpanContext(self.trace_id, self.span_id, is_remote=False, trace_flags=TraceFlags(self.trace_flags))
        return set_span_in_context(NonRecordingSpan(span), Context())


def caller_of(record: logging.LogRecord) -> Caller:
    """What was captured; else what this thread knows, and what OTel's logging instrumentation put into the record.

    The text has no traceback, which ends in the message of its exception.
    """
    captured = record.__dict__.get(_CAPTURED)
    caller = Caller(*captured) if captured is not None else _with_ids_of_otel(_here(record), record)
    return caller._replace(text=_without_traceback(caller.text))


def _here(record: logging.LogRecord) -> Caller:
    span = get_current_span().get_span_context()
    return Caller(
        _text_of(record), _error_type_of(record), span.trace_id, span.span_id, int(span.trace_flags), parent_id()
    )


def _with_ids_of_otel(caller: Caller, record: logging.LogRecord) -> Caller:
    """With the span under which the record was made. Source: opentelemetry-instrumentation-logging, `otelTraceID`."""
    try:
        trace_id, span_id = int(record.__dict__["otelTraceID"], 16), int(record.__dict__["otelSpanID"], 16)
    except (KeyError, ValueError, TypeError):
        return caller
    if (trace_id, span_id) == (caller.trace_id, caller.span_id):  # all its flags are known
        return caller
    sampled = TraceFlags.SAMPLED if record.__dict__.get("otelTraceSampled") is True else TraceFlags.DEFAULT
    return caller._replace(trace_id=trace_id, span_id=span_id, trace_flags=sampled)


def _text_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not go with the text: an event all the same
        return record.msg if isinstance(record.msg, str) else "[unreadable message]"


def _error_type_of(record: logging.LogRecord) -> str | None:
    """The class of the exception, as `operation` names it."""
    info = record.exc_info
    kind = info[0] if isinstance(info, tuple) and info else None
    return kind.__qualname__ if isinstance(kind, type) else None


def _without_traceback(text: str) -> str:
    found = _TRACEBACK.search(text)
    return text if found is None else f"{text[: found.start()]}\n{_LEFT_OUT}".lstrip("\n")
