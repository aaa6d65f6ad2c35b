"""Serve the page of one trail on this machine, to anyone who has its URL.

Every request must name this machine as its host, so a site cannot reach the page through a name of its own that points
here. Its path must have the token. Both are checked before anything else. Only GET is answered.

Source: Content Security Policy Level 3; Fetch, "Cross-Origin-Resource-Policy"; DNS rebinding, CWE-350.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from otel_audit.access import AccessLog, Look
from otel_audit.errors import AuditError, ProofUnavailable
from otel_audit.http_server import BoundedHTTPServer
from otel_audit.viewing import answers
from otel_audit.viewing.answers import Asked, Unanswerable
from otel_audit.viewing.trail import ViewedTrail

__all__ = ["PageServer"]

_TOKEN_BYTES: Final = 32
_IDLE_S: Final = 30.0
_AT_ONCE: Final = 4  # questions; each may take a share of the memory
_PARAMETERS: Final = 100
_REMEMBERED: Final = 128  # recorded questions
_OF_PAGE: Final = ("before", "limit")  # parameters that choose a page, and do not change the timeline
_CONTENT_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "view.css": "text/css; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# Answers that contain an event, which is recorded.
_EVENTS: Final[Mapping[str, Callable[[ViewedTrail, Asked], Mapping[str, Any]]]] = {
    "event": answers.event,
    "proof": answers.proof,
}


class PageServer(BoundedHTTPServer):
    """Serves the page of one trail on a loopback address, from `start` to `close`.

    `access` records what is looked at. A question that is asked again and again, as while a trail is followed, is
    recorded once. `places` are those of the trail, as the records name it.

    Raises:
        OSError: the port is taken.
    """

    def __init__(
        self,
        trail: ViewedTrail,
        *,
        port: int = 0,
        ipv6: bool = False,
        access: AccessLog | None = None,
        places: Sequence[str] = (),
    ) -> None:
        self.trail = trail
        self._access = access or AccessLog(None)
        self._places = places or [trail.where]
        self._recorded: dict[object, None] = {}
        self._recording = threading.Lock()
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        self.turns = threading.BoundedSemaphore(_AT_ONCE)
        self.is_closed = False
        self.handed_out = 0
        super().__init__(("::1" if ipv6 else "127.0.0.1", port), _Request)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="view-server", daemon=True)

    @property
    def url(self) -> str:
        """The URL of the page. Whoever knows it can read the trail."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if self.address_family == socket.AF_INET6 else str(host)
        return f"http://{name}:{port}/{self.token}/"

    def start(self) -> None:
        """Start answering requests."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering, after one last request on each open connection."""
        self.is_closed = True
        self.shutdown()
        self.server_close()

    @contextmanager
    def look(
        self,
        filters: Sequence[str],
        question: object,
        *,
        also: object = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Iterator[Look]:
        """Record a look, unless the same question is one of the last that were recorded.

        `also` is another question that this look answers, so that it is not recorded separately.

        Raises:
            AccessUnrecorded: the block has not run.
        """
        with self._recording:
            is_known = question in self._recorded
            if is_known:  # keep it among the last ones, since the page asks again and again while it follows a trail
                self._recorded[question] = self._recorded.pop(question)
        if is_known:
            yield Look()
            return
        with self._access.look("view", self._places, filters, since_ns=since_ns, until_ns=until_ns) as look:
            with self._recording:
                self._recorded |= dict.fromkeys((question, also))
                while len(self._recorded) > _REMEMBERED:
                    del self._recorded[next(iter(self._recorded))]
            yield look
            with self._recording:
                self.handed_out += look.returned


class _Request(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version = "otel-audit"
    sys_version = ""
    timeout = _IDLE_S

    def parse_request(self) -> bool:
        """Refuse a request that is not allowed, before anything else is done."""
        if not super().parse_request():
            return False
        refused = self._refused()
        if refused is not None:
            self.close_connection = True
            self._say(refused)
        return refused is None

    def do_GET(self) -> None:
        """Answer a request that is allowed."""
        path, _, query = self.path.partition("?")
        name = path.removeprefix(f"/{self.server.token}/")
        if name in ("", *_CONTENT_TYPES):
            name = name or "index.html"
            self._send(HTTPStatus.OK, _CONTENT_TYPES[name], (files(__package__) / "page" / name).read_bytes())
            return
        try:
            asked = parse_qs(query, max_num_fields=_PARAMETERS)
            self._answer(name.removeprefix("api/") if name.startswith("api/") else "", asked)
        except (Unanswerable, ValueError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except ProofUnavailable as error:
            self._send_json(HTTPStatus.CONFLICT, {"error": str(error)})
        except (AuditError, OSError) as error:
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, since the path has the token, and the query shows what somebody looked for."""

    def _refused(self) -> HTTPStatus | None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _is_this_machine(hosts[0]):
            return HTTPStatus.FORBIDDEN
        token, slash, _ = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not (slash and secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())):
            return HTTPStatus.FORBIDDEN
        return None if self.command == "GET" else HTTPStatus.METHOD_NOT_ALLOWED

    def _answer(self, name: str, asked: Asked) -> None:
        trail = self.server.trail
        if name == "state":
            if asked.get("follow"):
                trail.follow()
            self._send_json(HTTPStatus.OK, answers.state(trail))
        elif name == "verification":
            self._send_json(HTTPStatus.OK, answers.verification(trail))
        elif name == "events":
            self._send_json(HTTPStatus.OK, self._events(asked))
        elif name == "timeline":
            self._send_json(HTTPStatus.OK, self._timeline(asked))
        elif name == "values":
            self._send_json(HTTPStatus.OK, self._values(asked))
        elif name in _EVENTS:
            with self._look_at_event(name, asked):
                answer = _EVENTS[name](trail, asked)
            self._send_json(HTTPStatus.OK, answer)
        elif name == "line":
            with self._look_at_event(name, asked):
                content = answers.line(trail, asked)
            how = {"Content-Disposition": 'attachment; filename="line.json"'}
            self._send(HTTPStatus.OK, "application/json", content + b"\n", how)
        else:
            self._say(HTTPStatus.NOT_FOUND)

    def _events(self, asked: Asked) -> Mapping[str, Any]:
        filters = answers.filters_of(asked)
        since_ns, until_ns = filters.since_ns, filters.until_ns
        look = self.server.look(
            filters.asked(),
            self._question("events", asked),
            also=self._question("timeline", asked),
            since_ns=since_ns,
            until_ns=until_ns,
        )
        with self.server.turns, look as seen:
            answer = answers.events(self.server.trail, asked)
            seen.add(len(answer["events"]))
        return answer

    def _timeline(self, asked: Asked) -> Mapping[str, Any]:
        """Answer with the timeline. It belongs to the look at the events that match the same filters."""
        filters = answers.filters_of(asked, paged=False)
        since_ns, until_ns = filters.since_ns, filters.until_ns
        look = self.server.look(
            filters.asked(), self._question("timeline", asked), since_ns=since_ns, until_ns=until_ns
        )
        with self.server.turns, look as seen:
            answer = answers.timeline(self.server.trail, asked)
            seen.add(answer["count"])
        return answer

    def _values(self, asked: Asked) -> Mapping[str, Any]:
        """Answer with suggestions. They are words from the trail, so this is a look too."""
        which = f"suggest={':'.join(word for each in ('name', 'text') for word in asked.get(each, ('',))[-1:])}"
        with self.server.turns, self.server.look([which], which) as seen:
            answer = answers.values(self.server.trail, asked)
            seen.add(len(answer["values"]))
        return answer

    def _question(self, name: str, asked: Asked) -> object:
        # The answer may be incomplete while the trail is being read, so the same question later is another look.
        is_read = self.server.trail.reading.is_done
        words = ((each, *asked[each]) for each in sorted(asked) if name == "events" or each not in _OF_PAGE)
        return (name, is_read, *words)

    @contextmanager
    def _look_at_event(self, name: str, asked: Asked) -> Iterator[None]:
        which = f"{name}={':'.join(word for each in ('stream', 'seq') for word in asked.get(each, ()))}"
        with self.server.turns, self.server.look([which], which) as look:
            look.add(1)
            yield

    def _say(self, status: HTTPStatus) -> None:
        allow = {"Allow": "GET"} if status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        self._send(status, "text/plain; charset=utf-8", f"{status.value} {status.phrase}\n".encode(), allow)

    def _send_json(self, status: HTTPStatus, value: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content)), **(more or {})}
        if self.close_connection or self.server.is_closed:
            self.close_connection = True
            sent["Connection"] = "close"
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _is_this_machine(host: str) -> bool:
    """Return True for a name of the loopback address. Any port is allowed, since ssh may forward another one."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if "@" in host:  # not allowed in a Host header (RFC 9110, section 7.2), where it could hide another name
            return False
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
