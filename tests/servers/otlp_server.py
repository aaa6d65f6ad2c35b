"""A real HTTP server on loopback that records what it receives and answers as a test says."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse

__all__ = ["Answer", "OtlpServer", "Received", "accepted", "login_page", "partial_success", "redirect"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: close() sends RST
_PROTOBUF = ("Content-Type", "application/x-protobuf")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0  # before the first byte
    drip_s: float = 0.0  # before each byte
    drip_from: int = 0  # bytes that go out at once before the dripping
    endless: bool = False  # the body is repeated until the client goes away
    cut_after_bytes: int | None = None  # then the connection ends; 0: no answer at all
    reset: bool = False  # it ends with RST instead of FIN
    linger_s: float = 0.0  # before the connection ends; a reset discards what the client has not yet read
    keep_alive: bool = True
    raw: bytes | None = None  # instead of everything above it that makes up an answer

    def on_the_wire(self) -> bytes:
        """The whole answer, head and body."""
        if self.raw is not None:
            return self.raw
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in self.headers)]
        if not self.endless and self.status != 204:
            lines.append(f"Content-Length: {len(self.body)}")
        if not self.keep_alive or self.endless:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass(frozen=True, slots=True)
class Received:
    """One request, as it came."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: tuple[str, int]  # the client's address: the same on a kept connection

    def header(self, name: str) -> str | None:
        """The value of a header, whatever the case of its name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def accepted() -> Answer:
    """What the collector answers when it took everything."""
    return partial_success(0, "")


def partial_success(rejected: int, message: str) -> Answer:
    """A 200 that says how many records were not taken."""
    partial = ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=message)
    return Answer(body=ExportLogsServiceResponse(partial_success=partial).SerializeToString(), headers=(_PROTOBUF,))


def login_page() -> Answer:
    """What a proxy says to whoever has not signed in."""
    return Answer(
        body=b"<!doctype html><html><body><form>Sign in</form></body></html>",
        headers=(("Content-Type", "text/html; charset=utf-8"),),
    )


def redirect(to: str, status: int = 302) -> Answer:
    """A redirect with a page, as web servers send it."""
    return Answer(status, b"<a href='/login'>moved</a>", (("Location", to), ("Content-Type", "text/html")))


class OtlpServer:
    """Listens on a free port of loopback while entered; accepts everything that no test said to refuse."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, read_pause_s: float = 0.0) -> None:
        """`read_pause_s`: seconds between two receives of 16 KiB."""
        self.read_pause_s = read_pause_s
        self.requests: list[Received] = []
        self.stopping = threading.Event()
        self.tls = tls
        self._answers: deque[Answer] = deque()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def base_url(self) -> str:
        """The URL without the path of the signal."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """The URL for logs."""
        return f"{self.base_url}/v1/logs"

    def will_answer(self, *answers: Answer) -> None:
        """The next requests get these answers, in order."""
        self._answers.extend(answers)

    def received(self, request: Received) -> Answer:
        """Keep the request; the answer to it."""
        self.requests.append(request)
        return self.next_answer()

    def next_answer(self) -> Answer:
        """The answer to the request that just came in."""
        return self._answers.popleft() if self._answers else accepted()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for the handlers, and none outlives its test

    def __init__(self, owner: OtlpServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner
        self._open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection; the TLS handshake is made in its own thread."""
        if self.owner.tls:
            request.settimeout(5)
            with self.owner.tls.wrap_socket(request, server_side=True) as secured:
                secured.settimeout(None)
                self._serve(secured, client_address)
        else:
            self._serve(request, client_address)

    def _serve(self, connection: socket.socket, client_address: Any) -> None:
        self._open.add(connection)
        try:
            super().finish_request(connection, client_address)
        finally:
            self._open.discard(connection)

    def end_connections(self) -> None:
        """Wake every handler that waits for the next request on a kept connection."""
        for connection in list(self._open):
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue  # it ended by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        """Record the request, then do what the test said."""
        owner = self.server.owner
        body = self._body(int(self.headers.get("Content-Length", "0")))
        received = Received(self.path, tuple(self.headers.items()), body, self.client_address[:2])
        self._give(owner.received(received))

    do_GET = do_POST

    def _body(self, length: int) -> bytes:
        pause_s = self.server.owner.read_pause_s
        if not pause_s:
            return self.rfile.read(length)
        body = bytearray()
        while len(body) < length and not self.server.owner.stopping.wait(pause_s):
            body += self.rfile.read(min(16 * 1024, length - len(body)))
        return bytes(body)

    def _give(self, answer: Answer) -> None:
        stopping = self.server.owner.stopping
        self.close_connection = not answer.keep_alive or answer.cut_after_bytes is not None or answer.endless
        stopping.wait(answer.delay_s)
        data = answer.on_the_wire()[: answer.cut_after_bytes]
        at_once = answer.drip_from if answer.drip_s else len(data)
        self.wfile.write(data[:at_once])
        for byte in data[at_once:]:
            if stopping.wait(answer.drip_s):
                break
            self.wfile.write(bytes([byte]))
        while answer.endless and not stopping.is_set():
            self.wfile.write(answer.body)
        stopping.wait(answer.linger_s)
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            os.close(self.connection.detach())  # an ordinary end would say FIN first

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: the tests read what was recorded."""
