"""The real writer and the real verifier: what a service writes is signed to its last line, and no change passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import otel_audit
from otel_audit import AuditEvent
from otel_audit.cli import main
from otel_audit.journal.files import StreamFiles, segments_in, streams_in
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.locks import FileLock
from otel_audit.verification.findings import Class, Verdict
from otel_audit.verification.verify import verify_directory
from tests.chain_check import read_streams
from tests.journal.test_retention_signed import a_signed_retention
from tests.servers.polling import PATIENCE_S

THREADS = 4
EVENTS = 100  # of each thread

SERVICE = """
import os, random, signal, sys, threading, time
import otel_audit

ends, seed = sys.argv[1:]
chance = random.Random(seed)
audit = otel_audit.configure(export="none", retention_days=0, segment_bytes=4096,
    head_lines=50, head_seconds=1, close_timeout_s=60)

def log():
    for _ in range(150):
        audit.log(otel_audit.AuditEvent(event_type="order.read", outcome="success", resource_id="7"))
        time.sleep(chance.random() / 100)

threads = [threading.Thread(target=log) for _ in range(4)]
for thread in threads:
    thread.start()
if ends == "killed":
    time.sleep(chance.random())
    os.kill(os.getpid(), signal.SIGKILL)
for thread in threads:
    thread.join()
audit.close()
"""


def recorded(directory: Path, **options: Any) -> None:
    """Events of several threads over several segments, and a clean end."""
    audit = otel_audit.configure(
        directory=directory, export="none", segment_bytes=16_384, head_lines=50, close_timeout_s=60, **options
    )

    def log(number: int) -> None:
        for each in range(EVENTS):
            audit.log(AuditEvent(event_type="order.read", outcome="success", detail=f"order {number}-{each}"))

    threads = [threading.Thread(target=log, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit.close()


def verified(directory: Path) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main, ["verify", "--json", str(directory)])
    return done.exit_code, json.loads(done.stdout)


def test_what_several_threads_wrote_is_signed_to_the_last_line(tmp_path: Path) -> None:
    recorded(tmp_path)

    code, report = verified(tmp_path)

    [files] = streams_in(tmp_path)
    lines = read_streams(tmp_path)[files.stream_id]
    assert len(files.segments()) > 3
    assert (code, report["verdict"], report["findings"]) == (0, "consistent", [])
    [stream] = report["streams"]
    assert (stream["stream_id"], stream["ended"]) == (files.stream_id, True)
    assert stream["lines"] == stream["chain_to"] == stream["signed_to"] == len(lines)
    assert len(lines) == THREADS * EVENTS + len(files.segments())


@pytest.mark.parametrize("place", ["the first segment", "a segment in the middle", "the last line"])
def test_one_changed_byte_breaks_it_and_is_named(tmp_path: Path, place: str) -> None:
    recorded(tmp_path)
    [files] = streams_in(tmp_path)
    numbers = files.segments()
    number, at = {
        "the first segment": (numbers[0], 5),
        "a segment in the middle": (numbers[len(numbers) // 2], 5),
        "the last line": (numbers[-1], -1),
    }[place]
    path = files.segment(number)
    lines = path.read_bytes().splitlines(keepends=True)
    seq = json.loads(lines[at])["seq"]
    assert b'"order ' in lines[at]
    lines[at] = lines[at].replace(b'"order ', b'"Order ')
    path.write_bytes(b"".join(lines))

    code, report = verified(tmp_path)

    wrong = [each for each in report["findings"] if each["class"] == "finding"]
    assert (code, report["verdict"]) == (1, "broken")
    assert {each["stream_id"] for each in wrong} == {files.stream_id}
    first, last = wrong[0]["seq"], wrong[0].get("last_seq") or seq
    if place == "the last line":  # no line behind it has its hash: what has changed is between the last two heads
        assert seq - 50 < first <= seq == last
    else:
        assert first == seq


def test_a_stream_that_begins_and_is_removed_while_a_directory_is_verified_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path
    recorded(directory, service_name="shop")
    looks = 0

    def begun(size_bytes: int) -> None:
        """While the first stream is read another one begins, and ends."""
        if len(streams_in(directory)) == 1:
            recorded(directory, service_name="till", retention_bytes=10**9)

    def removed(place: Path) -> Mapping[str, Sequence[int]]:
        """The ledger was read again, with the end of the other one, and now it goes."""
        nonlocal looks
        looks += 1
        if looks == 2:
            a_signed_retention(directory, wanted=lambda header: header["resource"]["service.name"] == "till").look()
        return segments_in(place)

    monkeypatch.setattr("otel_audit.verification.verify.segments_in", removed)
    report = verify_directory(directory, passed=begun)

    assert looks >= 2
    assert report.verdict is Verdict.CONSISTENT, report.all_findings
    assert [stream.state for stream in report.streams] == ["ended", "removed"]


@pytest.mark.processes
def test_beside_writers_that_begin_end_and_are_killed_nothing_is_found(tmp_path: Path) -> None:
    environment = {"OTEL_AUDIT_DIR": str(tmp_path), "OTEL_SERVICE_NAME": "shop", "PATH": "/usr/bin:/bin"}
    program = textwrap.dedent(SERVICE)
    seen = 0
    for generation in range(2):
        writers = [
            subprocess.Popen([sys.executable, "-c", program, ends, f"{generation}-{number}"], env=environment)
            for number, ends in enumerate(("well", "killed", "well"))
        ]
        while any(writer.poll() is None for writer in writers):
            report = verify_directory(tmp_path)
            assert [each for each in report.all_findings if each.weight is Class.FINDING] == []
            seen += 1
        assert {writer.wait() for writer in writers} == {0, -9}

    code, report_of_all = verified(tmp_path)
    assert seen > 2
    assert (code, report_of_all["verdict"]) == (0, "consistent")
    assert sum(stream["ended"] for stream in report_of_all["streams"]) >= 1


@pytest.mark.processes
def test_a_stream_whose_writer_was_killed_before_the_ledger_knew_it_is_unproven(tmp_path: Path) -> None:
    recorded(tmp_path, service_name="shop")
    before = set(segments_in(tmp_path))
    killed = (
        "import os, signal, sys, otel_audit\n"
        "audit = otel_audit.configure(directory=sys.argv[1], service_name='shop', export='none')\n"
        "audit.log(otel_audit.AuditEvent(event_type='order.read'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    turn = FileLock.acquire(LedgerFiles(tmp_path).lock)  # the process has none, however long it takes
    assert turn is not None
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], timeout=PATIENCE_S, check=False)
    turn.release()
    (stream_id,) = set(segments_in(tmp_path)) - before
    an_hour_ago_s = time.time() - 3600
    os.utime(StreamFiles(tmp_path, stream_id).segment(1), (an_hour_ago_s, an_hour_ago_s))

    report = verify_directory(tmp_path)

    assert report.verdict is Verdict.CONSISTENT
    unproven = [(each.kind, each.stream_id) for each in report.all_findings if each.weight is Class.UNPROVEN]
    assert unproven == [("unopened", stream_id)]
