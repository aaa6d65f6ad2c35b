"""The service of `otel-audit demo`: a small feature store over real HTTP, with people and agents who use it.

Everything is real except the features. Requests go over a loopback socket, each side has a span of its own with the
trace context in the headers, and a client that hangs up is noticed.
"""

from __future__ import annotations

import http.client
import json
import random
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry import propagate
from opentelemetry.trace import SpanKind, Tracer

from otel_audit.event import AuditAction, AuditPrincipal, AuditResource, AuditSource, Outcome, PrincipalKind
from otel_audit.logger import AuditLogger

__all__ = ["FeatureService", "Visitors"]

# agent-7 acts for two people, and logs in for each.
_PASSWORDS: Final = {
    "alice": "sunflower-42",
    "bob": "bicycle-17",
    "agent-7": "turnip-99",
    "agent-7/bob": "turnip-99",
}
_PRINCIPALS: Final = {
    "alice": AuditPrincipal(username="alice", roles=["reader"], auth_type="password"),
    "bob": AuditPrincipal(username="bob", roles=["reader", "writer"], auth_type="password"),
    "agent-7": AuditPrincipal(
        username="agent-7", roles=["reader"], auth_type="password", kind=PrincipalKind.SERVICE, on_behalf_of="alice"
    ),
    "agent-7/bob": AuditPrincipal(
        username="agent-7", roles=["reader"], auth_type="password", kind=PrincipalKind.SERVICE, on_behalf_of="bob"
    ),
}
_VIEWS: Final = {"driver_stats": "reader", "customer_profile": "reader", "salaries": "payroll"}  # and who may read it
_SLOW_S: Final = 2.0  # how long a materialization takes; who asks for it here does not wait that long
_PATIENCE_S: Final = 0.05
_CLOSED_BY_CLIENT: Final = 499  # Source: nginx, whose log formats made it the usual number for that


class _Cancelled(Exception):
    """The client is gone, or the service stops."""


@dataclass(slots=True)
class _Exchange:
    """One request while it is answered."""

    method: str
    path: str
    body: dict[str, Any]
    token: str
    source: AuditSource
    is_over: Callable[[], bool]
    request_id: str = field(default_factory=AuditLogger.new_request_id)
    principal: AuditPrincipal | None = None
    resource: AuditResource | None = None


class FeatureService:
    """The service on a free loopback port, from `start` to `stop`."""

    def __init__(self, audit: AuditLogger, tracer: Tracer) -> None:
        self._audit = audit
        self._tracer = tracer
        self._people: dict[str, AuditPrincipal] = {}
        self._stopping = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="demo-service")

    @property
    def port(self) -> int:
        """Return the port on 127.0.0.1 on which it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer requests."""
        self._thread.start()

    def stop(self) -> None:
        """Return when every request has been answered and recorded, and the port is free."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, exchange: _Exchange, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Return status and body, under a span that continues the client's trace. The request is recorded."""
        with self._tracer.start_as_current_span(
            f"{exchange.method} {exchange.path}", context=propagate.extract(headers), kind=SpanKind.SERVER
        ):
            started_ns = time.perf_counter_ns()
            status, body = self._answered(exchange)
            self._audit.log_http_request(
                request_id=exchange.request_id,
                method=exchange.method,
                path=exchange.path,
                principal=exchange.principal,
                source=exchange.source,
                resource=exchange.resource,
                outcome=_outcome_of(status),
                duration_ms=(time.perf_counter_ns() - started_ns) / 1e6,
                status_code=status,
            )
            return status, body

    def _answered(self, exchange: _Exchange) -> tuple[int, dict[str, Any]]:
        try:
            return 200, self._result(exchange)
        except PermissionError as error:
            return (403 if exchange.principal else 401), {"error": str(error)}
        except KeyError as error:
            return 404, {"error": f"no {error}"}
        except _Cancelled:
            return _CLOSED_BY_CLIENT, {}
        except Exception as error:
            return 500, {"error": type(error).__name__}

    def _result(self, exchange: _Exchange) -> dict[str, Any]:
        if exchange.path == "/login":
            return self._login(exchange)
        exchange.principal = self._people.get(exchange.token)
        if exchange.principal is None:
            raise PermissionError("sign in first")
        match exchange.method, exchange.path.split("/")[1:]:
            case "POST", ["mcp"]:
                return self._call_tool(exchange)
            case "GET", ["feature-views", view]:
                return self._read(exchange, view)
            case ("DELETE", ["feature-views", view]) | ("POST", ["push", view]):
                self._authorize(exchange, view, "DELETE" if exchange.method == "DELETE" else "WRITE_ONLINE")
                return {"done": view}
            case "POST", ["materialize", view]:
                self._authorize(exchange, view, "WRITE_OFFLINE")
                return self._materialize(exchange)
        raise KeyError(exchange.path)

    def _login(self, exchange: _Exchange) -> dict[str, Any]:
        user = str(exchange.body.get("user", ""))
        if not secrets.compare_digest(_PASSWORDS.get(user, ""), str(exchange.body.get("password", ""))):
            # Careless code like this is why there is redaction: it puts the form, with the password, into the detail.
            self._audit.log_authn(
                request_id=exchange.request_id,
                outcome="failure",
                principal=AuditPrincipal(username=user, auth_type="password"),
                source=exchange.source,
                detail=f"wrong user or password in {json.dumps(exchange.body)}",
            )
            raise PermissionError("wrong user or password")
        exchange.principal = _PRINCIPALS[user]
        self._audit.log_authn(
            request_id=exchange.request_id, outcome="success", principal=exchange.principal, source=exchange.source
        )
        token = secrets.token_urlsafe(24)
        self._people[token] = exchange.principal
        return {"token": token}

    def _authorize(self, exchange: _Exchange, view: str, action: str) -> None:
        exchange.resource = AuditResource(type="feature_view", name=view, actions=[action])
        allowed = exchange.principal is not None and "writer" in exchange.principal.roles
        self._audit.log_authz(
            request_id=exchange.request_id,
            outcome="allow" if allowed else "deny",
            principal=exchange.principal,
            resource=exchange.resource,
            detail="" if allowed else "needs the role writer",
        )
        if not allowed:
            raise PermissionError("needs the role writer")

    def _read(self, exchange: _Exchange, view: str) -> dict[str, Any]:
        exchange.resource = AuditResource(type="feature_view", name=view, actions=["READ_ONLINE"])
        if view == "broken":
            raise ConnectionError("the online store does not answer")
        if view not in _VIEWS:
            raise KeyError(view)
        if exchange.principal is None or _VIEWS[view] not in exchange.principal.roles:
            raise PermissionError(f"needs the role {_VIEWS[view]}")
        return {"view": view, "rows": [1, 2, 3]}

    def _call_tool(self, exchange: _Exchange) -> dict[str, Any]:
        """Answer JSON-RPC `tools/call`. A failing tool is an answer too, with status 200. Source: MCP, "Tools"."""
        tool, arguments = str(exchange.body["name"]), dict(exchange.body["arguments"])
        try:
            with self._audit.operation(
                "mcp.tools.call",
                principal=exchange.principal,
                source=AuditSource(ip=exchange.source.ip, transport="mcp-http"),
                action=AuditAction(mcp_tool=tool, path=exchange.path),
                resource=AuditResource(type="feature_view", name=str(arguments.get("view", ""))),
                request_id=exchange.request_id,
            ) as operation:
                operation.event.jsonrpc_id = str(exchange.body["id"])
                return {"isError": False, "content": self._read(exchange, str(arguments["view"]))}
        except (KeyError, PermissionError, ConnectionError) as error:
            return {"isError": True, "content": type(error).__name__}

    def _materialize(self, exchange: _Exchange) -> dict[str, Any]:
        deadline = time.monotonic() + _SLOW_S
        while time.monotonic() < deadline:
            if exchange.is_over() or self._stopping.wait(0.01):
                raise _Cancelled
        return {"rows": 1000}


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for the requests that are being answered

    def __init__(self, service: FeatureService) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.service = service

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing, since a client that hung up is recorded as such."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        exchange = _Exchange(
            method=self.command,
            path=self.path,
            body=json.loads(self.rfile.read(length) or b"{}"),
            token=self.headers.get("Authorization", "").removeprefix("Bearer "),
            source=AuditSource(ip=self.client_address[0], transport="http", user_agent=self.headers.get("User-Agent")),
            is_over=lambda: _is_gone(self.connection),
        )
        status, body = self.server.service.answer(exchange, dict(self.headers.items()))
        if status != _CLOSED_BY_CLIENT:
            self._send(status, json.dumps(body).encode())

    do_POST = do_DELETE = do_GET

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing, since the audit events say it."""


def _is_gone(connection: socket.socket) -> bool:
    """Return True if the client has closed the connection while it waits for an answer."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _outcome_of(status: int) -> Outcome:
    if status in (401, 403):
        return Outcome.DENIED
    if status == _CLOSED_BY_CLIENT:
        return Outcome.CANCELLED
    if status >= 500:
        return Outcome.ERROR
    return Outcome.FAILURE if status >= 400 else Outcome.SUCCESS


@dataclass(frozen=True, slots=True)
class _Visit:
    user: str
    method: str
    path: str
    body: Mapping[str, Any] = field(default_factory=dict)
    patience_s: float = 10.0


def _tool(view: str) -> Mapping[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "name": "get_online_features", "arguments": {"view": view}}


_VISITS: Final = (
    _Visit("alice", "GET", "/feature-views/driver_stats"),
    _Visit("agent-7", "POST", "/mcp", _tool("driver_stats")),
    _Visit("mallory", "POST", "/login", {"user": "mallory", "password": "hunter2-hunter2"}),
    _Visit("alice", "DELETE", "/feature-views/driver_stats"),
    _Visit("bob", "POST", "/push/customer_profile"),
    _Visit("bob", "POST", "/materialize/driver_stats", patience_s=_PATIENCE_S),
    _Visit("agent-7", "POST", "/mcp", _tool("broken")),
    _Visit("alice", "GET", "/feature-views/salaries"),
    _Visit("agent-7/bob", "POST", "/mcp", _tool("salaries")),
    _Visit("nobody", "GET", "/feature-views/customer_profile"),
    _Visit("alice", "GET", "/feature-views/broken"),
    _Visit("alice", "GET", "/feature-views/retired"),
)
_OFTEN: Final = (4, 6, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1)  # how often each is made, once all have been made


class Visitors:
    """Clients in threads, which go on until `stop`. They slow down above `rate` events a second."""

    def __init__(self, port: int, tracer: Tracer, *, rate: float, events: Callable[[], int], threads: int = 3) -> None:
        self._port = port
        self._tracer = tracer
        self._rate = rate
        self._events = events
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._visits = _visits()
        self._tokens: dict[str, str] = {}
        self._started = 0.0
        self._threads = [threading.Thread(target=self._run, name=f"demo-visitor-{n}") for n in range(threads)]

    def start(self) -> None:
        """Send the visitors in."""
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when all have gone."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._lock:  # one after the other through the door, so that all keep the rate together
                due = self._started + self._events() / self._rate
                if self._stopping.wait(max(0.0, due - time.monotonic())):
                    return
                visit = next(self._visits)
                if visit.user in _PASSWORDS and visit.user not in self._tokens:
                    form = {"user": visit.user, "password": _PASSWORDS[visit.user]}
                    self._tokens[visit.user] = self._make(_Visit(visit.user, "POST", "/login", form))["token"]
            self._make(visit)

    def _make(self, visit: _Visit) -> dict[str, Any]:
        """Make the visit. Return the answer, or nothing if the visitor did not wait for it."""
        headers = {"Content-Type": "application/json", "User-Agent": "otel-audit-demo"}
        if token := self._tokens.get(visit.user):
            headers["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=visit.patience_s)
        with self._tracer.start_as_current_span(f"{visit.method} {visit.path}", kind=SpanKind.CLIENT):
            propagate.inject(headers)
            try:
                connection.request(visit.method, visit.path, json.dumps(dict(visit.body)), headers)
                answer: dict[str, Any] = json.loads(connection.getresponse().read())
            except TimeoutError:
                return {}
            finally:
                connection.close()
        return answer


def _visits() -> Iterator[_Visit]:
    yield from _VISITS
    draw = random.Random()
    while True:
        yield draw.choices(_VISITS, _OFTEN)[0]
