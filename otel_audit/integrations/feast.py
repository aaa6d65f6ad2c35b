"""Feast's own audit events, journalled and delivered: its feature server is left as it is, but for where they go.

Source: Feast 0.67, `feast.audit.audit_logger` and `feast.feature_server.get_app`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from otel_audit.configuration import configure
from otel_audit.errors import ConfigError
from otel_audit.integrations.feast_server import hooks_of_feast, replace_in_feast
from otel_audit.integrations.lease import Lease
from otel_audit.logger import AuditLogger
from otel_audit.recorder import ModelLike

__all__ = ["FeastSink", "install", "install_meanwhile", "uninstall"]

_MODULE: Final = "feast.audit.audit_logger"
_FACTORIES: Final = "_SINK_FACTORIES"
_TESTED: Final = "0.67.0"

Factory = Callable[[Mapping[str, Any]], Any]


def install(audit: AuditLogger | None = None, *, replace: bool = False, **settings: Any) -> AuditLogger:
    """From here on every audit logger that Feast makes hands its events to this one; call it before `get_app()`.

    Whichever sink the feature store's configuration names (`stdout`, `file`, `logger`), the events go to `audit`
    instead. Without `audit` it is made by `configure(**settings)`. Whether there are events, and whether those of
    successful reads are among them, the configuration says as before: `feature_server.audit_logging`. It works before
    a fork. A second call changes nothing and gives the logger of the first.

    `replace`: requests and MCP calls are recorded by `AuditMiddleware` and `audit_server` in the place of Feast's
    middleware and wrapper. Then `get_app()` raises `ConfigError` if the configuration leaves successful reads out.

    Raises:
        ConfigError: Feast is not installed or has no such hook, a setting is wrong, or something else than before is
            asked for while installed. Nothing has changed.
        JournalUnwritable: the directory cannot be written. Nothing has changed.
    """
    global _installed
    if audit is not None and settings:
        raise ConfigError(
            f"install: expected either audit or settings, got both ({', '.join(sorted(settings))}); leave one out"
        )
    with _lock:
        if _installed is None:
            factories = _factories_of_feast()
            hooks = hooks_of_feast() if replace else None
            made = audit if audit is not None else configure(**settings)
            restore = replace_in_feast(made, hooks) if hooks is not None else None
            _installed = _Installed(made, audit is None, restore, factories, dict(factories))
            factories.update(dict.fromkeys(factories, lambda config: FeastSink(made)))
        elif settings or audit not in (None, _installed.audit):
            raise ConfigError(
                "install: expected the installed logger or none, got another one or settings for it; "
                "call uninstall() first"
            )
        elif replace != (_installed.restore is not None):
            raise ConfigError(f"install: expected replace={not replace} as installed, got {replace}; uninstall() first")
        return _installed.audit


def uninstall() -> None:
    """Feast makes its own sinks again, and a logger that `install` made is closed. Nothing happens without `install`.

    An application that `get_app()` has made keeps its logger: what it records later is journalled still.
    """
    global _installed
    with _lock:
        installed, _installed = _installed, None
        if installed is not None:
            installed.factories.update(installed.of_feast)
            if installed.restore is not None:
                installed.restore()
    if installed is not None and installed.is_own:
        installed.audit.close()


@contextmanager
def install_meanwhile(audit: Callable[[], AuditLogger], *, replace: bool) -> Iterator[None]:
    """What `install` does, for the applications that are made in this block; the logger stays open behind it.

    Where something is installed already that stays, and `audit` is not called. One block at a time.

    Raises:
        ConfigError, JournalUnwritable: as `install`, and what `audit` raises. Nothing has changed.
    """
    if _installed is not None:
        yield
        return
    install(audit(), replace=replace)
    try:
        yield
    finally:
        uninstall()


class FeastSink:
    """What Feast's audit logger hands its events to. They are recorded as they are, secrets excepted.

    Feast calls it under a lock, and turns what is raised here, `AuditUnavailable`, into a line of its log: what it
    records has been done already, and cannot be refused.
    """

    def __init__(self, audit: AuditLogger) -> None:
        self._audit = audit
        self._lease: Lease | None = None

    def emit(self, event: ModelLike) -> None:
        """Return once the event is in the journal.

        Raises:
            AuditUnavailable: only where the loss rule is `closed`: the event is not known to be durable.
        """
        if self._lease is None:  # not before: an application that never starts is never closed either
            self._lease = Lease(self._audit)
        self._audit.log(event)

    def close(self) -> None:
        """At the end of the application's lifespan: the last of its users closes the logger, which delivers."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give_back_now()


@dataclass(frozen=True, slots=True)
class _Installed:
    """What `uninstall` needs to know. `is_own`: `install` made the logger. `restore`: there if it replaces."""

    audit: AuditLogger
    is_own: bool
    restore: Callable[[], None] | None
    factories: dict[str, Factory]
    of_feast: Mapping[str, Factory]


_lock: Final = threading.Lock()
_installed: _Installed | None = None


def _factories_of_feast() -> dict[str, Factory]:
    """Feast's sinks by the name that its configuration has for them; the table itself."""
    try:
        factories = getattr(importlib.import_module(_MODULE), _FACTORIES, None)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("feast"):
            raise  # Feast is there, and lacks something of its own: that says what to install
        factories = None
    if not isinstance(factories, dict) or not factories:
        raise ConfigError(
            f"install: expected a release of Feast with {_MODULE}.{_FACTORIES}, such as {_TESTED}, "
            f"got {_release_of_feast()}; install feast=={_TESTED}, or record its log with AuditHandler"
        )
    return factories


def _release_of_feast() -> str:
    try:
        return f"Feast {version('feast')} without it"
    except PackageNotFoundError:
        return "no Feast at all"
