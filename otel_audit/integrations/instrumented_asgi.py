"""Starlette and FastAPI with the middleware around each application, though no line of it says so."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from otel_audit.errors import AuditError
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.asgi_exchange import exchange_of, is_left_out
from otel_audit.integrations.asgi_lifespan import is_held
from otel_audit.integrations.asgi_types import ASGIApp, Receive, Scope, Send
from otel_audit.integrations.instrumentation import Instrumentation
from otel_audit.integrations.kept_out import is_kept_out

__all__ = ["audit_applications"]

_APPLICATION: Final = "otel_audit.application"


def audit_applications(kind: type, instrumentation: Instrumentation) -> None:
    """Applications of this class of Starlette, or of one below it, are audited, those that run already too.

    One that has `AuditMiddleware` among its own keeps to that: its logger and its options count. What is wrapped is the
    call of the application, and not its stack of middleware: OpenTelemetry's instrumentor of FastAPI leaves alone what
    is not the stack that it knows.
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

    instrumentation.replace(kind, "__call__", call)  # uvicorn takes what can be called without arguments for a factory


def _audits_itself(app: Any) -> bool:
    if is_kept_out(app):
        return True
    kinds = [middleware.cls for middleware in app.user_middleware]
    return any(isinstance(kind, type) and issubclass(kind, AuditMiddleware) for kind in kinds)


class _Around:
    """The middleware around all applications of an instrumentation.

    The logger is made at the first lifespan, request or connection: a program that merely builds an application needs
    no journal.
    """

    def __init__(self, instrumentation: Instrumentation) -> None:
        self._instrumentation = instrumentation
        self._audited: AuditMiddleware | None = None

    async def __call__(self, run: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """`run` the application inside of it.

        Raises:
            AuditError: there is no logger, and the server has begun without a lifespan. The application is not called.
        """
        try:
            audited = self._outermost()
        except AuditError as error:
            if scope["type"] != "lifespan":
                raise
            # An exception here would be taken for an application without a lifespan, and the server would go on.
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
