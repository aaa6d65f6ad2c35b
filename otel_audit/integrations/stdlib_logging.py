"""Log records of the standard library as audit events, including Feast's JSON lines on `feast.audit`.

Some facts about a log record are known only where it was made: its text, its exception, the active span and the event
under way. A queue between the application and the handler loses them: `QueueHandler` writes exception and traceback
into the text, and its listener runs in a thread without a span. `AuditCapture`, a filter, keeps them in the record.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context

from otel_audit.configuration import configure
from otel_audit.delivery.suppression import is_exporting
from otel_audit.errors import ConfigError
from otel_audit.event import AuditEvent, as_event
from otel_audit.fast_line import TimestampText
from otel_audit.integrations.feast import FEAST_LOGGER, event_of_line
from otel_audit.integrations.parent import parent_id
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.sinks import OWN_LINE

__all__ = ["AuditCapture", "AuditHandler", "Caller", "caller_of"]


_CAPTURED: Final = "_otel_audit_caller"  # formatters that write all extra fields skip names with an underscore
_TRACEBACK: Final = re.compile(r"(?:^|\n)[ |+]*(?:Exception Group )?(?:Traceback|Stack) \(most recent call last\):")
_LEFT_OUT: Final = "[traceback left out]"


class AuditCapture(logging.Filter):
    """A filter for a `QueueHandler` that stores in each record the facts that only its caller's thread knows.

    Every record passes. Only the class of an exception is stored, never its message. The record can still be pickled,
    and read without this package.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Store the caller's facts in the record, and return True. Source: `logging.Filter.filter`."""
        if _CAPTURED not in record.__dict__:
            # A plain tuple, since unpickling a class of ours would need this package.
            record.__dict__[_CAPTURED] = tuple(_here(record))
        return True


class Caller(NamedTuple):
    """The facts that the logging thread knew. Without a span, its ids are 0."""

    text: str
    error_type: str | None
    trace_id: int
    span_id: int
    trace_flags: int
    parent_id: str | None

    @property
    def context(self) -> Context:
        """A context that holds only the span."""
        span = SpanContext(self.trace_id, self.span_id, is_remote=False, trace_flags=TraceFlags(self.trace_flags))
        return set_span_in_context(NonRecordingSpan(span), Context())


def caller_of(record: logging.LogRecord) -> Caller:
    """Return the captured facts, or else those of this thread with the ids that OTel's logging instrumentation added.

    The text has no traceback, since a traceback ends with the message of its exception.
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
    """Return the caller with the span of the record. Source: opentelemetry-instrumentation-logging, `otelTraceID`."""
    try:
        trace_id, span_id = int(record.__dict__["otelTraceID"], 16), int(record.__dict__["otelSpanID"], 16)
    except (KeyError, ValueError, TypeError):
        return caller
    if (trace_id, span_id) == (caller.trace_id, caller.span_id):  # the caller also has all its flags
        return caller
    sampled = TraceFlags.SAMPLED if record.__dict__.get("otelTraceSampled") is True else TraceFlags.DEFAULT
    return caller._replace(trace_id=trace_id, span_id=span_id, trace_flags=sampled)


def _text_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit the text; it is still an event
        return record.msg if isinstance(record.msg, str) else "[unreadable message]"


def _error_type_of(record: logging.LogRecord) -> str | None:
    """Return the class of the exception, named as in `operation`."""
    info = record.exc_info
    kind = info[0] if isinstance(info, tuple) and info else None
    return kind.__qualname__ if isinstance(kind, type) else None


def _without_traceback(text: str) -> str:
    found = _TRACEBACK.search(text)
    return text if found is None else f"{text[: found.start()]}\n{_LEFT_OUT}".lstrip("\n")


_FIELDS: Final = frozenset(AuditEvent.model_fields)


class AuditHandler(logging.Handler):
    """Record each log record that it receives as one audit event. Any thread; never raises into the application.

    Without `audit` it opens its own journal with `configure(**settings)`, and closes it when the handler is closed.
    `event_type` applies to records whose `extra={"audit": {...}}` gives none. On the loggers `line_loggers`, a JSON
    line of Feast, in either schema, is read as the event that it holds. The text of any other logger is never read as
    an event, since a stranger may have written it.

    Lines of `LoggerAuditSink`, and records logged during an export, are passed over. If the loss rule is `closed`, a
    loss is counted and reported as `logging` does, and not raised.

    Raises:
        ConfigError: both `audit` and settings are given, or a setting is wrong.
        JournalUnwritable: as `configure`.
    """

    def __init__(
        self,
        audit: AuditLogger | None = None,
        *,
        level: int | str = logging.NOTSET,
        event_type: str = "log.record",
        line_loggers: Collection[str] = (FEAST_LOGGER,),
        **settings: Any,
    ) -> None:
        if audit is not None and settings:
            raise ConfigError(
                f"AuditHandler: expected either audit or settings, got both ({', '.join(sorted(settings))}); "
                "give the settings to configure()"
            )
        self._audit = configure(**settings) if audit is None else audit
        self._owns_audit = audit is None
        self._event_type = event_type
        self._line_loggers = frozenset((line_loggers,) if isinstance(line_loggers, str) else line_loggers)
        self._timestamps = TimestampText()
        self._notices = Notices()
        super().__init__(level)

    def handle(self, record: logging.LogRecord) -> bool:
        """Do what any handler does, but without its lock, so that threads can share one sync of the disk."""
        kept: object = self.filter(record)  # since Python 3.12 a filter may return another record
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Record the event, unless the record itself is an audit event or comes from an export."""
        if OWN_LINE in record.__dict__ or is_exporting():
            return
        try:
            caller = caller_of(record)
            self._audit.log(as_event(self._fields(record, caller)), context=caller.context)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say on stderr, once a minute, that a record was lost, but not its text, which may hold a secret.

        As in `logging`, nothing is said if `logging.raiseExceptions` is false.
        """
        if logging.raiseExceptions:
            error = sys.exc_info()[1]
            self._notices.say(
                "record",
                f"log records are lost: {record.pathname}:{record.lineno}, logger {record.name!r}: expected to record "
                f"an event, got {type(error).__name__}",
            )

    def close(self) -> None:
        """Close the journal if it is the handler's own. Later records still reach the journal."""
        try:
            if self._owns_audit:
                self._audit.close()
        finally:
            super().close()

    def _fields(self, record: logging.LogRecord, caller: Caller) -> dict[str, Any]:
        fields = event_of_line(caller.text) if record.name in self._line_loggers else None
        if fields is None:
            fields = self._of_record(record, caller)
        fields["timestamp"] = fields.get("timestamp") or self._time_of(record)
        fields["parent_id"] = fields.get("parent_id") or caller.parent_id
        return fields

    def _of_record(self, record: logging.LogRecord, caller: Caller) -> dict[str, Any]:
        fields, attributes = _given(record.__dict__.get("audit"))
        return {
            **fields,
            "event_type": fields.get("event_type") or self._event_type,
            "detail": fields.get("detail") or caller.text,
            "error_type": fields.get("error_type") or caller.error_type,
            "attributes": {"log.logger": record.name, "log.level": record.levelname, **attributes},
        }

    def _time_of(self, record: logging.LogRecord) -> str:
        """Return the time of logging, which a queue may have made long ago. If it is not a time, return an empty text.

        An empty text means the time of recording.
        """
        try:
            return self._timestamps.of(round(record.created * 1e6) * 1000)  # a float holds microseconds at most
        except Exception:
            return ""


def _given(audit: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the event fields of `extra={"audit": ...}`, and all other values as attributes."""
    try:
        given: Any = audit.model_dump() if hasattr(audit, "model_dump") else audit
        if not isinstance(given, Mapping):
            return {}, ({} if given is None else {"audit": given})
        attributes = given.get("attributes")
        others = {str(key): value for key, value in given.items() if key not in _FIELDS}
        named = attributes if isinstance(attributes, Mapping) else {"attributes": attributes} if attributes else {}
        return {key: value for key, value in given.items() if key in _FIELDS}, {**others, **named}
    except Exception as error:  # raised by the caller's own object; the record is still an event
        return {}, {"audit": f"[unreadable: {type(error).__name__}]"}
