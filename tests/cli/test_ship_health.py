"""`otel-audit ship --health`: what a probe is told, and what it is not."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from otel_audit.cli.health import GivenAddress, Health
from otel_audit.delivery.outcomes import Batch, ExportOutcome
from otel_audit.delivery.processor import Adoption, BatchProcessor
from otel_audit.http_server import CONNECTIONS_MAX
from tests.cli.test_ship import COMMAND, asked, environment, left_behind, shipping
from tests.delivery.audited_server import AuditedServer
from tests.servers import free_port, poll
from tests.servers.otlp_server import Answer
from tests.servers.ports import LOOPBACK

pytestmark = pytest.mark.processes


def test_what_runs_is_alive_and_ready(tmp_path: Path, server: AuditedServer) -> None:
    port = free_port()
    left_behind(tmp_path, "a")
    with shipping(tmp_path, server, "--health", str(port)):
        poll(lambda: server.accepted, what="the delivery")

        ready = poll(lambda: asked(port, "/readyz"), until=lambda answer: answer[0] == 200, what="a ready one")

        assert asked(port, "/livez") == (200, {"live": True, "threads": {"keep": True, "otlp": True}})
    assert ready[1] == {
        "ready": True,
        "live": True,
        "looked_through_directory": True,
        "closing": False,
        "blocked": [],
    }


def test_a_destination_that_is_away_takes_nothing_out_of_service(tmp_path: Path, server: AuditedServer) -> None:
    port = free_port()
    server.judge = lambda names: Answer(503, body=b"a secret of the destination")
    left_behind(tmp_path, "a")
    with shipping(tmp_path, server, "--health", str(port)):
        status, content = poll(
            lambda: asked(port, "/readyz"), until=lambda answer: answer[1]["blocked"] == ["otlp"], what="a blocked one"
        )
        assert (status, content["ready"]) == (200, True)
        assert asked(port, "/livez")[0] == 200
        assert "secret" not in json.dumps(content)


def test_it_is_alive_and_not_ready_while_it_ends(tmp_path: Path, server: AuditedServer) -> None:
    port = free_port()
    server.judge = lambda names: Answer(503)
    left_behind(tmp_path, "a")
    with shipping(tmp_path, server, "--health", str(port), OTEL_AUDIT_CLOSE_TIMEOUT_S="30") as process:
        poll(lambda: asked(port, "/readyz")[1]["blocked"], what="a blocked one")
        server.judge = lambda names: Answer(503, delay_s=10.0)  # which holds up the end

        process.terminate()

        seen = poll(lambda: asked(port, "/readyz"), until=lambda answer: answer[0] == 503, what="one that ends")
        assert (seen[1]["ready"], seen[1]["live"], seen[1]["closing"]) == (False, True, True)


class _Deadly:
    """An exporter that ends the thread that calls it."""

    name = "deadly"
    delay_s = 0.0

    def export(self, batch: Batch) -> ExportOutcome:
        raise SystemExit

    def close(self) -> None:
        pass


@pytest.fixture
def processor(tmp_path: Path) -> Iterator[BatchProcessor]:
    """Not started yet, with nothing to deliver."""
    made = BatchProcessor(tmp_path, [_Deadly()], adoption=Adoption(lambda header: True))
    yield made
    made.close(timeout_s=5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_told_and_what_has_not_begun_is_not_ready(
    tmp_path: Path, processor: BatchProcessor
) -> None:
    port = free_port()
    left_behind(tmp_path, "a", export="deadly")
    with Health((LOOPBACK, port), processor):
        before = asked(port, "/readyz")
        processor.start()

        _, content = poll(lambda: asked(port, "/livez"), until=lambda got: got[0] == 503, what="a dead one")

        assert (before[0], before[1]["looked_through_directory"]) == (503, False)
        assert content == {"live": False, "threads": {"keep": True, "deadly": False}}
        assert asked(port, "/readyz")[0] == 503


def test_another_path_is_not_found_and_what_comes_behind_a_question_mark_is_ignored(processor: BatchProcessor) -> None:
    port = free_port()
    with Health((LOOPBACK, port), processor):
        assert asked(port, "/") == (404, {"error": "expected /livez or /readyz"})
        assert asked(port, "/livez?verbose")[0] == 200
        assert requests.head(f"http://{LOOPBACK}:{port}/livez", timeout=10).content == b""


def test_a_client_that_says_nothing_holds_up_neither_a_probe_nor_the_end(processor: BatchProcessor) -> None:
    port = free_port()
    with socket.socket() as silent:
        with Health((LOOPBACK, port), processor):
            silent.connect((LOOPBACK, port))
            assert asked(port, "/livez")[0] == 200
        with pytest.raises(requests.ConnectionError):
            asked(port, "/livez")


def is_ended(connection: socket.socket) -> bool:
    """True once the other side has closed; it waits for that, or for a byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:  # what was sent was not read before
        return True


def test_connections_that_say_nothing_take_few_threads_and_lock_no_probe_out(processor: BatchProcessor) -> None:
    port = free_port()
    before = threading.active_count()
    with Health((LOOPBACK, port), processor), ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((LOOPBACK, port))) for _ in range(3 * CONNECTIONS_MAX)]
        for each in silent:
            each.sendall(b"GET /livez HTTP/1.1\r\nHost:")

        assert asked(port, "/livez")[0] == 200

        assert all(map(is_ended, silent[: 2 * CONNECTIONS_MAX]))
        # A thread may need a moment to see that its connection was ended.
        poll(threading.active_count, until=lambda count: count <= before + CONNECTIONS_MAX + 1, what="few threads")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("13134", ("127.0.0.1", 13134)),
        ("0.0.0.0:13134", ("0.0.0.0", 13134)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:13134", ("::1", 13134)),
    ],
)
def test_without_a_host_it_is_loopback(given: str, address: tuple[str, int]) -> None:
    assert GivenAddress().convert(given, None, None) == address


def refused(tmp_path: Path, server: AuditedServer, *options: str) -> str:
    done = subprocess.run(
        [COMMAND, "ship", *options, tmp_path],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.mark.parametrize("given", ["", "x", "0", "65536", "::1:80", "http://localhost:80"])
def test_what_is_no_address_is_wrong_usage(given: str, tmp_path: Path, server: AuditedServer) -> None:
    assert "expected PORT or HOST:PORT" in refused(tmp_path, server, "--health", given)


def test_a_port_that_is_taken_is_wrong_usage(tmp_path: Path, server: AuditedServer) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()

        said = refused(tmp_path, server, "--health", str(taken.getsockname()[1]))

    assert "--health: expected an address where this process can listen, got 127.0.0.1:" in said


def test_a_single_sweep_has_no_health(tmp_path: Path, server: AuditedServer) -> None:
    assert "expected --health without --once" in refused(tmp_path, server, "--once", "--health", "13134")
