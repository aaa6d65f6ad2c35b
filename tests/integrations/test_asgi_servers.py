"""The middleware under the servers that people use, as processes that are ended in the middle of their requests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from otel_audit.settings import OnLoss
from tests.chain_check import read_streams
from tests.end_to_end.delivered import assert_archived_once, assert_streams_of_their_own
from tests.end_to_end.services import Service, served_and_ended, service_environment
from tests.servers import Collector, free_port, poll

pytestmark = pytest.mark.processes

SERVERS = [
    "uvicorn",
    "uvicorn --workers 2",
    "gunicorn --preload, UvicornWorker",
    "gunicorn, its own asgi worker",
]


@pytest.mark.parametrize("server", SERVERS)
def test_every_answered_request_is_delivered_once_by_the_end_of_its_server_and_without_a_line_that_closes(
    server: str, collector: Collector, tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    environment = service_environment(collector.http_endpoint, directory)

    with Service(server, log=tmp_path / "log", environment=environment, variant="audited") as service:
        ended = served_and_ended(service)

    assert len(ended.acknowledged) >= 200
    assert_archived_once(collector, directory, ended.acknowledged)
    assert_streams_of_their_own(directory, ended.workers)


ENDLESS = """
import asyncio
import otel_audit

async def endless(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await asyncio.sleep(60)

app = otel_audit.AuditMiddleware(endless, audit=otel_audit.configure(export="none"))
"""


@pytest.mark.parametrize("durability", ["os", "fsync"])
@pytest.mark.parametrize("on_loss", list(OnLoss))
def test_what_a_server_cuts_off_when_it_may_wait_no_longer_is_recorded_before_it_is_gone(
    tmp_path: Path, durability: str, on_loss: OnLoss
) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    directory, port = tmp_path / "audit", free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    settings = {"OTEL_AUDIT_DIR": str(directory), "OTEL_AUDIT_DURABILITY": durability, "OTEL_AUDIT_ON_LOSS": on_loss}
    command = [sys.executable, "-m", "uvicorn", "endless:app", "--port", str(port), "--timeout-graceful-shutdown", "1"]

    with subprocess.Popen(
        command, cwd=tmp_path, env={**kept, **settings, "OTEL_SERVICE_NAME": "shop"}, stderr=subprocess.DEVNULL
    ) as server:
        try:
            poll(lambda: is_open(port), what="the server to start")
            with contextlib.ExitStack() as connections:
                for _ in range(4):
                    connection = connections.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                    connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                    assert connection.recv(1)  # it is under way
                server.send_signal(signal.SIGTERM)
                server.wait(120)
        finally:
            server.kill()

    (events,) = read_streams(directory).values()  # a logger that was closed already would have begun another stream
    outcomes = [event["outcome"] for event in events if event["event_type"] == "http.request"]
    assert outcomes == (["unknown"] * 4 if on_loss is OnLoss.CLOSED else []) + ["cancelled"] * 4


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
