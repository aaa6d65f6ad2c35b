"""Starlette and FastAPI with the middleware around each application, though no line of it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otel_audit.errors import AuditError
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.asgi_exchange import exchange_of, is_left_out
from otel_audit.integrations.asgi_lifespan import is_held
from otel_audit.integrations.asgi_types import ASGIApp, Receive, Scope, Send
from otel_audit.integrations.instrumentation import Instrumentation
from otel_audit.integrations.kept_out import is_kept_out

__all__ = ["AuditedStack", "audit_applications"]


def audit_applications(kind: type, instrumentation: Instrumentation) -> None:
    """Applications of this class of Starlette, or of one below it, are audited when they have not yet begun to run.

    One that has `AuditMiddleware` among its own keeps to that: its logger and its options count.
    """

    def build(original: Callable[[Any], ASGIApp], app: Any) -> ASGIApp:
        stack = original(app)
        if not instrumentation.is_on or isinstance(stack, AuditedStack) or _audits_itself(app):
            return stack
        return AuditedStack(stack, instrumentation)

    instrumentation.wrap(kind, "build_middleware_stack", build)


def _audits_itself(app: Any) -> bool:
    if is_kept_out(app):
        return True
    kinds = [middleware.cls for middleware in app.user_middleware]
    return any(isinstance(kind, type) and issubclass(kind, AuditMiddleware) for kind in kinds)


class AuditedStack:
    """The application `app`, inside the middleware unless there is one around it already.

    The logger is made at the first lifespan, request or connection: a program that merely builds an application needs
    no journal.
    """

    def __init__(self, app: ASGIApp, instrumentation: Instrumentation) -> None:
        self.app = app
        self._instrumentation = instrumentation
        self._audited: AuditMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Source: ASGI specification 3.0.

        Raises:
            AuditError: there is no logger, and the server has begun without a lifespan. The application is not called.
        """
        is_seen_to = exchange_of(scope) is not None or is_left_out(scope) or is_held(scope)
        if is_seen_to or not self._instrumentation.is_on:
            await self.app(scope, receive, send)
            return
        try:
            audited = self._outermost()
        except AuditError as error:
            if scope["type"] != "lifespan":
                raise
            # An exception here would be taken for an application without a lifespan, and the server would go on.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"otel-audit: {error}"})
            return
        await audited(scope, receive, send)

    def _outermost(self) -> AuditMiddleware:
        if self._audited is None:
            self._audited = AuditMiddleware(self.app, audit=self._instrumentation.audit)
        return self._audited
