"""Answer the probes of `otel-audit ship --health`: is it alive, and is it ready?

* `/livez` is 200 while every thread runs that delivers. Restart the process when it is not.
* `/readyz` is 200 once the directory was looked through, and until the end begins.

A destination that is away makes neither of them fail. Events wait on disk for it. A restart would not bring it back,
and taking the service beside it out of traffic would make an outage of the collector one of the service. The answer
names such a destination under `blocked`. The reason is on stderr and in `otel-audit status`, and not here, where nobody
is asked for a password.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Final, Self

import click

from otel_audit._version import __version__
from otel_audit.cli.options import ParamType
from otel_audit.delivery.processor import BatchProcessor
from otel_audit.http_server import BoundedHTTPServer
from otel_audit.notices import escaped

__all__ = ["GivenAddress", "Health"]

_LOOPBACK: Final = "127.0.0.1"
_ADDRESS: Final = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):)?(?P<port>\d{1,5})\Z")
_HIGHEST_PORT: Final = 65_535
_READ_TIMEOUT_S: Final = 5.0  # for a client that connects and says nothing
_CLOSE_POLL_S: Final = 0.1


class GivenAddress(ParamType[tuple[str, int]]):
    """`PORT` on loopback, or `HOST:PORT`; an IPv6 address stands in brackets."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        found = _ADDRESS.match(str(value))
        if found is None or not 0 < int(found["port"]) <= _HIGHEST_PORT:
            said = f"expected PORT or HOST:PORT, such as 13134, 0.0.0.0:13134 or [::1]:13134, got {str(value)!r}"
            self.fail(f"{escaped(said)}; correct it", param, ctx)
        return (found["host"] or _LOOPBACK).strip("[]"), int(found["port"])


class Health:
    """A server that answers for a processor while it is entered.

    Raises:
        OSError: this process cannot listen at the address.
    """

    def __init__(self, address: tuple[str, int], processor: BatchProcessor) -> None:
        self._server = _Server(address, processor)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_CLOSE_POLL_S,), name="otel-audit-health", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(BoundedHTTPServer):
    def __init__(self, address: tuple[str, int], processor: BatchProcessor) -> None:
        self.processor = processor
        super().__init__(address, _Probe)


class _Probe(BaseHTTPRequestHandler):
    server: _Server
    server_version = f"otel-audit/{__version__}"
    sys_version = ""
    timeout = _READ_TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = {"/livez": _live, "/readyz": _ready}.get(path)
        if answer is None:
            self._send(404, {"error": "expected /livez or /readyz"})
        else:
            is_well, content = answer(self.server.processor)
            self._send(200 if is_well else 503, content)

    do_HEAD = do_GET

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a probe comes every few seconds."""


def _live(processor: BatchProcessor) -> tuple[bool, dict[str, Any]]:
    threads = processor.threads
    is_live = processor.is_closed or all(threads.values())  # in the end they end in turn
    return is_live, {"live": is_live, "threads": threads}


def _ready(processor: BatchProcessor) -> tuple[bool, dict[str, Any]]:
    is_live, _ = _live(processor)
    is_ready = is_live and processor.has_looked and not processor.is_closed
    return is_ready, {
        "ready": is_ready,
        "live": is_live,
        "looked_through_directory": processor.has_looked,
        "closing": processor.is_closed,
        "blocked": sorted(processor.blocked()),
    }
