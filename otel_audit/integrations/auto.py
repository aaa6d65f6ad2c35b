"""Instrumentors for `opentelemetry-instrument`, which audit a service without changing a line of it.

Each works only if its framework is installed, and all record to the one logger of the process, made from the
environment. `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` switches instrumentors off by the names of their entry points.

Applications of Starlette and FastAPI are wrapped in the middleware. Servers of the MCP SDKs and of FastMCP record their
calls. Feast's feature server is recorded as after `install(replace=True)`. A server that was passed to `audit_server`
(with SDK 1.x, before it first runs) keeps the logger that it was given there.

This is the only module that needs the package `opentelemetry-instrumentation`, and only that package imports it. Feast
is not imported here, since that takes seconds and most commands on a machine with Feast do not serve features.
"""

from __future__ import annotations

import functools
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection
from importlib.metadata import version
from typing import Any, Final

from opentelemetry.instrumentation.dependencies import DependencyConflictError
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # not typed

from otel_audit.errors import AuditError
from otel_audit.integrations.asgi.exchange import exchange_of, is_left_out
from otel_audit.integrations.asgi.lifespan import is_held
from otel_audit.integrations.asgi.middleware import AuditMiddleware
from otel_audit.integrations.asgi.scope import ASGIApp, Receive, Scope, Send
from otel_audit.integrations.feast import HOOKS, install_meanwhile
from otel_audit.integrations.lease import Instrumentation, is_kept_out, keep_out
from otel_audit.integrations.mcp import fastmcp, sdk1, sdk2
from otel_audit.integrations.mcp.call import EVENT_TYPES, note_contexts

__all__ = [
    "FastAPIAuditor",
    "FastMCPAuditor",
    "FeastAuditor",
    "FrameworkAuditor",
    "MCPAuditor",
    "StarletteAuditor",
    "audit_applications",
    "audit_fastmcp_servers",
    "audit_feature_servers",
    "audit_sdk_servers",
]


_APPLICATION: Final = "otel_audit.application"


def audit_applications(kind: type, instrumentation: Instrumentation) -> None:
    """Audit applications of this class or its subclasses, including those that already run.

    An application that has `AuditMiddleware` itself keeps it, with its logger and its options. We wrap the call of the
    application and not its middleware stack, since OpenTelemetry's instrumentor of FastAPI skips a stack that it does
    not know.
    """
    around = _Around(instrumentation)
    original: Callable[..., Awaitable[None]] = kind.__call__

    @functools.wraps(original)
    async def call(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
        run = functools.partial(original, app)
        is_seen_to = exchange_of(scope) is not None or is_left_out(scope) or is_held(scope)
        if is_seen_to or not instrumentation.is_on or _audits_itself(app):
            await run(scope, receive, send)
        else:
            await around(run, scope, receive, send)

    instrumentation.replace(kind, "__call__", call)  # uvicorn takes a callable without parameters for a factory


def _audits_itself(app: Any) -> bool:
    if is_kept_out(app):
        return True
    kinds = [middleware.cls for middleware in app.user_middleware]
    return any(isinstance(kind, type) and issubclass(kind, AuditMiddleware) for kind in kinds)


class _Around:
    """The middleware around all applications of an instrumentation.

    The logger is made at the first lifespan, request or connection, since a program that only builds an application
    needs no journal.
    """

    def __init__(self, instrumentation: Instrumentation) -> None:
        self._instrumentation = instrumentation
        self._audited: AuditMiddleware | None = None

    async def __call__(self, run: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application inside the middleware.

        Raises:
            AuditError: no logger could be made, and the server runs no lifespan. The application was not called.
        """
        try:
            audited = self._outermost()
        except AuditError as error:
            if scope["type"] != "lifespan":
                raise
            # The server would take an exception here to mean that the application has no lifespan, and go on.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"otel-audit: {error}"})
            return
        scope[_APPLICATION] = run
        await audited(scope, receive, send)

    def _outermost(self) -> AuditMiddleware:
        if self._audited is None:
            self._audited = AuditMiddleware(_run_application, audit=self._instrumentation.audit)
        return self._audited


async def _run_application(scope: Scope, receive: Receive, send: Send) -> None:
    await scope.pop(_APPLICATION)(scope, receive, send)


_SERVER, _MCP_SERVER = HOOKS


def audit_feature_servers(instrumentation: Instrumentation) -> None:
    """From now on, record the applications of `get_app()` as after `install(replace=True)`, if their store asks for it.

    If the configuration leaves out successful reads, Feast does the recording, as after `install()`, since only Feast
    knows what it regards as a read. An `install()` by the application itself stays in force. In each case the
    instrumentors of FastAPI, Starlette and MCP leave the application alone. `get_app()` raises the errors of making the
    logger of the process.
    """

    def make(original: Callable[..., Any], store: Any, *args: Any, **kwargs: Any) -> Any:
        config = getattr(store.config.feature_server, "audit_logging", None)
        if not instrumentation.is_on or config is None or not config.enabled:
            return original(store, *args, **kwargs)
        with _making, install_meanwhile(lambda: instrumentation.audit, replace=config.log_successful_reads):
            app = original(store, *args, **kwargs)
        keep_out(app)
        return app

    def record_calls(original: Callable[..., None], mcp: Any, *args: Any, **kwargs: Any) -> None:
        original(mcp, *args, **kwargs)
        keep_out(mcp.server)

    instrumentation.when_imported(_SERVER, lambda server: instrumentation.wrap(server, "get_app", make))
    instrumentation.when_imported(
        _MCP_SERVER, lambda server: instrumentation.wrap(server, HOOKS[_MCP_SERVER], record_calls)
    )


_making = threading.RLock()  # one application at a time, since an installation affects all threads


CallNext = Callable[[Any], Awaitable[Any]]

# By class of server. A recorder stays in its server, and records again when the class is instrumented anew.
_latest: dict[type, Instrumentation] = {}


def audit_sdk_servers(kind: type, instrumentation: Instrumentation) -> None:
    """Record the calls of low-level servers of this class that are made from now on, and with SDK 1.x of all."""
    _latest[kind] = instrumentation

    async def run(original: Callable[..., Awaitable[None]], server: Any, *args: Any, **kwargs: Any) -> None:
        if instrumentation.is_on and not _is_of_fastmcp(server):
            _prepare(server, instrumentation)
        if hasattr(server, "middleware"):
            await original(server, *args, **kwargs)
        else:
            await sdk1.run_watched(server, functools.partial(original, server), *args, **kwargs)

    def init(original: Callable[..., None], server: Any, *args: Any, **kwargs: Any) -> None:
        original(server, *args, **kwargs)
        if instrumentation.is_on and hasattr(server, "middleware") and not _is_of_fastmcp(server):
            sdk2.insert(server.middleware, _SdkRecorder(server, kind))

    note_contexts(instrumentation)
    instrumentation.wrap(kind, "run", run)
    instrumentation.wrap(kind, "__init__", init)


def audit_fastmcp_servers(kind: type, instrumentation: Instrumentation) -> None:
    """From now on, record the calls of every new server of this class."""
    from fastmcp.server.middleware import Middleware

    _latest[kind] = instrumentation
    recorder = type("AutomaticAudit", (_FastMcpRecorder, Middleware), {})

    def init(original: Callable[..., None], server: Any, *args: Any, **kwargs: Any) -> None:
        original(server, *args, **kwargs)
        if instrumentation.is_on and not _has(server.middleware, recorder):
            server.middleware.insert(0, recorder(server, kind))

    async def run(original: Callable[..., Awaitable[None]], server: Any, *args: Any, **kwargs: Any) -> None:
        if instrumentation.is_on and not _has(server.middleware, fastmcp.CallRecorder):
            _ = instrumentation.audit  # a wrong setting must end the server before its first call
        await original(server, *args, **kwargs)

    note_contexts(instrumentation)
    fastmcp.note_mounts(instrumentation)
    instrumentation.wrap(kind, "__init__", init)
    instrumentation.wrap(kind, "run_async", run)


def _prepare(server: Any, instrumentation: Instrumentation) -> None:
    """Prepare a server that is about to run, over stdio or for another session of SDK 1.x. A wrong setting ends it."""
    if hasattr(server, "middleware"):
        if not _has(server.middleware, sdk2.CallMiddleware):
            _ = instrumentation.audit
    elif not is_kept_out(server) and not sdk1.is_audited(server):
        sdk1.audit_handlers(server, instrumentation.audit, None, lambda: instrumentation.is_on)


class _SdkRecorder:
    """Middleware that records the calls of a server of SDK 2.x, unless `audit_server` has added its own."""

    def __init__(self, server: Any, kind: type) -> None:
        self._server = server
        self._kind = kind

    async def __call__(self, ctx: Any, call_next: CallNext) -> Any:
        instrumentation = _latest[self._kind]
        if not instrumentation.is_on or _has(self._server.middleware, sdk2.CallMiddleware):
            return await call_next(ctx)
        return await sdk2.CallMiddleware(instrumentation.audit)(ctx, call_next)


class _FastMcpRecorder:
    """Middleware that records the calls of a FastMCP server, unless `audit_server` or an outer server does so."""

    def __init__(self, server: Any, kind: type) -> None:
        self._server = server
        self._kind = kind

    async def __call__(self, context: Any, call_next: CallNext) -> Any:
        instrumentation = _latest[self._kind]
        if not instrumentation.is_on or context.type != "request" or context.method not in EVENT_TYPES:
            return await call_next(context)
        if _has(self._server.middleware, fastmcp.CallRecorder):
            return await call_next(context)
        outer = fastmcp.recorded_by_outer_server(context)
        return await fastmcp.CallRecorder(instrumentation.audit if outer is None else outer)(context, call_next)


def _has(middleware: list[Any], kind: type) -> bool:
    return any(isinstance(each, kind) for each in middleware)


def _is_of_fastmcp(server: Any) -> bool:
    """Return True for a server inside a FastMCP 4 server, whose own middleware sees more."""
    return hasattr(server, "middleware") and type(server).__module__.partition(".")[0] == "fastmcp"


class FrameworkAuditor(BaseInstrumentor):  # type: ignore[misc]  # not typed
    """Audit everything built on a framework from `instrument()` to `uninstrument()`.

    `instrument(audit=...)` takes a logger to use instead of that of the process.

    Source: OpenTelemetry Python, `BaseInstrumentor`; entry point `opentelemetry_instrumentor`.
    """

    _instrumentation: Instrumentation | None = None  # the instance is one for the process, and made anew by nobody

    def _instrument(self, **kwargs: Any) -> None:
        # `opentelemetry-instrument` does not check whether the framework is installed, and in which release.
        conflict = self._check_dependency_conflicts()
        if conflict is not None:
            raise DependencyConflictError(conflict)
        self._instrumentation = Instrumentation(kwargs.get("audit"))
        self._begin(self._instrumentation)

    def _uninstrument(self, **kwargs: Any) -> None:
        if self._instrumentation is not None:
            self._instrumentation.undo()
            self._instrumentation = None

    @abstractmethod
    def _begin(self, instrumentation: Instrumentation) -> None:
        """Wrap the framework."""


class StarletteAuditor(FrameworkAuditor):
    """One event for each request and connection of a Starlette application, and of what is built on it."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the releases of Starlette that it works with."""
        return ["starlette >= 0.40"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        from starlette.applications import Starlette

        audit_applications(_of(Starlette, "starlette"), instrumentation)


class FastAPIAuditor(FrameworkAuditor):
    """One event for each request and connection of a FastAPI application."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the releases of FastAPI that it works with."""
        return ["fastapi >= 0.115"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        from fastapi import FastAPI

        audit_applications(_of(FastAPI, "fastapi"), instrumentation)


def _of(kind: type, framework: str) -> type:
    """Return the framework's own class: OpenTelemetry's instrumentors put one that is derived from it in its place."""
    return next(each for each in kind.__mro__ if each.__module__.partition(".")[0] == framework)


class MCPAuditor(FrameworkAuditor):
    """One event for each tool call, resource read and prompt of a server of the official MCP SDK."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the releases of the SDK that it works with."""
        return ["mcp >= 1.29, < 3"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        instrumentation.when_imported(
            "mcp.server.lowlevel.server", lambda module: audit_sdk_servers(module.Server, instrumentation)
        )


class FastMCPAuditor(FrameworkAuditor):
    """One event for each tool call, resource read and prompt of a server of the package `fastmcp`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the releases of FastMCP that it works with."""
        return ["fastmcp >= 2, < 5"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        if version("mcp").startswith("1."):  # below FastMCP 4: its low-level server has a `run` of its own
            instrumentation.when_imported(
                "fastmcp.server.low_level", lambda module: audit_sdk_servers(module.LowLevelServer, instrumentation)
            )
        else:
            instrumentation.when_imported(
                "fastmcp.server.server", lambda module: audit_fastmcp_servers(module.FastMCP, instrumentation)
            )


class FeastAuditor(FrameworkAuditor):
    """One event for each request and each tool call of Feast's feature server, if its store has audit logging enabled.

    A server that is built already goes on recording after `uninstrument()`.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the releases of Feast that it works with."""
        return ["feast >= 0.67"]

    def _begin(self, instrumentation: Instrumentation) -> None:
        audit_feature_servers(instrumentation)
