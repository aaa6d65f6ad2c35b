"""One HTTP request or WebSocket connection: what is known of it from its scope, at its begin and at its end.

The route of a request: the template of its path, read when Starlette, FastAPI or Litestar have found it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import UNSET

from otel_audit import ids
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditSource, Outcome
from otel_audit.integrations.asgi.client_address import TrustedProxies
from otel_audit.integrations.asgi.progress import HttpProgress, Progress, SocketProgress
from otel_audit.integrations.asgi.span import ServerSpan
from otel_audit.integrations.asgi.types import Scope
from otel_audit.integrations.parent import parent_id
from otel_audit.logger import AuditLogger, mcp_audit_request_id
from otel_audit.records.attributes import CLAIMED_REQUEST_ID, TRACEPARENT

__all__ = [
    "HTTP_REQUEST",
    "WEBSOCKET_SESSION",
    "Carrier",
    "Exchange",
    "carrier_of",
    "exchange_of",
    "is_left_out",
    "leave_out",
    "path_in",
    "route_of",
    "traceparent_in",
]


HTTP_REQUEST: Final = "http.request"
WEBSOCKET_SESSION: Final = "websocket.session"

_LONG_NS: Final = 100_000_000
_LONG_PATH_CHARS: Final = 512
_LONG_HEADER_BYTES: Final = 64 * 1024  # what most servers take of all headers together
_KEY: Final = "otel_audit.exchange"
_EVENT: Final = "otel_audit.event"
_LEFT_OUT: Final = "otel_audit.left_out"
# What proxies and tracers make. Anything else, and anything longer, is a client's own idea of an id.
_SANE_ID: Final = re.compile(rb"[0-9A-Za-z._:/+=@-]{1,128}")
# Source: W3C Trace Context, section 3.2; of later versions too, without what they may append.
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NO_CLAIMS: Final[dict[str, str]] = {}


class Carrier(NamedTuple):
    """What the call that a request carried takes over from it; with MCP over SSE the request is over by then.

    `event_id` is that of the request, as its `own_id`; `told` and `found` are the principals that it knows.
    """

    event_id: str
    request_id: str
    ip: str
    told: AuditPrincipal | None
    found: AuditPrincipal | None


class Exchange:
    """The state of one request or connection. `told`: the principal that the application named by `set_principal`.

    `found`: the one that a dependency of FastAPI returned. `claimed`: a user name that the client gave with a password,
    and that no dependency has refused. `claimed_id`: the `X-Request-Id` of a peer that is no trusted proxy.
    `own_id`: of the event that is in the trail while it runs, if any, else of the one at its end. `event`: where
    somebody asked for it, and may have filled it in.
    """

    __slots__ = (
        "_ended_ns",
        "_started_ns",
        "claimed",
        "claimed_id",
        "event",
        "event_id",
        "event_type",
        "found",
        "ip",
        "method",
        "own_id",
        "parent_id",
        "path",
        "progress",
        "request_id",
        "scope",
        "span",
        "told",
        "transport",
        "user_agent",
    )

    def __init__(self, scope: Scope, proxies: TrustedProxies) -> None:
        self._started_ns = time.perf_counter_ns()
        self._ended_ns = 0
        self.scope = scope
        is_http = scope["type"] == "http"
        self.progress: Progress = HttpProgress() if is_http else SocketProgress()
        self.event_type = HTTP_REQUEST if is_http else WEBSOCKET_SESSION
        self.transport = "http" if is_http else "websocket"
        self.method: str = scope["method"] if is_http else "GET"
        self.path = path_in(scope)
        self.event_id = self.own_id = str(ids.new_id())
        self.parent_id = parent_id()
        self.span = ServerSpan.of(scope)
        self.told: AuditPrincipal | None = None
        self.found: AuditPrincipal | None = None
        self.claimed: AuditPrincipal | None = None
        self.event: AuditEvent | None = None
        self._read_headers(proxies)
        scope[_KEY] = self

    def _read_headers(self, proxies: TrustedProxies) -> None:
        user_agent = request_id = forwarded = None
        header = proxies.header
        for name, value in self.scope["headers"]:
            if name == b"user-agent":
                user_agent = value
            elif name == b"x-request-id":
                request_id = value if request_id is None else b""  # two are none
            elif name == header:
                forwarded = [*(forwarded or ()), value]
        self.user_agent = None if user_agent is None else _text_of(user_agent)
        client = self.scope.get("client")
        peer = client[0] if client else ""
        self.ip: str = peer if forwarded is None else proxies.client(peer, forwarded)
        given = _sane_id(request_id)
        believed = given if given is not None and proxies.trusts(peer) else None
        self.claimed_id = given if believed is None else None
        self.request_id: str = mcp_audit_request_id.get() or believed or AuditLogger.new_request_id()

    def begun_event(self) -> AuditEvent:
        """Return its event as far as it is known, always the same one, to be filled in. Any thread of the request."""
        self.span.look()
        if self.event is None:
            event = AuditEvent(
                event_type=self.event_type,
                event_id=self.event_id,
                request_id=self.request_id,
                parent_id=self.parent_id,
                source=AuditSource(ip=self.ip, transport=self.transport, user_agent=self.user_agent),
                action=AuditAction(path=self.path, method=self.method),
            )
            # Of threads that ask at once all get the first one, and without a lock, which a fork could leave taken.
            self.event = self.scope.setdefault(_EVENT, event)
        return self.event

    @property
    def claims(self) -> dict[str, str]:
        """Attributes: the ids that a client gave the request, kept apart from those that are known."""
        traceparent = traceparent_in(self.scope) if self.span.ids.trace_id is UNSET else None
        if self.claimed_id is None and traceparent is None:
            return _NO_CLAIMS
        claims = {} if self.claimed_id is None else {CLAIMED_REQUEST_ID: self.claimed_id}
        return claims if traceparent is None else {**claims, TRACEPARENT: traceparent}

    @property
    def duration_ms(self) -> float:
        """Milliseconds from its begin to its last byte, or until now."""
        return ((self._ended_ns or time.perf_counter_ns()) - self._started_ns) / 1e6

    @property
    def takes_long(self) -> bool:
        """Whether it is worth a turn of the event loop to find out if the client still waits."""
        return time.perf_counter_ns() - self._started_ns > _LONG_NS

    @property
    def carrier(self) -> Carrier:
        """What a call that it carries takes over."""
        return Carrier(self.own_id, self.request_id, self.ip, self.told, self.found)

    def forget(self) -> None:
        """The scope refers to its `carrier` only: this exchange refers to the scope, and both are free at once."""
        self.scope[_KEY] = self.carrier
        self.scope.pop(_EVENT, None)
        ServerSpan.forget(self.scope)

    def is_over(self) -> None:
        """The server has the last byte."""
        self._ended_ns = time.perf_counter_ns()

    def detail(self, outcome: Outcome) -> str:
        """Method, path and status, as Feast writes them; the outcome where there is no status.

        A long path, which the client chose, is not written twice. Not its beginning either: half a secret is not found.
        """
        path = self.path if len(self.path) <= _LONG_PATH_CHARS else "…"
        return f"{self.method} {path} -> {self.progress.status_code or outcome.value}"


def path_in(scope: Mapping[str, Any]) -> str:
    """The path of a request or connection, which the server has decoded: a question mark in it is no begin of a query.

    Never from the `url` of a framework, which is put together with what the client says of the host.
    """
    path: str = scope["path"]
    return path.replace("?", "%3F") if "?" in path else path


def traceparent_in(scope: Mapping[str, Any]) -> str | None:
    """What the client says of its trace. Source: W3C Trace Context, section 3.2: two headers are none."""
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return given[0].decode() if len(given) == 1 and _TRACEPARENT.fullmatch(given[0]) else None


def exchange_of(scope: Mapping[str, Any]) -> Exchange | None:
    """The exchange that a scope belongs to, if there is a middleware that records it."""
    found = scope.get(_KEY)
    return found if isinstance(found, Exchange) else None


def carrier_of(scope: Mapping[str, Any]) -> Carrier | None:
    """What the recorded request that has this scope says of itself, also once it is over; None if none is recorded."""
    found = scope.get(_KEY)
    return found.carrier if isinstance(found, Exchange) else found


def leave_out(scope: Scope) -> None:
    """What this scope stands for is not wanted, by whoever is asked first."""
    scope[_LEFT_OUT] = True


def is_left_out(scope: Scope) -> bool:
    """Whether a middleware outside has passed it over because of its path."""
    return _LEFT_OUT in scope


def _sane_id(given: bytes | None) -> str | None:
    return given.decode() if given is not None and _SANE_ID.fullmatch(given) else None


def _text_of(header: bytes) -> str:
    """Return the value of a header; of one that is longer than any real one only what identifies it.

    To decode, encode and look at a megabyte takes milliseconds of the event loop, to hash it half of one.
    """
    if len(header) <= _LONG_HEADER_BYTES:
        return header.decode("utf-8", "replace")
    return f"[{len(header)} bytes, sha256:{hashlib.sha256(header).hexdigest()}]"


def route_of(scope: Scope) -> str:
    """The template of its path, those of mounted applications included; empty where no route was met.

    What a proxy or the server has in front of all paths (`root_path`) is not in it.
    """
    route = scope.get("route")
    inner = scope.get("fastapi")
    # A router that is included has its prefix only here.
    effective = inner.get("effective_route_context") if type(inner) is dict else None
    of_litestar = scope.get("path_template", "")
    template = getattr(effective or route, "path", "") if hasattr(route, "endpoint") else of_litestar
    mounts = _template_of_mounts(scope) if "app_root_path" in scope else ""
    return mounts + template if isinstance(template, str) else mounts


def _template_of_mounts(scope: Scope) -> str:
    """Of the mounts that the request has gone through."""
    outside: str = scope["app_root_path"]
    mounted: str = scope["root_path"][len(outside) :]
    if not scope.get("path_params"):
        return mounted
    whole: str = scope["path"]
    path = whole.removeprefix(outside)
    template = _found(getattr(scope.get("router"), "routes", ()), path if path.startswith("/") else whole, mounted)
    return mounted if template is None else template


def _found(routes: Sequence[Any], path: str, mounted: str) -> str | None:
    """The template of the mounts that took the part `mounted` of a path.

    Asked of the mounts themselves: that a step of the path equals the value of a parameter does not make it one, and a
    client may choose the value.
    """
    for route in routes:
        inner = getattr(route, "routes", None)
        if not isinstance(inner, Sequence):
            continue  # no mount
        pattern = getattr(route, "path_regex", None)
        if pattern is None:  # by host, not by path
            if (template := _found(inner, path, mounted)) is not None:
                return template
            continue
        match = pattern.match(path)
        prefix = path[: match.start("path") - 1] if match and "path" in pattern.groupindex else None
        if prefix is None or not mounted.startswith(prefix):
            continue
        own: str = route.path
        rest = mounted[len(prefix) :]
        if not rest:
            return own
        # Behind other middleware the routes of a mounted application are not to be seen.
        return own + (_found(inner, path[len(prefix) :], rest) or rest)
    return None
