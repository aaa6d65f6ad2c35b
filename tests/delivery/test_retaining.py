"""Retention at work: in a service that delivers, in one whose journal is the destination, and in `otel-audit ship`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from otel_audit.delivery import processor as processor_module
from otel_audit.journal import retention as retention_module
from otel_audit.journal.census import census
from otel_audit.journal.files import segments_in
from otel_audit.journal.ledger.removals import Removals
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.cli.journals import Inbox
from tests.journal.retaining import a_stream, live_stream, log
from tests.journal.writing import append
from tests.servers import poll
from tests.servers.otlp_server import OtlpServer

COMMAND = Path(sys.executable).with_name("otel-audit")


@pytest.fixture
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_module, "_ADOPT_INTERVAL_S", 0.1)
    monkeypatch.setattr(retention_module, "_LOOK_EVERY_S_WITH_BYTES", 0.1)


def bytes_of_segments(directory: Path) -> int:
    size = 0
    for path in directory.glob("*-*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            size += path.stat().st_size
    return size


def settings(directory: Path, **overrides: object) -> Settings:
    small = {"directory": str(directory), "segment_bytes": 4096, "retention_bytes": 1, "export": "none"}
    return Settings.load({}, {**small, **overrides})


def write(trail: Trail, count: int) -> None:
    for number in range(count):
        append(trail.journal, number, detail="x" * 300)


def removed(directory: Path) -> list[Mapping[str, Any]]:
    """What the signed ledger says of the segments that were removed."""
    removals = Removals(directory)
    removals.refresh()
    return [told for stream_id in segments_in(directory) for told in removals.told(stream_id)]


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer() as running:
        yield running


def ship(directory: Path, server: OtlpServer, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    own = {
        "NO_PROXY": "*",
        "OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "shipper",
    }
    return subprocess.run(
        [COMMAND, "ship", "--once", *options, str(directory)],
        env={**kept, **own, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.usefixtures("_looks_often")
def test_a_service_removes_what_it_has_delivered_while_it_runs(tmp_path: Path) -> None:
    trail = Trail(settings(tmp_path), exporters=[Inbox("otlp")])
    write(trail, 100)
    (stream_id,) = segments_in(tmp_path)
    assert trail.flush(timeout_s=20).complete

    numbers = poll(
        lambda: segments_in(tmp_path)[stream_id], until=lambda left: len(left) == 1, what="the last segment alone"
    )

    assert numbers[0] > 5
    assert len(removed(tmp_path)) == numbers[0] - 1
    write(trail, 1)
    assert trail.flush(timeout_s=20).complete
    stats = trail.stats()
    assert (stats.emitted, stats.exported, stats.pending) == (101, 101, 0)
    assert census(tmp_path).totals.exported == 101
    trail.close()


@pytest.mark.usefixtures("_looks_often")
def test_what_a_service_cannot_deliver_stays(tmp_path: Path) -> None:
    inbox = Inbox("otlp", away="collector is down")
    trail = Trail(settings(tmp_path, backoff_cap_s=1), exporters=[inbox])
    write(trail, 100)
    before = segments_in(tmp_path)
    poll(lambda: (tmp_path / "ledger.reserve").exists(), what="a look at the directory")

    assert segments_in(tmp_path) == before
    assert removed(tmp_path) == []
    inbox.away = ""
    poll(lambda: segments_in(tmp_path), until=lambda left: left != before, what="delivered segments removed")
    trail.close()


@pytest.mark.usefixtures("_looks_often")
def test_the_journal_as_the_destination_is_kept_within_its_bytes(tmp_path: Path) -> None:
    trail = Trail(settings(tmp_path, retention_bytes=20_000))
    write(trail, 100)

    poll(
        lambda: bytes_of_segments(tmp_path),
        until=lambda size: 8_000 < size <= 20_000,
        what="some of the segments removed",
    )

    assert (trail.stats().emitted, trail.stats().exported) == (100, 100)
    assert census(tmp_path).totals.exported == 100
    trail.close()


@pytest.mark.processes
@pytest.mark.usefixtures("_looks_often")
def test_a_forked_child_of_a_service_without_exporters_looks_for_itself(tmp_path: Path) -> None:
    trail = Trail(settings(tmp_path))
    child = os.fork()
    if child == 0:
        try:
            write(trail, 60)
            poll(lambda: removed(tmp_path), what="the child's own segments removed")
            os._exit(0)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    trail.close()


@pytest.mark.processes
@pytest.mark.usefixtures("_looks_often")
def test_a_service_that_leaves_delivery_to_another_process_removes_nothing(tmp_path: Path, server: OtlpServer) -> None:
    trail = Trail(settings(tmp_path, export="ship"))
    write(trail, 100)
    before = segments_in(tmp_path)
    (stream_id,) = before

    done = ship(tmp_path, server)
    assert done.returncode == 0, done.stderr
    assert segments_in(tmp_path) == before

    done = ship(tmp_path, server, OTEL_AUDIT_RETENTION_BYTES="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"retention removed {len(before[stream_id]) - 1} segments, ")
    assert segments_in(tmp_path) == {stream_id: before[stream_id][-1:]}
    assert trail.stats().exported == 100
    trail.close()


@pytest.mark.processes
def test_ship_removes_what_it_delivered_and_status_goes_on_counting_it(tmp_path: Path, server: OtlpServer) -> None:
    a_stream(tmp_path)
    journal, files = live_stream(tmp_path, export=("otlp",))
    events = census(tmp_path).totals.emitted

    done = ship(tmp_path, server, OTEL_AUDIT_RETENTION_BYTES="1")

    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("retention removed 3 segments, ")
    assert segments_in(tmp_path) == {files.stream_id: [1, 2, 3]}
    shown = subprocess.run([COMMAND, "status", tmp_path], capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"emitted {events} = " in shown
    assert "of these, removed by retention: " in shown
    as_json = subprocess.run([COMMAND, "status", "--json", tmp_path], capture_output=True, timeout=60, check=True)
    status = json.loads(as_json.stdout)
    assert status["emitted"] == events
    assert status["removed"]["exported"] == status["exported"] > 0
    log(journal, 1)
    journal.close()


@pytest.mark.processes
def test_a_ledger_that_cannot_be_written_is_said_and_costs_no_event(tmp_path: Path, server: OtlpServer) -> None:
    files = a_stream(tmp_path)
    (tmp_path / "ledger.jsonl").mkdir()

    done = ship(tmp_path, server, OTEL_AUDIT_RETENTION_BYTES="1")

    assert done.returncode == 0
    assert "old events cannot be removed" in done.stderr
    assert segments_in(tmp_path) == {files.stream_id: [1, 2, 3]}
