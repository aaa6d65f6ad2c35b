"""Feast's feature server with our middleware and MCP recording in the place of its own.

Source: Feast 0.67, `feast.feature_server.get_app` and `feast.infra.mcp_servers.mcp_server`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from otel_audit.errors import ConfigError
from otel_audit.event import AuditPrincipal
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.asgi_types import Receive, Scope, Send
from otel_audit.integrations.mcp import audit_server
from otel_audit.integrations.mcp_recording import current_call
from otel_audit.logger import AuditLogger

__all__ = ["HOOKS", "hooks_of_feast", "replace_in_feast"]

HOOKS: Final = {
    "feast.feature_server": "_add_mcp_support_if_enabled",  # the last thing that `get_app` does to an application
    "feast.infra.mcp_servers.mcp_server": "_wrap_call_tool_handler",
}
"""The functions of Feast that are replaced, by module."""

# As Feast does: of MCP the calls are recorded, not what carries them.
_EXCLUDED: Final = ("/health", "/docs", "/openapi.json", "/static", "/static/*", "/mcp", "/mcp/*")


def hooks_of_feast() -> dict[str, Any]:
    """The functions as Feast has them, by module.

    Raises:
        ConfigError: this release lacks one.
    """
    return {module: _hook(importlib.import_module(module), name) for module, name in HOOKS.items()}


def replace_in_feast(audit: AuditLogger, of_feast: Mapping[str, Any]) -> Callable[[], None]:
    """From here on what `get_app()` makes is recorded by us and not by Feast; the function given takes it back."""
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
    """Feast's own filter knows reads by what its middleware records; it would be silently without effect.

    Raises:
        ConfigError: it is on.
    """
    if not store.config.feature_server.audit_logging.log_successful_reads:
        raise ConfigError(
            "feature_server.audit_logging.log_successful_reads: expected true with install(replace=True), got false; "
            "leave reads out by a policy file (OTEL_AUDIT_POLICY), by route and tool"
        )


def _record_outermost(app: Any, store: Any, audit: AuditLogger) -> None:
    """Around Starlette's own error middleware too, where Feast's answers to exceptions are made: 403, 404, 500.

    The call of the application is taken over and not its stack of middleware, which OpenTelemetry's instrumentor of
    FastAPI leaves alone unless it is the one that it knows.
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
    """Whom Feast's auth manager has verified for the request that runs here, and for the MCP call that made it.

    A tool's call is verified by the request inside it and nowhere else: that one has the client's own token.
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
