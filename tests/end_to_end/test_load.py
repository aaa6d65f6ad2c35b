"""What a collector that is away costs its callers, and what a long outage costs: no time, and disk, but no memory."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.services import service_environment
from tests.end_to_end.test_main_path import ROOT, environment, numbers
from tests.long_form import LONG
from tests.servers import free_port, poll
from tests.servers.sequence_server import Arrival, SequenceServer, seqs_by_stream

pytestmark = pytest.mark.processes

# Read while the tests are collected, as the run was started.

EVENTS = 1_000_000 if LONG else 100_000
GROWTH_BYTES = 50 << 20 if LONG else 10 << 20
DRAINED_S = 900.0 if LONG else 120.0
BATCH = 512
LOOP_EVENTS = 1_500
STALL_S = 2.0  # on top of what a busy machine does to a loop that has nothing to wait for
OTLP_TIMEOUT_S = 30  # so long a wait for the network would be seen


def loop_service(directory: Path, **variables: str) -> dict[str, Any]:
    """What a service says that logged on its event loop."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.loop_service", str(LOOP_EVENTS)],
        cwd=ROOT,
        env=environment(
            OTEL_SERVICE_NAME="shop", OTEL_AUDIT_DIR=str(directory), OTEL_AUDIT_CLOSE_TIMEOUT_S="0", **variables
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def to(port: int) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TIMEOUT": str(OTLP_TIMEOUT_S),
        "OTEL_AUDIT_BATCH_DELAY_S": "0.05",
        "NO_PROXY": "*",
    }


def assert_waited_for_nothing(said: dict[str, Any], control: dict[str, Any]) -> None:
    assert said["gap_s"] < control["gap_s"] + STALL_S, (said, control)
    assert said["call_s"] < control["call_s"] + STALL_S, (said, control)
    assert said["seconds"] < control["seconds"] * 3 + OTLP_TIMEOUT_S / 3, (said, control)
    assert said["emitted"] == said["pending"] == LOOP_EVENTS


def test_neither_a_caller_nor_its_event_loop_waits_for_a_collector_that_hangs_or_is_dead(tmp_path: Path) -> None:
    control = loop_service(tmp_path / "control", OTEL_AUDIT_EXPORT="none")

    with socket.create_server(("127.0.0.1", 0)) as hangs:  # takes connections, reads what fits, and never answers
        hung = loop_service(tmp_path / "hung", **to(hangs.getsockname()[1]))
        connection, _ = hangs.accept()
        with connection:
            assert connection.recv(64).startswith(b"POST /v1/logs")
    dead = loop_service(tmp_path / "dead", **to(free_port()))

    assert "connection refused" in dead["blocked"]["otlp"]
    assert_waited_for_nothing(hung, control)
    assert_waited_for_nothing(dead, control)


@contextmanager
def backlog_service(directory: Path, endpoint: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A service that is killed after the block, if it has not ended by then."""
    service = subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.backlog_service", *arguments],
        cwd=ROOT,
        env=service_environment(endpoint, directory, OTEL_AUDIT_BATCH_DELAY_S="0.2", OTEL_AUDIT_BATCH_COUNT=str(BATCH)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield service
    finally:
        service.kill()
        service.communicate()


def said_by(service: subprocess.Popen[str]) -> dict[str, Any]:
    assert service.stdout is not None
    line = service.stdout.readline()
    assert line, f"the service ended with {service.wait(120)}"
    said: dict[str, Any] = json.loads(line)
    return said


def test_a_backlog_takes_no_memory_and_drains_in_order_taking_turns_with_live_events(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    with backlog_service(directory, f"http://127.0.0.1:{free_port()}", "fill", str(EVENTS)) as writer:
        left = said_by(writer)
        writer.kill()
    print(left)
    assert left["pending"] == EVENTS
    assert "connection refused" in left["blocked"]["otlp"]
    assert left["rss_most"] - left["rss_before"] < GROWTH_BYTES
    assert numbers(directory, exit_code=1)["pending"] == EVENTS

    with SequenceServer() as server, backlog_service(directory, server.base_url, "live") as service:
        poll(
            server.arrived,
            until=lambda arrived: any(each.seqs[-1] == left["last_seq"] for each in backlog_in(arrived, left)),
            timeout_s=DRAINED_S,
            what="the end of the backlog",
        )
        assert service.stdin is not None
        service.stdin.write("\n")
        service.stdin.flush()
        drained = said_by(service)
        assert service.wait(120) == 0
        arrivals = server.arrived()

    backlog = [each for each in arrivals if each.stream_id == left["stream_id"]]
    rate = left["last_seq"] / (backlog[-1].at - backlog[0].at)
    print(drained, f"{rate:.0f} lines/s")
    assert drained["rss_most"] - drained["rss_before"] < GROWTH_BYTES
    assert drained["complete"]
    assert drained["exported"] == drained["logged"]
    arrived = seqs_by_stream(arrivals)
    header = json.loads((directory / "ledger.00000001.jsonl").read_bytes().partition(b"\n")[0])
    ledger = arrived.pop(header["stream_id"])
    assert ledger == list(range(1, len(ledger) + 1))
    assert arrived == {
        left["stream_id"]: list(range(1, left["last_seq"] + 1)),
        drained["stream_id"]: list(range(1, drained["last_seq"] + 1)),
    }
    assert_took_turns(arrivals, left["stream_id"])
    expected = {"emitted": EVENTS + drained["logged"], "pending": 0, "quarantined": 0, "dropped": 0}
    assert numbers(directory) == {**expected, "exported": expected["emitted"]}


def backlog_in(arrivals: Sequence[Arrival], left: dict[str, Any]) -> list[Arrival]:
    """The last arrivals of the backlog: enough to see its end."""
    return [each for each in arrivals[-20:] if each.stream_id == left["stream_id"]]


def assert_took_turns(arrivals: Sequence[Arrival], backlog: str) -> None:
    """While the backlog went out, live events never waited for more than a few of its batches."""
    is_backlog = [each.stream_id == backlog for each in arrivals]
    last = max(number for number, is_it in enumerate(is_backlog) if is_it)
    live = [number for number, is_it in enumerate(is_backlog[:last]) if not is_it]
    assert live, "no live event was sent before the end of the backlog"
    waits = [after - before - 1 for before, after in zip(live, [*live[1:], last], strict=True)]
    assert max(waits) <= 10, waits
