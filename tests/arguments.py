"""What the tests of the logger pass to it: a time, a span, secrets."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context

__all__ = ["NOW_NS", "SECRETS", "SPAN_ID", "TRACE_ID", "in_span", "span_context"]

NOW_NS = 1_790_000_000_123_456_789
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRETS = ["Bearer abcdefghij1234567890XYZ", "password=hunter2hunter2", "https://ann:s3cretpw@host/x", "x" * 5000]


def span_context(*, flags: int = 1) -> trace.SpanContext:
    """The ids above, sampled or not."""
    return trace.SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), False, trace.TraceFlags(flags))


def in_span(*, flags: int = 1) -> Context:
    """A context in which that span is the active one."""
    return trace.set_span_in_context(trace.NonRecordingSpan(span_context(flags=flags)), Context())
