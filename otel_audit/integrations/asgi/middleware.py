"""The middleware for FastAPI, Starlette and every other ASGI application: one event for each request."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Final

from otel_audit.errors import AuditUnavailable
from otel_audit.integrations.asgi.exchange import (
    Exchange,
    HttpExchange,
    SocketExchange,
    exchange_of,
    leave_out,
    note_span,
)
from otel_audit.integrations.asgi.lifespan import Lifespan, UnderWay
from otel_audit.integrations.asgi.recording import Recording, Register, WaitingRecording
from otel_audit.integrations.asgi.scope import ASGIApp, Receive, Scope, Send
from otel_audit.integrations.asgi.span import OPENTELEMETRY_ASGI, watch_opentelemetry
from otel_audit.integrations.client_address import TrustedProxies
from otel_audit.integrations.parent import current_event, leave, under_way
from otel_audit.integrations.principals import Principals, PrincipalSource
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.policy.decisions import Glob
from otel_audit.settings import ForwardedHeader

__all__ = ["REFUSAL", "AuditMiddleware", "current_event", "set_principal"]

REFUSAL: Final = b"The request could not be recorded in the audit trail, and was refused.\n"
"""The body of the 503 that a client gets if the loss rule is `closed`. It reveals nothing about the server's disk."""

_current: ContextVar[Recording | None] = ContextVar("otel_audit_recording", default=None)


def set_principal(principal: object) -> None:
    """Set the principal of the current request or connection. It overrides all other sources.

    `principal` is an `AuditPrincipal`, a name, the claims of a verified token, or a user object. The call works in any
    task or thread of the request, even in a synchronous dependency, where a ContextVar of your own would be lost.
    Outside a request it does nothing. It never raises: an object that cannot be read is reported on stderr.
    """
    recording = _current.get()
    if recording is not None:
        recording.exchange.told = recording.register.principals.named(principal)


class AuditMiddleware:
    """Record one event for each HTTP request (`http.request`) and each WebSocket connection (`websocket.session`).

    The event is in the trail when the application has sent the last byte, or when it ends without that. If the loss
    rule of a request is `closed`, an event is in the trail before the application is called; otherwise the client gets
    503. Exceptions of the application pass through unchanged. The lifespan holds the logger, and the last of its users
    closes it.

    `principal` says where the application keeps its user, if `Principals` does not find it by itself. `exclude` lists
    paths without an event; `*` stands for anything. With `audit_id_header`, the response names its event in
    `X-Audit-Id`. `trusted_proxies` and `forwarded_header` override the settings of the same names.

    Raises:
        ConfigError: a proxy is neither an address, nor a network, nor `unix`; or the networks include everybody.
        TypeError: `principal` is a coroutine function.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        audit: AuditLogger,
        principal: PrincipalSource | None = None,
        exclude: str | Sequence[str] = (),
        trusted_proxies: Iterable[str] | None = None,
        forwarded_header: ForwardedHeader | None = None,
        audit_id_header: bool = False,
    ) -> None:
        self.app = app
        self._audit = audit
        self._notices = Notices()
        paths = (exclude,) if isinstance(exclude, str) else exclude
        self._excluded = frozenset(path for path in paths if "*" not in path)
        self._excluded_globs = tuple(Glob(path) for path in paths if "*" in path)
        self._excludes = bool(paths)
        self._proxies = _proxies(audit, trusted_proxies, forwarded_header)
        self._under_way = UnderWay()
        principals = Principals(principal, self._notices)
        self._register = Register(audit, audit.recorder, principals, self._notices, self._under_way, audit_id_header)
        self._has_said_claim = False
        self._is_plain = not (audit.recorder.syncs or audit.recorder.may_refuse)
        if "fastapi" in sys.modules:
            from otel_audit.integrations.asgi.fastapi_user import watch_dependencies

            watch_dependencies(self._notices)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Source: ASGI specification 3.0."""
        if scope["type"] == "lifespan":
            await Lifespan(self.app, self._audit, self._under_way, receive, send).run(scope)
        elif scope["type"] not in ("http", "websocket") or exchange_of(scope) is not None:
            await self.app(scope, receive, send)  # also if an outer audit middleware already records it
        elif self._excludes and self._is_excluded(scope["path"]):
            leave_out(scope)
            await self.app(scope, receive, send)
        else:
            if OPENTELEMETRY_ASGI in sys.modules:
                watch_opentelemetry(note_span)
            kind = HttpExchange if scope["type"] == "http" else SocketExchange
            exchange = kind(scope, self._proxies)
            if exchange.claimed_id is not None and not self._has_said_claim:
                self._say_claim(exchange)
            await self._record(exchange, receive, send)

    def _say_claim(self, exchange: Exchange) -> None:
        """Say once that a request id was not believed. With trusted proxies, any stranger may send the header."""
        said = self._proxies.said_in(exchange.scope["headers"])
        if not self._proxies:
            remedy = "if it was your proxy, name its address or network in OTEL_AUDIT_TRUSTED_PROXIES"
        elif exchange.ip and any(exchange.ip.encode() in value for value in said):
            remedy = (
                "here the server has put the client's address in the place of the proxy's; start uvicorn with "
                "--no-proxy-headers, and OTEL_AUDIT_TRUSTED_PROXIES counts"
            )
        else:
            return
        self._has_said_claim = True
        self._notices.say(
            "claimed request id",
            f"the X-Request-Id of a request from {exchange.ip or 'a Unix socket'} is recorded as "
            f"audit.request.claimed_id, since only that of a trusted proxy is believed; {remedy}",
        )

    def _is_excluded(self, path: str) -> bool:
        return path in self._excluded or any(glob.matches(path) for glob in self._excluded_globs)

    async def _record(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        is_plain = self._is_plain and exchange.transport == "http"
        make = Recording if is_plain else WaitingRecording
        recording = make(self._register, exchange, receive, send)
        self._under_way.recordings.add(recording)
        if not is_plain:
            try:
                await recording.begin()
            except AuditUnavailable:
                self._under_way.recordings.discard(recording)
                scope = exchange.scope
                exchange.forget()
                await _refuse(scope, send)
                return
            except BaseException:
                self._under_way.recordings.discard(recording)
                exchange.forget()
                raise
        tokens = _current.set(recording), under_way.set((exchange.own_id, exchange.begun_event))
        try:
            await self.app(exchange.scope, recording.receive, recording.send)
            if (rest := recording.end(None)) is not None:
                await rest
        except BaseException as error:
            if (rest := recording.end(error)) is not None:
                await rest
            raise
        finally:
            exchange.forget()
            leave(*tokens)


def _proxies(audit: AuditLogger, given: Iterable[str] | None, header: ForwardedHeader | None) -> TrustedProxies:
    settings = audit.settings
    if given is None:
        given = settings.trusted_proxies if settings is not None else ()
    if header is None:
        header = settings.forwarded_header if settings is not None else ForwardedHeader.X_FORWARDED_FOR
    return TrustedProxies(given, ForwardedHeader(header))


async def _refuse(scope: Scope, send: Send) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1013})  # before accept: the server answers 403
            return
        kind = "websocket.http.response"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(REFUSAL)).encode()),
        (b"retry-after", b"5"),
    ]
    await send({"type": f"{kind}.start", "status": 503, "headers": headers})
    await send({"type": f"{kind}.body", "body": REFUSAL})
