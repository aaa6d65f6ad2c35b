"""However the processes of a pool and the threads of a process end: what they logged is delivered once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.end_to_end.delivered import assert_archived, assert_archived_once, assert_streams_of_their_own, ship
from tests.end_to_end.services import service_environment
from tests.end_to_end.test_main_path import ROOT
from tests.servers import Collector

pytestmark = pytest.mark.processes

THREADS = """
    import os, sys, threading, time
    import otel_audit

    audit = otel_audit.configure()
    acknowledged = open(sys.argv[1], "ab", buffering=0)

    def log():
        receipt = audit.log(otel_audit.AuditEvent(event_type="test", outcome="success"))
        if receipt.durable:
            acknowledged.write(f"{receipt.event_id}\\n".encode())

    def log_many(count=100):
        for _ in range(count):
            log()
            time.sleep(0.001)
"""


def run(directory: Path, collector: Collector, *command: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=service_environment(collector.http_endpoint, directory),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def run_threads(script: str, tmp_path: Path, collector: Collector, *, status: int = 0) -> list[str]:
    """The ids that were acknowledged in a process of threads, once it is gone."""
    acknowledged = tmp_path / "acknowledged"
    source = textwrap.dedent(THREADS) + textwrap.dedent(script)
    run(tmp_path / "audit", collector, "-c", source, acknowledged, status=status)
    return acknowledged.read_text().split()


POOLS = ["fork", "spawn", "forkserver"]


def run_pool(how: str, end: str, directory: Path, collector: Collector) -> tuple[list[str], set[int]]:
    """The ids that were acknowledged, and the pids of who logged them, once all of the pool is gone."""
    acknowledged = json.loads(run(directory, collector, "-m", "tests.end_to_end.pool_service", how, end))
    assert len(acknowledged) == 302
    return [event_id for event_id, _ in acknowledged], {pid for _, pid in acknowledged}


@pytest.mark.parametrize("how", POOLS)
@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_every_process_of_a_pool_delivers_a_stream_of_its_own_at_its_end(
    how: str, end: str, collector: Collector, tmp_path: Path
) -> None:
    acknowledged, pids = run_pool(how, end, tmp_path / "audit", collector)

    assert_archived_once(collector, tmp_path / "audit", acknowledged)
    assert_streams_of_their_own(tmp_path / "audit", pids)


@pytest.mark.parametrize("how", POOLS)
def test_the_processes_of_a_pool_that_is_terminated_lose_nothing(
    how: str, collector: Collector, tmp_path: Path
) -> None:
    acknowledged, pids = run_pool(how, "terminate", tmp_path / "audit", collector)
    ship(tmp_path / "audit", collector)

    assert_archived(collector, tmp_path / "audit", acknowledged)
    assert_streams_of_their_own(tmp_path / "audit", pids)


def test_a_child_that_is_forked_before_anything_was_imported_for_it_delivers_at_its_end(
    collector: Collector, tmp_path: Path
) -> None:
    script = """
        import multiprocessing  # behind configure()

        child = multiprocessing.get_context("fork").Process(target=log_many)
        child.start()
        child.join()
        audit = None
        os._exit(child.exitcode)
    """
    acknowledged = run_threads(script, tmp_path, collector)

    assert len(acknowledged) == 100
    assert_archived_once(collector, tmp_path / "audit", acknowledged)


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise RuntimeError('a bug')"], ids=["exit", "exception"])
def test_the_end_of_a_thread_ends_no_delivery(end: str, collector: Collector, tmp_path: Path) -> None:
    script = f"""
        def work():
            log_many()
            {end}

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log_many()
    """
    acknowledged = run_threads(script, tmp_path, collector)

    assert len(acknowledged) == 500
    assert_archived_once(collector, tmp_path / "audit", acknowledged)


def test_a_thread_that_outlives_the_main_one_is_waited_for_and_delivered(collector: Collector, tmp_path: Path) -> None:
    script = """
        for _ in range(4):
            threading.Thread(target=log_many).start()
        sys.exit(3)
    """
    acknowledged = run_threads(script, tmp_path, collector, status=3)

    assert len(acknowledged) == 400
    assert_archived_once(collector, tmp_path / "audit", acknowledged)


def test_threads_that_log_until_the_interpreter_is_gone_lose_nothing_that_was_acknowledged(
    collector: Collector, tmp_path: Path
) -> None:
    script = """
        for _ in range(4):
            threading.Thread(target=log_many, args=(10**9,), daemon=True).start()
        log_many()
    """
    acknowledged = run_threads(script, tmp_path, collector)
    ship(tmp_path / "audit", collector)  # what came after the exit handler

    assert len(acknowledged) > 100
    assert_archived_once(collector, tmp_path / "audit", acknowledged)
