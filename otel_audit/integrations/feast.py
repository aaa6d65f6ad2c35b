"""Feast's feature server: put its own audit events into the journal, or replace its recording by ours.

`install` makes Feast's audit events go to the journal and changes nothing else. With `replace=True`, our middleware and
MCP recording replace Feast's. `event_of_line` reads the JSON lines, in two schemas, that Feast writes to its logger
`feast.audit`.

Source: Feast 0.67: `feast.audit.audit_logger` (setting `feature_server.audit_logging`); `emit_online_audit_log` and
`emit_offline_audit_log` of `feast.metrics` (`feature_server.metrics.audit_logging`); `feast.feature_server.get_app`;
`feast.infra.mcp_servers.mcp_server`.
"""

from __future__ import annotations

import functools
import importlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from otel_audit.configuration import configure
from otel_audit.errors import ConfigError
from otel_audit.event import AuditPrincipal
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.asgi.scope import Receive, Scope, Send
from otel_audit.integrations.lease import Lease
from otel_audit.integrations.mcp import audit_server
from otel_audit.integrations.mcp.call import current_call
from otel_audit.logger import AuditLogger
from otel_audit.recorder import ModelLike

__all__ = [
    "FEAST_LOGGER",
    "HOOKS",
    "FeastSink",
    "event_of_line",
    "hooks_of_feast",
    "install",
    "install_meanwhile",
    "replace_in_feast",
    "uninstall",
]


FEAST_LOGGER: Final = "feast.audit"

_ACTION_BY_EVENT: Final = {"online_feature_request": "READ_ONLINE", "offline_feature_retrieval": "READ_OFFLINE"}
_MAPPED: Final = frozenset({"event", "timestamp", "requestor_id", "status", "latency_ms", "duration_ms"})


def event_of_line(text: str) -> dict[str, Any] | None:
    """Return the fields of the event in a line, of any type (see `as_event`), or None if it fits neither schema."""
    if not text.startswith("{"):
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(line.get("event_type"), str):
        return dict(line)
    event = line.get("event")
    return _of_metrics(line, event) if isinstance(event, str) and event in _ACTION_BY_EVENT else None


def _of_metrics(line: Mapping[str, Any], event: str) -> dict[str, Any]:
    """Return the fields. A value without a matching field becomes an attribute under Feast's name."""
    requestor = line.get("requestor_id")
    return {
        "event_type": f"feast.{event}",
        "timestamp": line.get("timestamp", ""),
        "principal": {"username": "" if requestor in (None, "anonymous") else requestor},
        "action": {"verb": "READ"},
        "resource": {
            "type": "FeatureView",
            "name": _joined(line.get("feature_views")),
            "actions": [_ACTION_BY_EVENT[event]],
        },
        "outcome": line.get("status", ""),
        "duration_ms": line.get("latency_ms", line.get("duration_ms")),
        "attributes": {f"feast.{key}": value for key, value in line.items() if key not in _MAPPED},
    }


def _joined(names: object) -> str:
    return ",".join(map(str, names)) if isinstance(names, list) else ""


HOOKS: Final = {
    "feast.feature_server": "_add_mcp_support_if_enabled",  # the last step of `get_app`
    "feast.infra.mcp_servers.mcp_server": "_wrap_call_tool_handler",
}
"""The functions of Feast that are replaced, by module."""

# As in Feast, MCP calls are recorded, but not the HTTP requests that carry them.
_EXCLUDED: Final = ("/health", "/docs", "/openapi.json", "/static", "/static/*", "/mcp", "/mcp/*")


def hooks_of_feast() -> dict[str, Any]:
    """Return Feast's original functions, by module.

    Raises:
        ConfigError: this release of Feast lacks one of them.
    """
    return {module: _hook(importlib.import_module(module), name) for module, name in HOOKS.items()}


def replace_in_feast(audit: AuditLogger, of_feast: Mapping[str, Any]) -> Callable[[], None]:
    """From now on, record the applications of `get_app()` instead of Feast. Return a function that undoes this."""
    add_mcp, _ = of_feast.values()

    def add_mcp_and_record(app: Any, store: Any, audit_logger: Any = None) -> None:
        if audit_logger is not None:
            _refuse_filter(store)
            _record_outermost(app, store, audit)
        add_mcp(app, store, audit_logger)

    def record_calls(mcp: Any, audit_logger: Any) -> None:
        audit_server(mcp.server, audit)

    _put(dict(zip(HOOKS, (add_mcp_and_record, record_calls), strict=True)))
    return lambda: _put(of_feast)


def _put(functions: Mapping[str, Any]) -> None:
    for module, function in functions.items():
        setattr(importlib.import_module(module), HOOKS[module], function)


def _hook(module: Any, name: str) -> Any:
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(
            f"install(replace=True): expected a release of Feast with {module.__name__}.{name}, such as 0.67.0, "
            "got one without it; install that release, or leave replace out"
        )
    return found


def _refuse_filter(store: Any) -> None:
    """Refuse Feast's own filter. It recognises reads by its middleware's events, so it would silently do nothing.

    Raises:
        ConfigError: the filter is on.
    """
    if not store.config.feature_server.audit_logging.log_successful_reads:
        raise ConfigError(
            "feature_server.audit_logging.log_successful_reads: expected true with install(replace=True), got false; "
            "leave reads out by a policy file (OTEL_AUDIT_POLICY), by route and tool"
        )


def _record_outermost(app: Any, store: Any, audit: AuditLogger) -> None:
    """Record outside Starlette's error middleware, which turns Feast's exceptions into 403, 404 and 500.

    We replace the call of the application and not its middleware stack, since OpenTelemetry's instrumentor of FastAPI
    skips a stack that it does not know.
    """
    of_feast = importlib.import_module("feast.audit.audit_middleware").AuditLoggingMiddleware
    app.user_middleware = [each for each in app.user_middleware if each.cls is not of_feast]
    kind = type(app)

    def user(scope: MutableMapping[str, Any]) -> AuditPrincipal | None:
        return _user_of_feast(store)

    audited = AuditMiddleware(functools.partial(kind.__call__, app), audit=audit, principal=user, exclude=_EXCLUDED)

    async def call(_: Any, scope: Scope, receive: Receive, send: Send) -> None:
        await audited(scope, receive, send)

    app.__class__ = type(kind.__name__, (kind,), {"__call__": call})


def _user_of_feast(store: Any) -> AuditPrincipal | None:
    """Return the user that Feast's auth manager has verified for the current request and the MCP call that made it.

    Only the request inside a tool call verifies the user, since that request has the client's own token.
    """
    manager = importlib.import_module("feast.permissions.security_manager").get_security_manager()
    user = manager.current_user if manager is not None else None
    if user is None:
        return None
    found = AuditPrincipal(username=user.username, roles=list(user.roles), auth_type=store.config.auth_config.type)
    call = current_call()
    if call is not None and not call.principal.username:
        call.principal = found
    return found


_MODULE: Final = "feast.audit.audit_logger"
_FACTORIES: Final = "_SINK_FACTORIES"
_TESTED: Final = "0.67.0"

Factory = Callable[[Mapping[str, Any]], Any]


def install(audit: AuditLogger | None = None, *, replace: bool = False, **settings: Any) -> AuditLogger:
    """From now on, make every audit logger of Feast pass its events to `audit`. Call this before `get_app()`.

    The events go there whichever sink the feature store's configuration names (`stdout`, `file`, `logger`). If `audit`
    is not given, it is made by `configure(**settings)`. As before, `feature_server.audit_logging` in the configuration
    decides whether there are events, and whether they include successful reads. It may be called before a fork. A
    second call changes nothing and returns the logger of the first.

    With `replace`, `AuditMiddleware` and `audit_server` record requests and MCP calls instead of Feast's middleware and
    wrapper. Then `get_app()` raises `ConfigError` if the configuration leaves out successful reads.

    Raises:
        ConfigError: Feast is not installed or lacks a hook, a setting is wrong, or a second call differs from the
            first. Nothing was changed.
        JournalUnwritable: the directory cannot be written. Nothing was changed.
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
    """Let Feast make its own sinks again, and close a logger that `install` made. Without `install`, do nothing.

    An application that `get_app()` has already made keeps its logger, so its later events still reach the journal.
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
    """Do what `install` does for applications made inside this block. The logger stays open afterwards.

    An existing installation stays in force, and `audit` is not called. Only one block may run at a time.

    Raises:
        ConfigError, JournalUnwritable: as in `install` or raised by `audit`. Nothing was changed.
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
    """The sink that receives the events of Feast's audit logger. They are recorded unchanged, except for secrets.

    Feast calls it under a lock, and turns `AuditUnavailable` into a line of its log. Feast records actions that have
    already taken place, so they cannot be refused.
    """

    def __init__(self, audit: AuditLogger) -> None:
        self._audit = audit
        self._lease: Lease | None = None

    def emit(self, event: ModelLike) -> None:
        """Return once the event is in the journal.

        Raises:
            AuditUnavailable: only if the loss rule is `closed`: the event may not be durable.
        """
        if self._lease is None:  # only now, since an application that never starts is never closed either
            self._lease = Lease(self._audit)
        self._audit.log(event)

    def close(self) -> None:
        """Give the logger back when the application ends. Its last user closes it, which delivers its events."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give_back_now()


class _Installed(msgspec.Struct, frozen=True):
    """The state that `uninstall` needs. `is_own`: `install` made the logger. `restore` undoes a `replace`."""

    audit: AuditLogger
    is_own: bool
    restore: Callable[[], None] | None
    factories: dict[str, Factory]
    of_feast: Mapping[str, Factory]


_lock: Final = threading.Lock()
_installed: _Installed | None = None


def _factories_of_feast() -> dict[str, Factory]:
    """Return Feast's own table of sinks, by their names in its configuration."""
    try:
        factories = getattr(importlib.import_module(_MODULE), _FACTORIES, None)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("feast"):
            raise  # Feast itself lacks a dependency, and the error names it
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
