"""A whole service and a collector that fails it in one way after another: what is said meanwhile, and what arrives."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import otel_audit
from otel_audit import AuditEvent, AuditLogger
from otel_audit.journal.census import census
from otel_audit.journal.counts import Counts
from tests.delivery.audited_server import AuditedServer
from tests.end_to_end.services import events_in_archive
from tests.end_to_end.test_main_path import environment, numbers
from tests.end_to_end.test_main_path import otel_audit as command
from tests.servers import Collector, poll
from tests.servers.otlp_server import Answer, accepted, login_page, partial_success, redirect

Configure = Callable[[str], AuditLogger]

EVENTS = [f"event-{number}" for number in range(300)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def configure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """A service that is in a hurry: it waits no longer than a second between two tries."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "NO_PROXY": "*",
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_AUDIT_BATCH_COUNT": "100",
        "OTEL_AUDIT_BATCH_DELAY_S": "0.05",
        "OTEL_AUDIT_BACKOFF_CAP_S": "1",
        "OTEL_AUDIT_CLOSE_TIMEOUT_S": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as opened:

        def started(endpoint: str) -> AuditLogger:
            audit = otel_audit.configure(directory=directory, endpoint=endpoint)
            opened.callback(audit.close)
            return audit

        yield started


def log(audit: AuditLogger, names: Sequence[str]) -> None:
    for name in names:
        receipt = audit.log(AuditEvent(event_type="test", outcome="success", event_id=name))
        assert receipt is not None
        assert receipt.durable


def wait_until_blocked(audit: AuditLogger, reason: str) -> None:
    poll(
        lambda: audit.stats().blocked.get("otlp", ""),
        until=lambda said: said != "" and reason in said,
        what=f"blocked: {reason}",
    )


def assert_waiting(audit: AuditLogger, directory: Path, *, exported: int, pending: int, reason: str) -> None:
    """Nothing is lost or set aside, and whoever asks is told why nothing moves."""
    expected = {"emitted": exported + pending, "exported": exported, "pending": pending, "quarantined": 0, "dropped": 0}
    stats = audit.stats()
    assert {name: getattr(stats, name) for name in expected} == expected
    status = status_of(directory, exit_code=1)
    assert {name: status[name] for name in expected} == expected
    (stream,) = status["streams"]
    assert stream["exporters"]["otlp"]["blocked"]
    assert reason in stream["exporters"]["otlp"]["blocked"]


def status_of(directory: Path, *, exit_code: int) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(
        command("status", "--json", str(directory), env=environment(), exit_code=exit_code)
    )
    return status


def assert_all_delivered(audit: AuditLogger, directory: Path, count: int) -> None:
    assert audit.flush(timeout_s=60).complete
    stats = audit.stats()
    assert (stats.emitted, stats.exported, stats.pending, stats.quarantined) == (count, count, 0, 0)
    poll(lambda: not audit.stats().blocked, what="to be blocked no more")
    counted = census(directory)
    assert counted.totals == Counts(exported=count, system=1)
    assert not counted.is_stuck


@pytest.mark.processes
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(Answer(401, b"token expired"), "401 Unauthorized", id="a token that is wrong for a while"),
        pytest.param(Answer(403), "403 Forbidden", id="no permission"),
        pytest.param(Answer(404), "404 Not Found", id="no such path"),
        pytest.param(Answer(429), "429 Too Many Requests", id="too many requests"),
        pytest.param(Answer(500), "500 Internal Server Error", id="an error of the server"),
        pytest.param(Answer(503), "503 Service Unavailable", id="a full queue"),
        pytest.param(redirect("https://login.example/"), "302 Found", id="a redirect"),
        pytest.param(login_page(), "text/html", id="a login page"),
        pytest.param(Answer(delay_s=60), "no answer within 2 s", id="slow: it accepts and never answers"),
        pytest.param(Answer(cut_after_bytes=0, reset=True), "connection", id="a reset instead of an answer"),
        pytest.param(
            Answer(body=b"x" * 4096, cut_after_bytes=600, reset=True, linger_s=0.2), "connection", id="a reset mid-body"
        ),
    ],
)
def test_while_the_collector_is_at_fault_every_event_waits_and_then_each_arrives_once(
    answer: Answer,
    reason: str,
    configure: Configure,
    server: AuditedServer,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if answer.delay_s:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    server.judge = lambda names: answer
    audit = configure(server.base_url)
    log(audit, EVENTS)

    wait_until_blocked(audit, reason)
    poll(lambda: len(server.requests), until=lambda tries: tries >= 3, what="three tries")

    assert_waiting(audit, directory, exported=0, pending=len(EVENTS), reason=reason)
    said = [line for line in capfd.readouterr().err.splitlines() if "blocked" in line]
    assert 0 < len(said) < len(server.requests)  # not again for each try: once a minute
    assert "otlp: blocked: " in said[0]
    assert reason in said[0]
    server.judge = lambda names: None
    assert_all_delivered(audit, directory, len(EVENTS))
    assert server.accepted == ["header", *EVENTS]


def test_the_time_that_a_collector_asks_for_is_obeyed_whoever_is_in_a_hurry(
    configure: Configure, server: AuditedServer, directory: Path
) -> None:
    server.will_answer(Answer(429, headers=(("Retry-After", "3"),)))
    audit = configure(server.base_url)
    log(audit, EVENTS)
    wait_until_blocked(audit, "429 Too Many Requests")
    refused_at = time.monotonic()

    while len(server.requests) == 1:
        assert not audit.flush(timeout_s=0.1).complete or len(server.requests) > 1
        log(audit, ["meanwhile"])
        assert time.monotonic() < refused_at + 30

    assert time.monotonic() > refused_at + 2  # from when this test saw it
    assert_all_delivered(audit, directory, audit.stats().emitted)
    assert [name for name in server.accepted if name != "meanwhile"] == ["header", *EVENTS]


@pytest.mark.processes
@pytest.mark.parametrize(
    "answer",
    [Answer(400, b"bad record"), partial_success(1, "bad record")],
    ids=["refused with its batch", "partial success"],
)
def test_one_poison_record_among_thousands_is_the_only_one_set_aside(
    answer: Answer, configure: Configure, server: AuditedServer, directory: Path
) -> None:
    names = [f"event-{number}" for number in range(3000)]
    server.judge = lambda batch: answer if "event-1234" in batch else accepted()
    audit = configure(server.base_url)
    log(audit, names)

    poll(lambda: audit.stats().quarantined, what="a record in quarantine")

    assert audit.flush(timeout_s=60).complete
    assert set(names) - set(server.accepted) == {"event-1234"}
    expected = {"emitted": 3000, "exported": 2999, "pending": 0, "quarantined": 1, "dropped": 0}
    assert numbers(directory, exit_code=1) == expected
    stats = audit.stats()
    assert {name: getattr(stats, name) for name in expected} == expected
    assert quarantine_in(directory) == [{"first_seq": 1236, "last_seq": 1236}]  # behind the header, from 1 on


def quarantine_in(directory: Path) -> list[dict[str, Any]]:
    (stream,) = status_of(directory, exit_code=1)["streams"]
    entries = stream["exporters"]["otlp"]["quarantine"]
    assert all("bad record" in entry["reason"] for entry in entries)
    return [{name: entry[name] for name in ("first_seq", "last_seq")} for entry in entries]


def test_a_collector_that_takes_small_requests_only_gets_everything(
    configure: Configure, server: AuditedServer, directory: Path
) -> None:
    server.judge = lambda names: Answer(413) if len(names) > 10 else None
    audit = configure(server.base_url)

    log(audit, EVENTS)

    assert_all_delivered(audit, directory, len(EVENTS))
    assert server.accepted == ["header", *EVENTS]
    assert max(len(batch) for batch in server.batches) > 10


class Resetting:
    """Listens on a port while entered, reads a piece of each request and then resets the connection."""

    def __init__(self, port: int) -> None:
        self.resets = 0
        self._listening = socket.create_server(("127.0.0.1", port))
        self._listening.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._reset_all)

    def __enter__(self) -> Resetting:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._listening.close()

    def _reset_all(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listening.accept()
            except TimeoutError:
                continue
            with connection:
                connection.recv(1024)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.resets += 1


@pytest.mark.processes
def test_what_a_reset_cut_off_in_the_middle_of_a_request_arrives_later(
    configure: Configure, directory: Path, tmp_path: Path
) -> None:
    collector = Collector(tmp_path / "collector")
    with Resetting(int(collector.http_endpoint.rpartition(":")[2])) as gateway:
        audit = configure(collector.http_endpoint)
        log(audit, EVENTS)
        poll(lambda: gateway.resets, until=lambda resets: resets >= 3, what="three resets")
        wait_until_blocked(audit, "connection")
        assert_waiting(audit, directory, exported=0, pending=len(EVENTS), reason="connection")

    with collector:
        assert_all_delivered(audit, directory, len(EVENTS))
        assert events_in_archive(collector) == dict.fromkeys(EVENTS, 1)


@pytest.mark.processes
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_dead_at_the_start_then_hangs_then_is_killed_gets_everything(
    protocol: str, configure: Configure, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    collector = Collector(tmp_path / "collector")
    audit = configure(collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint)
    at_start, hung, killed = EVENTS[:100], EVENTS[100:200], EVENTS[200:]
    log(audit, at_start)
    wait_until_blocked(audit, "refused")
    assert_waiting(audit, directory, exported=0, pending=100, reason="refused")

    with collector:
        assert_all_delivered(audit, directory, 100)
        os.kill(collector.pid, signal.SIGSTOP)
        try:
            log(audit, hung)
            wait_until_blocked(audit, "within 3 s")
            assert_waiting(audit, directory, exported=100, pending=100, reason="")
        finally:
            os.kill(collector.pid, signal.SIGCONT)
        assert_all_delivered(audit, directory, 200)

        collector.kill()
        log(audit, killed)
        wait_until_blocked(audit, "")
        assert_waiting(audit, directory, exported=200, pending=100, reason="")
        collector.start()
        assert_all_delivered(audit, directory, 300)
        archived = events_in_archive(collector)

    assert archived.keys() == set(EVENTS)
    # What the hanging one had read before it was given up came out of it after all; the rest came once.
    assert {name for name, count in archived.items() if count > 1} <= set(hung)
