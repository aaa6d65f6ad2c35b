"""Directories that many processes write at once: `verify` finds nothing wrong beside them, and none of them is missed.

Fifteen verifications beside four writers, and sixty processes of one event; a thousand of each with
OTEL_AUDIT_TESTS_LONG=1. `pytest -s` prints what happened meanwhile, and the bytes of the ledger for each process.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from otel_audit.verification.findings import Class, Finding, Verdict
from otel_audit.verification.verify import verify_directory
from tests.chain_check import application_events
from tests.journal.ledger.test_adoption import an_adopter
from tests.journal.ledger.test_lives import lives as lives_in
from tests.long_form import LONG
from tests.servers.polling import poll

pytestmark = [pytest.mark.processes, pytest.mark.timeout(7200)]

VERIFICATIONS = 1000 if LONG else 15
OF_A_DIRECTORY = 100  # then a new one is begun, so that it is small and all comes early again
REPLACED = 2  # writers at least in each directory, each when retention has removed something
PROCESSES = 1000 if LONG else 60
AT_ONCE = 8
LEDGER_BYTES_MAX = 4096  # of a process: its open and end, their note, and its share of the keys

WRITER = """
import random, sys, threading, time
import otel_audit

chance = random.Random(sys.argv[1])
audit = otel_audit.configure(export="none", close_timeout_s=60)
ends = threading.Event()

def wait():
    sys.stdin.read()
    ends.set()

threading.Thread(target=wait, daemon=True).start()
while not ends.is_set():
    for _ in range(chance.randrange(30)):
        audit.log_authn(outcome="success", detail="x" * chance.randrange(200))
    time.sleep(chance.random() / 4)
audit.close()
"""
ONE_EVENT = """
import sys
import otel_audit

audit = otel_audit.configure(export="none", close_timeout_s=60)
audit.log_authn(outcome="success", detail=sys.argv[1])
audit.close()
"""


def environment(directory: Path, **settings: str) -> dict[str, str]:
    return {"OTEL_AUDIT_DIR": str(directory), "OTEL_SERVICE_NAME": "shop", "PATH": "/usr/bin:/bin", **settings}


class Writers:
    """Four processes that log all the time. One that goes is followed by another."""

    def __init__(self, directory: Path, running: ExitStack) -> None:
        self._running = running
        self._seeds = count()
        self._environment = environment(
            directory,
            OTEL_AUDIT_SEGMENT_BYTES="32768",
            OTEL_AUDIT_RETENTION_BYTES="400000",
            OTEL_AUDIT_HEAD_LINES="50",
            OTEL_AUDIT_HEAD_SECONDS="1",
        )
        self.alive = [self._start() for _ in range(4)]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WRITER, str(next(self._seeds))]
        writer = self._running.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, env=self._environment))
        self._running.callback(writer.kill)
        return writer

    def replace(self, chance: random.Random) -> None:
        """Let one of them end, or kill it, and start the next."""
        writer = self.alive.pop(0)
        assert writer.poll() is None
        assert writer.stdin is not None
        writer.stdin.close()
        if chance.random() < 0.5:
            writer.kill()
        self.alive.append(self._start())

    def end(self) -> None:
        for writer in self.alive:
            assert writer.stdin is not None
            writer.stdin.close()
        assert [writer.wait(120) for writer in self.alive] == [0] * 4


def ledger_bytes(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.glob("ledger.0*.jsonl")))


def findings(directory: Path) -> list[Finding]:
    return [each for each in verify_directory(directory).all_findings if each.weight is Class.FINDING]


def told(directory: Path, kind: str) -> int:
    return ledger_bytes(directory).count(b'"kind":"%b"' % kind.encode())


def test_no_verification_beside_busy_writers_rotation_and_retention_finds_anything(tmp_path: Path) -> None:
    chance = random.Random(1)
    seen = 0
    while seen < VERIFICATIONS:
        directory, of_this, removed, replaced, raced = tmp_path / str(seen), 0, 0, 0, 0
        with ExitStack() as running:
            writers = Writers(directory, running)
            streams = len(writers.alive)
            poll(partial(told, directory, "open"), until=lambda opened: opened >= 4, what="four streams")
            while (seen + of_this < VERIFICATIONS and of_this < OF_A_DIRECTORY) or replaced < REPLACED:
                before = told(directory, "retain")
                wrong = findings(directory)
                retained = told(directory, "retain")
                of_this, raced = of_this + 1, raced + (retained > before)
                assert not wrong, f"verification {of_this} of {directory}: {wrong}"
                # Lines that went meanwhile are what could be taken for missing ones: each time, somebody goes too.
                if retained > removed and told(directory, "open") >= streams:
                    removed, streams, replaced = retained, streams + 1, replaced + 1
                    writers.replace(chance)
            writers.end()
        seen += of_this
        assert not (wrong := findings(directory)), f"{directory}, when all had ended: {wrong}"
        kinds = {kind: told(directory, kind) for kind in ("open", "head", "retain", "adopt", "end")}
        print(f"{of_this} verifications, {raced} while lines were removed; {kinds}")


def test_each_of_many_processes_of_one_event_is_in_the_trail_and_in_its_ledger(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONE_EVENT]
    for first in range(0, PROCESSES, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, PROCESSES))
        running = [subprocess.Popen([*command, str(number)], env=environment(tmp_path)) for number in numbers]
        assert [process.wait(170) for process in running] == [0] * len(running)

    # Where eight are too many for a slow disk, one may give up its turn: the next owner tells of its end.
    an_adopter(tmp_path).take_over()
    size = len(ledger_bytes(tmp_path)) / PROCESSES
    report = verify_directory(tmp_path)
    lives = Counter(tuple(entry["kind"] for entry in entries) for entries in lives_in(tmp_path).values())

    print(f"{PROCESSES} processes; {size:.0f} bytes of the ledger for each; {dict(lives)}")
    assert sorted(event["detail"] for event in application_events(tmp_path)) == sorted(map(str, range(PROCESSES)))
    assert report.verdict is Verdict.CONSISTENT, report.all_findings
    assert [each.signed_to for each in report.streams] == [2] * PROCESSES
    assert set(lives) <= {("open", "end"), ("open", "adopt"), ("adopt",)}
    assert lives["open", "end"]
    assert sum(lives.values()) == PROCESSES
    assert size < LEDGER_BYTES_MAX
