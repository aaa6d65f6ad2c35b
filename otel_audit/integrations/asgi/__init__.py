"""FastAPI, Starlette and every other ASGI application: one event for each request and each WebSocket connection.

The life of one request, in reading order:

1. `middleware`: `AuditMiddleware` gets the request, passes over excluded paths, and begins an exchange.
2. `scope`: the server's description of the request is read: path, headers, and later the route found by the framework.
3. `exchange`: an `HttpExchange` or `SocketExchange` is the state of the request. It knows the user, the progress and
   the outcome. `span` finds the server span that it belongs to, `integrations.client_address` the client behind trusted
   proxies, and `integrations.principals` its user, with `fastapi_user` for users that a dependency returns.
4. `recording`: a `Recording` is the `receive` and `send` of the application. When the server has the last byte, it
   writes the event. If the loss rule is `closed`, it has written one before the application was called.
5. `lifespan`: when the application ends, it waits for requests that are under way and closes the logger.
"""

from otel_audit.integrations.asgi.middleware import AuditMiddleware, current_event, set_principal

__all__ = ["AuditMiddleware", "current_event", "set_principal"]
