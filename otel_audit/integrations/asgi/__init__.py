"""FastAPI, Starlette and every other ASGI application: one event for each request."""

from otel_audit.integrations.asgi.middleware import AuditMiddleware, current_event, set_principal

__all__ = ["AuditMiddleware", "current_event", "set_principal"]
