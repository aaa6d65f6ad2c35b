"""A collector without room: what it acknowledged is delivered after a kill, and its health says what is short."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from tests.journal.disks import Unmountable, tmpfs
from tests.servers import AGENT_CONFIG, Collector, StartCollector, poll

pytestmark = pytest.mark.processes

HEALTH_SCRIPT = AGENT_CONFIG.parent / "collector-health.sh"
COMMAND = Path(sys.executable).with_name("otel-audit")
FREE_MIB = 4
REQUEST_RECORDS = 100
BODY_BYTES = 3000  # an event with its attributes


@contextmanager
def an_agent(data: Path, *, queue_mib: int, archive_mib: int, queue_bytes: int) -> Iterator[Collector]:
    """A running agent whose queue and archive have a small disk each. Its Loki is down."""
    data.mkdir()
    with ExitStack() as disks:
        try:
            disks.enter_context(tmpfs(data / "queue", f"size={queue_mib}m"))
            disks.enter_context(tmpfs(data / "archive", f"size={archive_mib}m"))
        except Unmountable as error:
            pytest.skip(f"needs disks that a test may fill: {error}")
        bound = f"exporters::otlp_http/loki::sending_queue::queue_size: {queue_bytes}"
        yield disks.enter_context(Collector(data, overrides=[bound]))


def reasons_of_ill_health(agent: Collector) -> list[str]:
    """Every reason that the health script gives."""
    if shutil.which("wget") is None:
        pytest.skip("needs wget")
    disks = [agent.data_dir / "queue", agent.archive_path.parent]
    done = subprocess.run(
        ["sh", HEALTH_SCRIPT, agent.health_endpoint, agent.metrics_endpoint, str(FREE_MIB), *disks],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == bool(done.stdout)
    return done.stdout.splitlines()


def posted_until_refused(agent: Collector) -> tuple[set[str], requests.Response]:
    """The bodies that were acknowledged, and the answer that refused the next ones."""
    acknowledged: set[str] = set()
    for request in range(100):
        bodies = [f"{request}-{number} ".ljust(BODY_BYTES, "x") for number in range(REQUEST_RECORDS)]
        records = [{"body": {"stringValue": body}} for body in bodies]
        answer = requests.post(
            agent.logs_url, json={"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}, timeout=20
        )
        if answer.status_code != 200:
            assert len(acknowledged) >= 10 * REQUEST_RECORDS
            return acknowledged, answer
        acknowledged.update(bodies)
    raise AssertionError("expected a refusal within 100 requests")


def killed_and_started_again(agent: Collector, loki: Collector) -> None:
    # What was taken up for sending is moved within the queue by the next start: on a full disk it is lost.
    poll(agent.log_tail, until=lambda text: "Will retry" in text, what="a batch that was taken up for sending")
    agent.kill()
    agent.loki_endpoint = loki.http_endpoint
    agent.start()


def bodies_in(collector: Collector) -> set[str]:
    return {record.body for record in collector.archive()}


@pytest.mark.parametrize(
    ("archive_mib", "queue_bytes", "answer", "reason"),
    [
        (12, 25_000_000, "no space left on device", r"disk full: 0 MiB free at \S+/archive, expected 4"),
        (64, 6_000_000, "sending queue is full", r"queue full: 5\d{6} of 6000000 in \{.*otlp_http/loki.*\}"),
    ],
    ids=["disk of the archive", "queue"],
)
def test_nothing_that_was_acknowledged_is_lost_by_a_kill_when_something_is_full(
    tmp_path: Path, start_collector: StartCollector, archive_mib: int, queue_bytes: int, answer: str, reason: str
) -> None:
    loki = start_collector()
    with an_agent(tmp_path / "agent", queue_mib=64, archive_mib=archive_mib, queue_bytes=queue_bytes) as agent:
        assert reasons_of_ill_health(agent) == []

        acknowledged, refusal = posted_until_refused(agent)

        assert refusal.status_code == 503  # senders keep what they have, and try again
        assert answer in refusal.text
        [said] = reasons_of_ill_health(agent)
        assert re.fullmatch(reason, said)

        killed_and_started_again(agent, loki)

        delivered = poll(
            lambda: bodies_in(loki), until=lambda bodies: bodies >= acknowledged, what="what was acknowledged"
        )
        assert delivered >= acknowledged


def test_a_disk_that_the_queue_can_fill_is_said_before_and_what_it_loses_is_in_the_archive(
    tmp_path: Path, start_collector: StartCollector
) -> None:
    loki = start_collector()
    with an_agent(tmp_path / "agent", queue_mib=12, archive_mib=64, queue_bytes=1 << 30) as agent:
        too_small = f"disk too small for the bound of the queue: 12 MiB at {agent.data_dir}/queue, expected 2560"
        assert reasons_of_ill_health(agent) == [too_small]

        acknowledged, _ = posted_until_refused(agent)
        assert f"disk full: 0 MiB free at {agent.data_dir}/queue, expected 4" in reasons_of_ill_health(agent)
        killed_and_started_again(agent, loki)
        poll(agent.metrics, until=lambda text: re.search(r"queue_size\{.*\} 0\n", text) is not None, what="no queue")

        assert bodies_in(agent) >= acknowledged
        environment = {
            "OTEL_AUDIT_DIR": str(tmp_path / "state"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": loki.http_endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        command: list[str | Path] = [COMMAND, "replay", agent.archive_path.parent]
        subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=60)
        delivered = poll(
            lambda: bodies_in(loki), until=lambda bodies: bodies >= acknowledged, what="what was acknowledged"
        )
        assert delivered >= acknowledged


def test_a_collector_that_is_away_is_not_healthy(tmp_path: Path) -> None:
    away = Collector(tmp_path / "agent")

    assert reasons_of_ill_health(away) == [
        f"no answer from {away.health_endpoint}",
        f"no answer from {away.metrics_endpoint}",
        f"no file system at {away.data_dir}/queue",
        f"no file system at {away.data_dir}/archive",
    ]
