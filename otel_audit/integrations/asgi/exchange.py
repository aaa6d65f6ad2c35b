"""One HTTP request or WebSocket connection: its user, its progress, and the meaning of its end.

An `Exchange` starts from its scope, sees each message between the server and the application, and knows the outcome in
the end. `recording` makes the event.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from msgspec import UNSET
from opentelemetry.context import get_current
from opentelemetry.trace import SpanContext

from otel_audit import ids
from otel_audit.errors import is_stop
from otel_audit.event_schema import Outcome
from otel_audit.integrations.asgi.scope import Message, Scope, known_id, path_in, text_of, traceparent_in
from otel_audit.integrations.asgi.span import ids_of, span_around, span_inside
from otel_audit.integrations.client_address import TrustedProxies
from otel_audit.integrations.parent import parent_id
from otel_audit.logger import AuditLogger, mcp_audit_request_id
from otel_audit.records.attributes import CLAIMED_REQUEST_ID, TRACEPARENT

if TYPE_CHECKING:
    from otel_audit.event import AuditEvent, AuditPrincipal

__all__ = [
    "Exchange",
    "HttpExchange",
    "SocketExchange",
    "carrier_of",
    "exchange_of",
    "is_left_out",
    "leave_out",
    "note_span",
]

_LONG_NS: Final = 100_000_000
_LONG_PATH_CHARS: Final = 512
_LENGTH_DIGITS: Final = 20
_KEY: Final = "otel_audit.exchange"
_EVENT: Final = "otel_audit.event"
_LEFT_OUT: Final = "otel_audit.left_out"
_NOTED_SPAN: Final = "otel_audit.server_span"
_NO_FACTS: Final[dict[str, Any]] = {}

_CLIENT_CLOSED: Final = 499  # Source: nginx
_SERVER_ERROR: Final = 500
_FORBIDDEN: Final = 403
_SWITCHING: Final = 101

# Source: RFC 6455, section 7.4.1, and the IANA registry of close codes (3000 and 3003).
_GOOD_CLOSE: Final = frozenset({1000, 1001})
_NO_CODE: Final = 1005
_DENIED_CLOSE: Final = frozenset({1008, 3000, 3003})
_ERROR_CLOSE: Final = frozenset({1011, 1012, 1013, 1014})
_FAILED_CLOSE: Final = frozenset({1002, 1003, 1007, 1009, 1010})


class Exchange:
    """The state of one request or connection.

    User: `told` is the principal that the application named with `set_principal`. `found` is the one that a FastAPI
    dependency returned. `claimed` is a user name that the client sent with a password and no dependency has refused.
    `claimed_id` is the `X-Request-Id` of a peer that is not a trusted proxy.

    Event: `own_id` is the id of the event recorded before the application was called, if there is one, else of the one
    at the end. `event` is set once the application has asked for it, perhaps to fill it in. `span` is the server span
    as far as it is known. It is the one that OpenTelemetry's middleware began, the outermost if there are several;
    otherwise the span around the audit middleware, or else the first one seen inside it.

    Progress: `is_ending` means that the server is about to get the last message, `is_gone` that the client left before
    that. `is_doubtful` means that the last message may also end a failed response, so that only an exception after it
    tells the difference. `is_under_way` is true until `forget`.
    """

    __slots__ = (
        "_ended_ns",
        "_has_traceparent",
        "_span_is_noted",
        "_started_ns",
        "claimed",
        "claimed_id",
        "event",
        "event_id",
        "found",
        "ip",
        "is_doubtful",
        "is_ending",
        "is_gone",
        "is_under_way",
        "method",
        "own_id",
        "parent_id",
        "path",
        "request_id",
        "scope",
        "span",
        "status_code",
        "told",
        "user_agent",
    )

    event_type: ClassVar[str]
    transport: ClassVar[str]

    def __init__(self, scope: Scope, proxies: TrustedProxies) -> None:
        self._started_ns = time.perf_counter_ns()
        self._ended_ns = 0
        self.scope = scope
        self.method: str = scope["method"] if self.transport == "http" else "GET"
        path: str = scope["path"]
        self.path = path_in(scope) if "?" in path else path
        self.event_id = self.own_id = str(ids.new_id())
        self.parent_id = parent_id()
        noted: SpanContext | None = scope.pop(_NOTED_SPAN, None)
        self._span_is_noted = noted is not None
        self.span = span_around() if noted is None else ids_of(noted)
        self.told: AuditPrincipal | None = None
        self.found: AuditPrincipal | None = None
        self.claimed: AuditPrincipal | None = None
        self.event: AuditEvent | None = None
        self.status_code: int | None = None
        self.is_ending = self.is_gone = self.is_doubtful = False
        self.is_under_way = True
        self._read_headers(proxies)
        scope[_KEY] = self

    def _read_headers(self, proxies: TrustedProxies) -> None:
        user_agent = request_id = forwarded = None
        self._has_traceparent = False
        header = proxies.header
        for name, value in self.scope["headers"]:
            if name == b"user-agent":
                user_agent = value
            elif name == b"x-request-id":
                request_id = value if request_id is None else b""  # two headers count as none
            elif name == b"traceparent":
                self._has_traceparent = True
            elif name == header:
                forwarded = [*(forwarded or ()), value]
        self.user_agent = None if user_agent is None else text_of(user_agent)
        client = self.scope.get("client")
        peer = client[0] if client else ""
        self.ip: str = peer if forwarded is None else proxies.client(peer, forwarded)
        given = believed = None
        if request_id is not None and (given := known_id(request_id)) is not None and proxies.trusts(peer):
            believed = given
        self.claimed_id = given if believed is None else None
        self.request_id: str = mcp_audit_request_id.get() or believed or AuditLogger.new_request_id()

    def begun_event(self) -> AuditEvent:
        """Return the event as far as it is known, to be filled in. It is always the same one. Any thread."""
        self.look()
        if self.event is None:
            from otel_audit.event import AuditAction, AuditEvent, AuditSource

            event = AuditEvent(
                event_type=self.event_type,
                event_id=self.event_id,
                request_id=self.request_id,
                parent_id=self.parent_id,
                source=AuditSource(ip=self.ip, transport=self.transport, user_agent=self.user_agent),
                action=AuditAction(path=self.path, method=self.method),
            )
            # All threads get the first event, even at the same time. There is no lock, which a fork could leave taken.
            self.event = self.scope.setdefault(_EVENT, event)
        return self.event

    @property
    def claims(self) -> dict[str, str]:
        """The ids that the client claimed for the request, as attributes separate from the verified ones."""
        claims = _NO_FACTS if self.claimed_id is None else {CLAIMED_REQUEST_ID: self.claimed_id}
        if not self._has_traceparent or self.span.trace_id is not UNSET:
            return claims
        traceparent = traceparent_in(self.scope)
        return claims if traceparent is None else {**claims, TRACEPARENT: traceparent}

    @property
    def duration_ms(self) -> float:
        """The milliseconds from its beginning to its last byte, or until now."""
        return ((self._ended_ns or time.perf_counter_ns()) - self._started_ns) / 1e6

    @property
    def takes_long(self) -> bool:
        """True if the request has run long enough to spend a turn of the event loop on looking for its client."""
        return time.perf_counter_ns() - self._started_ns > _LONG_NS

    @property
    def facts(self) -> dict[str, Any]:
        """Further facts about its end, as attributes."""
        return _NO_FACTS

    def look(self) -> None:
        """Take the span that is active here, inside the application, if no server span is known yet."""
        # This runs for each message. The context is empty if nothing is traced, and then there is no span to find.
        if self.span.trace_id is UNSET and get_current():
            self.span = span_inside()

    def note(self, span: SpanContext) -> None:
        """Take the span that OpenTelemetry's middleware has begun, unless such a middleware further out began one."""
        if not self._span_is_noted:
            self.span, self._span_is_noted = ids_of(span), True

    def is_last(self, message: Message) -> bool:
        """Return True if this is the last message of the application."""
        raise NotImplementedError

    def sent(self, message: Message) -> None:
        """Note that the server has this message of the application, and when it has the last byte."""
        raise NotImplementedError

    def received(self, message: Message) -> bool:
        """Note that the application gets this message; return True if the exchange is over with it."""
        raise NotImplementedError

    def outcome(self, error: BaseException | None) -> Outcome:
        """Return the outcome and set `status_code`. `error` is the exception that the application raised."""
        raise NotImplementedError

    def detail(self, outcome: Outcome) -> str:
        """Return method, path and status as Feast writes them, with the outcome if there is no status.

        A long path, chosen by the client, is left out here, since the event has it already. Its beginning is left out
        too, since half a secret would not be recognised.
        """
        path = self.path if len(self.path) <= _LONG_PATH_CHARS else "…"
        return f"{self.method} {path} -> {self.status_code or outcome}"

    def forget(self) -> None:
        """Drop the reference to the scope, which still refers to this exchange, so that both are freed at once.

        The exchange itself stays usable: with MCP over SSE, a call that the request carried may come later and needs
        its ids and its user.
        """
        self.is_under_way = False
        self.scope.pop(_EVENT, None)
        self.scope = {}


def exchange_of(scope: Mapping[str, Any]) -> Exchange | None:
    """Return the exchange under way that a scope belongs to, or None if no middleware records it."""
    found: Exchange | None = scope.get(_KEY)
    return found if found is not None and found.is_under_way else None


def carrier_of(scope: Mapping[str, Any]) -> Exchange | None:
    """Return the recorded exchange of this scope, even after its end, or None if it is not recorded."""
    return scope.get(_KEY)


def note_span(span: SpanContext, scope: Scope) -> None:
    """Note that OpenTelemetry's middleware, outside or inside ours, has begun this span for a request."""
    exchange = exchange_of(scope)
    if exchange is None:
        scope.setdefault(_NOTED_SPAN, span)
    else:
        exchange.note(span)


def leave_out(scope: Scope) -> None:
    """Keep every middleware from recording this request or connection. The outermost one decides."""
    scope[_LEFT_OUT] = True


def is_left_out(scope: Scope) -> bool:
    """Return True if an outer middleware has excluded it because of its path."""
    return _LEFT_OUT in scope


class HttpExchange(Exchange):
    """An HTTP request. Its response is complete only once the server has taken the last byte."""

    __slots__ = ("_has_trailers", "_headers", "_is_streamed", "_is_whole", "_unsent")

    event_type = "http.request"
    transport = "http"

    def __init__(self, scope: Scope, proxies: TrustedProxies) -> None:
        super().__init__(scope, proxies)
        self._has_trailers = self._is_streamed = self._is_whole = False
        self._headers: Iterable[tuple[bytes, bytes]] = ()
        self._unsent: int | None = None  # bytes of a streamed body whose length was declared

    def is_last(self, message: Message) -> bool:
        """See `Exchange`."""
        match message["type"]:
            case "http.response.start":
                return False
            case "http.response.body" | "http.response.zerocopysend":
                return not message.get("more_body", False) and not self._has_trailers
            case "http.response.trailers":
                return not message.get("more_trailers", False)
            case "http.response.pathsend":
                return not self._has_trailers
        return False

    def sent(self, message: Message) -> None:
        """Note a message of the response, and whether its end is doubtful.

        Middleware that answers an exception with 500 raises it again after the response. And a stream that breaks off
        below Starlette's `BaseHTTPMiddleware` ends as if it were complete, with an empty message, before the exception
        is raised.
        """
        if message["type"] == "http.response.start":
            self.status_code = message["status"]
            self._has_trailers = message.get("trailers", False)
            self._headers = message.get("headers", ())
        elif message.get("more_body", False):
            if not self._is_streamed:
                self._is_streamed = True
                self._unsent = _declared_length(self._headers)
            if self._unsent is not None:
                self._unsent -= len(message.get("body", b""))
        if self.is_ending:
            self._ended_ns = time.perf_counter_ns()
            self._is_whole = True
            self.is_doubtful = (self.status_code or 0) >= _SERVER_ERROR or (
                self._is_streamed and not message.get("body")
            )

    def received(self, message: Message) -> bool:
        """Note a message of the client. A disconnect does not end the exchange, since the application may go on.

        Servers also send a disconnect after the last byte. That is not always the last message: Starlette's
        `BaseHTTPMiddleware` sends an empty one behind the body, and a client that has as many bytes as `content-length`
        declared may have left by then, with all that it asked for.
        """
        if message["type"] == "http.disconnect" and not self.is_ending:
            if self._unsent == 0:
                self._is_whole = True
            else:
                self.is_gone = True
        return False

    def outcome(self, error: BaseException | None) -> Outcome:
        """Return the outcome by the status code. If the client left before the response, it is `cancelled`."""
        if self.status_code is None and not self.is_gone and isinstance(error, Exception | None):
            self.status_code = _SERVER_ERROR  # servers answer with 500 in this case
        if self.is_gone or (error is not None and is_stop(error)):
            return Outcome.CANCELLED
        if not self._is_whole or self.status_code is None:
            return Outcome.ERROR
        status = _outcome_of_status(self.status_code)
        return Outcome.ERROR if error is not None and status is Outcome.SUCCESS else status


class SocketExchange(Exchange):
    """A WebSocket connection, from its handshake to its close."""

    __slots__ = ("_close_code", "_denies")

    event_type = "websocket.session"
    transport = "websocket"

    def __init__(self, scope: Scope, proxies: TrustedProxies) -> None:
        super().__init__(scope, proxies)
        self._close_code: int | None = None
        self._denies = False

    @property
    def facts(self) -> dict[str, Any]:
        """The close code, if there is one."""
        return _NO_FACTS if self._close_code is None else {"websocket.close_code": self._close_code}

    def is_last(self, message: Message) -> bool:
        """See `Exchange`."""
        kind = message["type"]
        return kind == "websocket.close" or (
            kind == "websocket.http.response.body" and not message.get("more_body", False)
        )

    def sent(self, message: Message) -> None:
        """See `Exchange`."""
        match message["type"]:
            case "websocket.accept":
                self.status_code = _SWITCHING
            case "websocket.close" if self.status_code is None:
                self._denies = True
                self.status_code = _FORBIDDEN  # Source: ASGI specification, "Close - send event"
            case "websocket.close":
                self._close_code = message.get("code", 1000)
            case "websocket.http.response.start":
                self._denies = True
                self.status_code = message["status"]
        if self.is_ending:
            self._ended_ns = time.perf_counter_ns()
            self.is_doubtful = (self.status_code or 0) >= _SERVER_ERROR

    def received(self, message: Message) -> bool:
        """See `Exchange`."""
        if message["type"] != "websocket.disconnect" or self.is_ending:
            return False
        self.is_gone = True
        self._close_code = message.get("code", _NO_CODE)
        return True

    def outcome(self, error: BaseException | None) -> Outcome:
        """Return the outcome by the close code.

        It is `unknown` for codes that the application defines, from 4000 on, and for 1005, which servers report both
        for a client that closed without a code and for one that was cut off.
        """
        if self._denies:
            return _outcome_of_status(self.status_code or _FORBIDDEN)
        if self._close_code is not None:
            return self._outcome_of_close(self._close_code)
        is_refused = self.status_code is None
        if is_refused and not self.is_gone and isinstance(error, Exception | None):
            self.status_code = _SERVER_ERROR  # servers answer an unhandled handshake with 500
        if self.is_gone or is_stop(error):
            return Outcome.CANCELLED
        return Outcome.SUCCESS if error is None and not is_refused else Outcome.ERROR

    def _outcome_of_close(self, code: int) -> Outcome:
        if code in _GOOD_CLOSE and self.status_code is not None:
            return Outcome.SUCCESS
        if self.is_gone:
            return Outcome.UNKNOWN if code == _NO_CODE and self.status_code is not None else Outcome.CANCELLED
        if code in _DENIED_CLOSE:
            return Outcome.DENIED
        if code in _ERROR_CLOSE:
            return Outcome.ERROR
        return Outcome.FAILURE if code in _FAILED_CLOSE else Outcome.UNKNOWN


def _declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return the bytes that the response declares for its body, or None if it declares no number."""
    for name, value in headers:
        if name.lower() == b"content-length":
            return int(value) if value.isdigit() and len(value) < _LENGTH_DIGITS else None
    return None


def _outcome_of_status(status_code: int) -> Outcome:
    """Return the outcome of an answered request by its status code."""
    if status_code < 400:
        return Outcome.SUCCESS
    if status_code in (401, _FORBIDDEN):
        return Outcome.DENIED
    if status_code == _CLIENT_CLOSED:
        return Outcome.CANCELLED
    return Outcome.FAILURE if status_code < _SERVER_ERROR else Outcome.ERROR
