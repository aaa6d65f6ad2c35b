"""Log records of the standard library as audit events, Feast's JSON lines on `feast.audit` among them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping
from typing import Any, Final

from otel_audit.configuration import configure
from otel_audit.delivery.suppression import is_exporting
from otel_audit.draft import TimestampText
from otel_audit.errors import ConfigError
from otel_audit.event import AuditEvent
from otel_audit.event_fields import as_event
from otel_audit.integrations.feast_lines import FEAST_LOGGER, event_of_line
from otel_audit.integrations.logging_caller import AuditCapture, Caller, caller_of
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.sinks import OWN_LINE

__all__ = ["AuditCapture", "AuditHandler"]

_FIELDS: Final = frozenset(AuditEvent.model_fields)


class AuditHandler(logging.Handler):
    """Records each log record that reaches it as one audit event. Any thread; never raises into the application.

    Without `audit` it opens a journal of its own, `configure(**settings)`, and closes that with itself. `event_type` is
    that of a record whose `extra={"audit": {...}}` gives none. On the loggers `line_loggers` a JSON line of Feast, of
    either schema, is the event that it holds; the text of any other logger is never read as an event, since it may be
    a stranger's.

    Left alone are the lines of `LoggerAuditSink`, and what is logged during an export. Where the loss rule is `closed`
    a loss is counted and said, as `logging` does, and not raised.

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
        """As any handler does it, but without its lock: threads that wait for one sync of the disk wait together."""
        kept: object = self.filter(record)  # since Python 3.12 this may be another record
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """The event is recorded, unless the record is about one or about an export."""
        if OWN_LINE in record.__dict__ or is_exporting():
            return
        try:
            caller = caller_of(record)
            self._audit.log(as_event(self._fields(record, caller)), context=caller.context)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say on stderr, once a minute, that a record was lost. Not its text, which may hold a secret.

        As in `logging`, nothing is said where `logging.raiseExceptions` is false.
        """
        if logging.raiseExceptions:
            error = sys.exc_info()[1]
            self._notices.say(
                "record",
                f"log records are lost: {record.pathname}:{record.lineno}, logger {record.name!r}: expected to record "
                f"an event, got {type(error).__name__}",
            )

    def close(self) -> None:
        """The journal is closed if it is the handler's own. A later record is in the journal all the same."""
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
        """When it was logged, which a queue may have made long ago; empty, so that it is now, where that is no time."""
        try:
            return self._timestamps.of(round(record.created * 1e6) * 1000)  # a float of today has microseconds
        except Exception:
            return ""


def _given(audit: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that `extra={"audit": ...}` gives, and as attributes what is no field of an event."""
    try:
        given: Any = audit.model_dump() if hasattr(audit, "model_dump") else audit
        if not isinstance(given, Mapping):
            return {}, ({} if given is None else {"audit": given})
        attributes = given.get("attributes")
        others = {str(key): value for key, value in given.items() if key not in _FIELDS}
        named = attributes if isinstance(attributes, Mapping) else {"attributes": attributes} if attributes else {}
        return {key: value for key, value in given.items() if key in _FIELDS}, {**others, **named}
    except Exception as error:  # of the caller's own object: the record is an event all the same
        return {}, {"audit": f"[unreadable: {type(error).__name__}]"}
