"""`otel-audit ship` beside workers that leave delivery to it: under another user, two at a time, killed at random."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from otel_audit.journal.census import census
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import StreamFiles, streams_in
from tests.end_to_end.other_users import as_user, require_other_users
from tests.end_to_end.test_main_path import COMMAND, ROOT, environment, numbers
from tests.servers import poll
from tests.servers.sequence_server import SENDER, Arrival, SequenceServer, seqs_by_stream

pytestmark = pytest.mark.processes

WORKER = [sys.executable, "-m", "tests.end_to_end.shipped_service"]
GROUP, WRITES, SHIPS = 20_000, 20_001, 20_002  # a group, and two users in it
BATCH = 20
KILLS = 10


class Worker:
    """A process that leaves the delivery of its events to a side-car."""

    def __init__(
        self, directory: Path, command: Sequence[str] = WORKER, *, stderr: IO[str] | None = None, **variables: str
    ) -> None:
        self.stream_id = ""
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(
                OTEL_AUDIT_DIR=str(directory), OTEL_AUDIT_EXPORT="ship", OTEL_SERVICE_NAME="shop", **variables
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def log(self, count: int) -> None:
        """So many events are acknowledged."""
        self.stream_id = self._said(count)

    def flush(self, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """What a flush of the worker, and its numbers after it, say."""
        said: dict[str, Any] = json.loads(self._said(f"flush {timeout_s}"))
        return said

    def _said(self, word: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the worker ended with {self._process.wait(120)}"
        return answer.strip()

    def end(self) -> None:
        """Its standard input is closed, and it returns."""
        self._process.communicate(timeout=120)
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def worker(
    directory: Path, command: Sequence[str] = WORKER, *, stderr: IO[str] | None = None, **variables: str
) -> Iterator[Worker]:
    """A worker that is gone after the block."""
    started = Worker(directory, command, stderr=stderr, **variables)
    try:
        yield started
    finally:
        started.kill()


def ship_command(directory: Path) -> list[str]:
    return [str(COMMAND), "ship", str(directory)]


@contextmanager
def side_car(
    server: SequenceServer, command: Sequence[str], *, sender: str = "", **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A shipper that is killed after the block, if it has not ended by then."""
    shipper = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=server.base_url,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_HEADERS=f"{SENDER}={sender or 'side-car'}",
            OTEL_AUDIT_BATCH_DELAY_S="0.05",
            OTEL_AUDIT_BATCH_COUNT=str(BATCH),
            NO_PROXY="*",
            **variables,
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield shipper
    finally:
        shipper.kill()
        shipper.communicate()


def delivered(directory: Path) -> dict[str, int]:
    totals = census(directory).totals
    return {"emitted": totals.emitted, "exported": totals.exported, "pending": totals.pending}


def wait_until_delivered(directory: Path, emitted: int) -> None:
    expected = {"emitted": emitted, "exported": emitted, "pending": 0}
    poll(
        lambda: delivered(directory),
        until=lambda seen: seen == expected,
        what=f"{emitted} events delivered",
    )


def shared_directory(place: Path) -> Path:
    """A directory for the users of one group, as an administrator makes it."""
    directory = place / "audit"
    directory.mkdir()
    os.chown(directory, 0, GROUP)
    directory.chmod(0o2770)
    return directory


@pytest.mark.parametrize(("mode", "umask"), [("0640", 0o022), ("0660", 0o077)])
def test_a_side_car_of_the_same_group_delivers_for_workers_of_another_user(
    mode: str, umask: int, tmp_path: Path
) -> None:
    require_other_users()
    directory = shared_directory(tmp_path)

    def under(uid: int, command: Sequence[str]) -> list[str]:
        return as_user(uid, GROUP, command, umask=umask, shown=[directory])

    ships = under(SHIPS, ship_command(directory))
    with (
        SequenceServer() as server,
        worker(directory, under(WRITES, WORKER), OTEL_AUDIT_FILE_MODE=mode) as lives,
        worker(directory, under(WRITES, WORKER), OTEL_AUDIT_FILE_MODE=mode) as dies,
    ):
        lives.log(50)
        dies.log(30)
        dies.kill()
        with side_car(server, ships, OTEL_AUDIT_FILE_MODE=mode) as shipper:
            wait_until_delivered(directory, 80)
            lives.log(50)
            flushed = lives.flush()

            assert flushed["report"] == {"complete": True, "pending": 0, "blocked": {}}
            assert (flushed["emitted"], flushed["exported"]) == (100, 100)
            assert {path.stat().st_uid for path in directory.glob("*-*.jsonl")} == {WRITES}
            assert {path.stat().st_uid for path in directory.glob("*.cursor")} == {SHIPS}
            dead = StreamFiles(directory, dies.stream_id)
            poll(lambda: read_cursor(dead.cursor)[1], what="the end of the dead worker's stream to be kept")
            poll(lambda: not dead.writer_lock.exists(), what="its lock to be removed")
            shipper.terminate()
            assert shipper.wait(120) == 0, shipper.communicate()
        assert numbers(directory) == {"emitted": 130, "exported": 130, "pending": 0, "quarantined": 0, "dropped": 0}
    assert sorted(seqs_by_stream(server.arrived())[lives.stream_id]) == list(range(1, 102))


def test_a_service_that_may_not_read_how_far_its_side_car_came_says_so_and_goes_on(tmp_path: Path) -> None:
    require_other_users()
    directory = shared_directory(tmp_path)
    writes = as_user(WRITES, GROUP, WORKER, umask=0o022, shown=[directory])
    ships = as_user(SHIPS, GROUP, ship_command(directory), umask=0o022, shown=[directory])
    said = tmp_path / "stderr"
    with (
        said.open("w") as stderr,
        SequenceServer() as server,
        worker(directory, writes, stderr=stderr, OTEL_AUDIT_FILE_MODE="0640") as lives,
    ):
        lives.log(20)
        with side_car(server, ships):  # without the mode: its cursor is its own
            wait_until_delivered(directory, 20)

            flushed = lives.flush(timeout_s=0.1)

    assert (flushed["report"]["complete"], flushed["report"]["pending"]) == (False, 21)
    assert (flushed["emitted"], flushed["exported"]) == (20, 0)
    assert said.read_text().count("OTEL_AUDIT_FILE_MODE") == 1


def test_each_stream_has_one_sender_while_two_side_cars_share_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    with SequenceServer(delay_s=0.002) as one, SequenceServer(delay_s=0.002) as other:
        workers = [Worker(directory) for _ in range(6)]
        try:
            for each in workers:
                each.log(100)
            with (
                side_car(one, ship_command(directory), sender="one"),
                side_car(other, ship_command(directory), sender="other"),
            ):
                poll(lambda: one.arrived() or other.arrived(), what="the delivery to begin")
                for each in workers:
                    each.log(400)
                for each in workers[:3]:
                    each.kill()
                for each in workers[3:]:
                    each.log(100)
                wait_until_delivered(directory, 6 * 500 + 3 * 100)
                # The ledger is sent as a stream of its own, up to the last note that is durable.
                poll(
                    lambda: {each.stream_id for each in [*one.arrived(), *other.arrived()]},
                    until=lambda seen: len(seen) == 6 + 1,
                    what="seven streams to arrive",
                )
        finally:
            for each in workers:
                each.kill()

    senders: dict[str, set[str]] = defaultdict(set)
    for arrival in [*one.arrived(), *other.arrived()]:
        senders[arrival.stream_id].add(arrival.sender)
    assert all(len(each) == 1 for each in senders.values()), senders
    everything = seqs_by_stream([*one.arrived(), *other.arrived()])
    assert {
        stream_id: seqs == list(range(1, len(seqs) + 1)) for stream_id, seqs in everything.items()
    } == dict.fromkeys(senders, True)


def test_a_side_car_that_is_killed_at_any_moment_loses_nothing_and_repeats_at_most_one_batch_a_stream(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "audit"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with SequenceServer(delay_s=0.005) as server, worker(directory) as first, worker(directory) as second:
        for each in (first, second):
            each.log(2_000)
        for life in range(KILLS):
            with side_car(server, ship_command(directory), sender=str(life)) as shipper:
                poll(
                    lambda sender=str(life): any(each.sender == sender for each in server.arrived()),  # type: ignore[misc]
                    what=f"side-car {life} to deliver",
                )
                time.sleep(chance.uniform(0, 0.2))  # the moment of the kill
                shipper.kill()
            for each in (first, second):
                each.log(50)
        with side_car(server, ship_command(directory), sender=str(KILLS)):
            wait_until_delivered(directory, 2 * (2_000 + KILLS * 50))
        arrivals = server.arrived()

    assert len(streams_in(directory)) == 2
    for files in streams_in(directory):
        own = [arrival for arrival in arrivals if arrival.stream_id == files.stream_id]
        assert_whole_with_few_repeats(own, lines=1 + 2_000 + KILLS * 50)


def assert_whole_with_few_repeats(arrivals: Sequence[Arrival], *, lines: int) -> None:
    """Every line came, in its order, and each sender repeated no more than a batch of what came before it."""
    last = 0
    for sender in dict.fromkeys(arrival.sender for arrival in arrivals):
        seqs = [seq for arrival in arrivals if arrival.sender == sender for seq in arrival.seqs]
        assert last - BATCH <= seqs[0] - 1 <= last, f"side-car {sender} began with {seqs[0]}, behind {last}"
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        last = max(last, seqs[-1])
    assert last == lines
