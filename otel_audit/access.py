"""Record who looked at a trail. `OTEL_AUDIT_ACCESS_LOG` names the access trail, which records every look.

Before a command shows anything, it writes an `audit.access` event that says who asks and for what. If the event cannot
be written, the command refuses. At the end, a second event names the first as its parent, and says how much was shown.
If the command is killed in between, only the first is there.

The access trail is an ordinary journal, always with a signed ledger. Looks at it are recorded in it too.

Source: PCI DSS 4.0.1, requirement 10.2.1.3: all access to audit logs is recorded.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from otel_audit.errors import AuditError, AuditUnavailable, ConfigError
from otel_audit.event_schema import Outcome, PrincipalKind
from otel_audit.settings import Settings
from otel_audit.settings.reader import CONFIG_VARIABLE

if TYPE_CHECKING:
    from otel_audit.event import AuditPrincipal
    from otel_audit.logger import AuditLogger

__all__ = ["AccessLog", "AccessUnrecorded", "Look", "login_uid"]

_EVENT_TYPE: Final = "audit.access"
_RETURNED: Final = "access.returned"
_VARIABLE: Final = "OTEL_AUDIT_ACCESS_LOG"
_SERVICE: Final = "otel-audit-access"  # whichever service the settings name
_LOGIN_UID: Final = Path("/proc/self/loginuid")
_NO_UID: Final = 2**32 - 1  # Source: Linux, include/linux/uidgid.h: no login, as for a daemon
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class AccessUnrecorded(AuditError):
    """A look could not be recorded. Nothing was shown."""


@dataclass(slots=True)
class Look:
    """One look at a trail. `returned` is how much was shown so far, for the last event."""

    returned: int = 0

    def add(self, count: int) -> None:
        """Count events or rows before they are shown, so that they count even if the command is interrupted then."""
        self.returned += count


class AccessLog:
    """The open access trail. It records nothing if no setting names one. As a context manager, it closes the trail.

    A server opens it once, and calls `look` for each request. Any thread.
    """

    def __init__(self, logger: AuditLogger | None) -> None:
        self._logger = logger

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Open the trail that `OTEL_AUDIT_ACCESS_LOG` names.

        Raises:
            AccessUnrecorded: it cannot be opened, or the settings that may name it are wrong.
        """
        try:
            settings = Settings.load(environ)
        except ConfigError as error:
            if any(environ.get(name) for name in (_VARIABLE, CONFIG_VARIABLE)):
                raise AccessUnrecorded(
                    f"who looks may have to be recorded, and the settings are wrong: {error}"
                ) from error
            return cls(None)  # a command that only reads needs no valid settings
        if settings.access_log is None:
            return cls(None)
        overrides = {"directory": settings.access_log, "export": "none", "durability": "fsync", "ledger": "true"}
        settings = replace(Settings.load(environ, overrides), policy=None, log_name=None, service_name=_SERVICE)
        try:
            return cls(_logger_of(settings))
        except (AuditError, OSError) as error:
            raise _unrecorded(settings.directory, error) from error

    @contextmanager
    def look(
        self,
        command: str,
        sources: Sequence[str],
        filters: Sequence[str] = (),
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Iterator[Look]:
        """Record a look. The block runs once its first event is on disk. The end is recorded however the block ends.

        `filters` are those of the question, as `name=word`. They are redacted like the attributes of any event.

        Raises:
            AccessUnrecorded: the block has not run.
        """
        if self._logger is None:
            yield Look()
            return
        from otel_audit.event import AuditAction, AuditResource  # not at the top, as in `_logger_of`

        operation = self._logger.require(
            _EVENT_TYPE,
            principal=_who(),
            action=AuditAction(verb="READ"),
            resource=AuditResource(type="audit.trail", name=", ".join(sources)),
            attributes=_asked(command, filters, since_ns, until_ns),
        )
        try:
            operation.__enter__()
        except (AuditUnavailable, OSError) as error:
            settings = self._logger.settings
            raise _unrecorded(settings.directory if settings is not None else Path(), error) from error
        look = Look()
        begun = operation.event.attributes or {}
        try:
            yield look
        except BaseException as error:
            operation.event.attributes = {**begun, _RETURNED: look.returned}
            if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
                operation.event.outcome = Outcome.CANCELLED.value
            operation.__exit__(type(error), error, error.__traceback__)
            raise
        operation.event.attributes = {**begun, _RETURNED: look.returned}
        operation.__exit__(None, None, None)

    def close(self) -> None:
        """Release the trail."""
        if self._logger is not None:
            self._logger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _logger_of(settings: Settings) -> AuditLogger:
    # Not at the top: most who look have no access trail, and need not wait for all that writes one.
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    from otel_audit.logger import AuditLogger
    from otel_audit.redaction.caps import Caps
    from otel_audit.redaction.redactor import Redactor, Rules
    from otel_audit.trail import Trail

    redactor = Redactor(
        caps=Caps(text_chars=settings.text_chars, attributes=settings.attribute_count, line_bytes=settings.line_bytes),
        rules=Rules.of(settings),
    )
    trail = Trail(settings, resource=Resource.create({SERVICE_NAME: _SERVICE}))
    return AuditLogger(trail, redactor=redactor, notices=trail.notices)


def login_uid() -> int | None:
    """Return the user that logged in, whoever they have become since; None if there was no login.

    Source: Linux, proc_pid_loginuid(5): the audit subsystem sets it at a login, and `su` and `sudo` leave it.
    """
    try:
        uid = int(_LOGIN_UID.read_text())
    except (OSError, ValueError):
        return None
    return None if uid == _NO_UID else uid


def _who() -> AuditPrincipal:
    from otel_audit.event import AuditPrincipal

    login, real = login_uid(), os.getuid()
    uid = real if login is None else login
    return AuditPrincipal(username=_name_of(uid), id=str(uid), auth_type="os", kind=PrincipalKind.USER)


def _asked(command: str, filters: Sequence[str], since_ns: int | None, until_ns: int | None) -> dict[str, Any]:
    login, real = login_uid(), os.getuid()
    asked: dict[str, Any] = {"access.command": command, "access.uid": real, "access.user": _name_of(real)}
    if login is not None:
        asked["access.login_uid"] = login
    if filters:
        asked["access.filters"] = list(filters)
    for name, time_ns in (("access.since", since_ns), ("access.until", until_ns)):
        if time_ns is not None:
            asked[name] = _time(time_ns)
    return asked


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in a container that knows no such user
        return str(uid)


def _time(time_ns: int) -> str:
    try:
        return (_EPOCH + timedelta(microseconds=time_ns // 1000)).isoformat()
    except OverflowError:
        return f"{time_ns} ns"


def _unrecorded(directory: Path, error: Exception) -> AccessUnrecorded:
    return AccessUnrecorded(
        f"expected to record in {directory}, which OTEL_AUDIT_ACCESS_LOG names, who looks, got: {error}; nothing was "
        "shown. Make that directory writable for whoever looks, or name another one"
    )
