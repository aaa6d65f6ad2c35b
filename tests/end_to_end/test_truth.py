"""The numbers are true at every moment, whatever dies meanwhile, and `flush` says what was really accepted."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource

import otel_audit
from otel_audit import AuditEvent
from otel_audit.journal.census import census
from otel_audit.journal.counts import Counts
from tests.chain_check import application_events, read_streams
from tests.delivery.audited_server import AuditedServer
from tests.end_to_end.services import events_in_archive, service_environment
from tests.end_to_end.test_main_path import COMMAND, ROOT, environment, numbers, service
from tests.servers import Collector, poll
from tests.servers.otlp_server import Answer
from tests.servers.sequence_server import SequenceServer

ROUNDS = 3
ROUND_S = 3.0
FLUSHES = 60


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is configured in the process of the tests."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")


class Ledger:
    """What the services did, counted by themselves in files that their death does not touch."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()

    def count(self, name: str) -> int:
        path = self.place / name
        return path.stat().st_size if path.exists() else 0

    def lies(self) -> list[str]:
        path = self.place / "lies"
        return path.read_text().splitlines() if path.exists() else []


class Onlooker:
    """Counts a directory over and over, from outside of its services, until the end of the `with` block."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self.samples = 0
        self.lies: list[str] = []
        self._directory = directory
        self._ledger = ledger
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Onlooker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(0.01):
            try:
                self._look()
            except Exception as error:
                self.lies.append(repr(error))
            self.samples += 1

    def _look(self) -> None:
        least = self._ledger.count("acknowledged")
        totals = census(self._directory).totals
        self._judge(totals, least, self._ledger.count("begun"))

    def _judge(self, totals: Counts, least: int, most: int) -> None:
        if not least <= totals.emitted <= most:
            self.lies.append(f"not from {least} to {most}: {totals}")
        if min(totals.exported, totals.pending) < 0 or totals.quarantined or totals.dropped:
            self.lies.append(f"not true: {totals}")


@contextmanager
def truthful_service(directory: Path, collector: Collector, ledger: Ledger) -> Iterator[subprocess.Popen[bytes]]:
    """A service that is killed after the block, if it has not ended by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.truthful_service", str(ledger.place)],
        cwd=ROOT,
        env=service_environment(
            collector.http_endpoint,
            directory,
            OTEL_AUDIT_BATCH_DELAY_S="0.05",
            OTEL_AUDIT_BATCH_COUNT="512",
            OTEL_AUDIT_BACKOFF_CAP_S="1",
        ),
        stdin=subprocess.PIPE,
    )
    try:
        before = ledger.count("samples")
        poll(lambda: ledger.count("samples") > before, what="a service at work")
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


@pytest.mark.processes
def test_the_numbers_add_up_at_every_moment_while_collector_and_services_die(
    collector: Collector, tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    directory.mkdir()
    ledger = Ledger(tmp_path / "ledger")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Onlooker(directory, ledger) as onlooker, ExitStack() as services:
        for _ in range(ROUNDS):
            process = services.enter_context(truthful_service(directory, collector, ledger))
            until = time.monotonic() + ROUND_S
            time.sleep(chance.uniform(0, 0.5))  # the moment of the kill
            collector.kill()
            time.sleep(chance.uniform(0, 1.0))
            assert_status_is_true(directory, ledger)
            collector.start()
            time.sleep(max(0.0, until - time.monotonic()))
            assert_status_is_true(directory, ledger)
            process.kill()
        with truthful_service(directory, collector, ledger) as last:
            assert last.stdin is not None
            last.stdin.close()
            assert last.wait(120) == 0
            last.stdin = None
        poll(lambda: deliver_left(directory, collector), what="the streams of the killed services")

    assert (onlooker.lies, ledger.lies()) == ([], [])
    assert onlooker.samples > 20
    assert ledger.count("samples") > 200
    totals = census(directory).totals
    on_disk = {event["event_id"] for event in application_events(directory)}
    assert ledger.count("acknowledged") <= len(on_disk) <= ledger.count("begun")
    assert (totals.emitted, totals.exported) == (len(on_disk), len(on_disk))
    assert events_in_archive(collector).keys() == on_disk


def deliver_left(directory: Path, collector: Collector) -> bool:
    """Whether a service of the same name, that only starts and ends, has nothing more to take over."""
    resource = Resource({"service.name": "shop"})
    with closing(otel_audit.configure(directory=directory, endpoint=collector.http_endpoint, resource=resource)):
        return census(directory).totals.pending == 0


def assert_status_is_true(directory: Path, ledger: Ledger) -> None:
    """What the command says, from a process of its own."""
    least = ledger.count("acknowledged")
    done = subprocess.run(
        [COMMAND, "status", "--json", str(directory)], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr  # 1: it is blocked in this moment
    said = json.loads(done.stdout)
    most = ledger.count("begun")
    assert said["emitted"] == said["exported"] + said["pending"] + said["quarantined"] + said["dropped"]
    assert least <= said["emitted"] <= most


@pytest.mark.slow
def test_a_flush_is_complete_exactly_when_the_collector_said_yes_to_everything(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    complete = 0
    logged = ["header"]
    with (
        AuditedServer(lambda names: Answer(503) if chance.random() < 0.25 else None) as server,
        closing(
            otel_audit.configure(directory=tmp_path, endpoint=server.base_url, batch_count=10, batch_delay_s=600)
        ) as audit,
    ):
        for number in range(FLUSHES):
            names = [f"{number}-{index}" for index in range(chance.randrange(1, 40))]
            for name in names:
                audit.log(AuditEvent(event_type="test", outcome="success", event_id=name))
            logged += names

            report = audit.flush(timeout_s=chance.uniform(0, 0.2))

            missing = len(logged) - len(server.accepted)
            assert report.complete == (report.pending == 0)
            assert report.pending >= missing, report
            complete += report.complete
        server.judge = lambda names: None
        assert audit.flush(timeout_s=30).complete
        assert server.accepted == logged
    assert 0 < complete < FLUSHES


@pytest.mark.processes
def test_a_disabled_sdk_changes_nothing_and_is_said_once(tmp_path: Path) -> None:
    arrived, said = {}, {}
    for disabled in ("false", "true"):
        with SequenceServer() as server:
            done = subprocess.run(
                service(400),
                cwd=ROOT,
                env=service_environment(server.base_url, tmp_path / disabled, OTEL_SDK_DISABLED=disabled),
                capture_output=True,
                text=True,
                timeout=90,
                check=True,
            )
            streams = read_streams(tmp_path / disabled)  # not the ledger, whose turns are counted by nobody
            arrived[disabled] = sum(len(each.seqs) for each in server.arrived() if each.stream_id in streams)
        said[disabled] = done.stderr.count("OTEL_SDK_DISABLED")
        assert numbers(tmp_path / disabled)["exported"] == 400

    assert arrived == {"false": 401, "true": 401}
    assert said["true"] == 1
