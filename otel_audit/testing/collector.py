"""An OTLP collector on loopback, for tests of what is delivered. It takes log records over HTTP, as Protobuf."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit.testing.events import AuditEvents

__all__ = ["LoopbackCollector"]

_STALLED_S: Final = 10.0
_ACCEPTED: Final = 200


class LoopbackCollector:
    """Listens on a free port of loopback while entered, and keeps the records that it accepts. Any thread.

    `status` is what it answers: with anything but 200 it refuses, and a test sees what becomes of the events then.
    A record that came twice, as OTLP allows, is in `records` twice and in `events` once.
    """

    def __init__(self) -> None:
        self.status = _ACCEPTED
        self.records: list[LogRecord] = []
        self.events = AuditEvents(self._lines)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def endpoint(self) -> str:
        """The URL for `OTEL_EXPORTER_OTLP_ENDPOINT`, or for `configure(endpoint=...)`. Its protocol is HTTP."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def receive(self, body: bytes) -> None:
        """Keep the records of a request.

        Raises:
            DecodeError: it is no OTLP message.
        """
        request = ExportLogsServiceRequest.FromString(body)
        scopes = (scope for resource in request.resource_logs for scope in resource.scope_logs)
        self.records.extend(record for scope in scopes for record in scope.log_records)

    def _lines(self) -> Iterator[bytes]:
        yield from dict.fromkeys(line for each in list(self.records) if (line := each.body.string_value.encode()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for the requests, and none outlives its test

    def __init__(self, owner: LoopbackCollector) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _STALLED_S

    def do_POST(self) -> None:
        """Take a request, or refuse it as the test says."""
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        status = owner.status
        if status == _ACCEPTED:
            try:
                owner.receive(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            except Exception:  # of gzip or Protobuf: another client's request
                status = 400
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")  # an empty message: nothing was rejected
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to stderr, where it would stand among the output of the tests."""
