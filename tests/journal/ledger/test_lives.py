"""Every life of a stream is in the ledger: real processes that end well, at once, by a signal, or are killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from otel_audit.journal.files import streams_in
from tests.chain_check import read_streams
from tests.journal.ledger.telling import checked, last_checked
from tests.journal.ledger.test_adoption import an_adopter
from tests.journal.ledger.test_epochs import signer
from tests.journal.ledger.test_registrar import assert_is_head

pytestmark = pytest.mark.processes

PREAMBLE = """
import os, pathlib, signal, sys, time
import otel_audit

directory = pathlib.Path(os.environ["OTEL_AUDIT_DIR"])

audit = otel_audit.configure(export="none", retention_days=0, close_timeout_s=60)

def log(count=1):
    for _ in range(count):
        audit.log_authn(outcome="success")

def end_all(children):
    for child in children:
        os.waitpid(child, 0)
"""


def run(program: str, directory: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program), *arguments],
        env={"OTEL_AUDIT_DIR": str(directory), "OTEL_SERVICE_NAME": "shop", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr


def lives(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """By stream what the ledger says of it, checked as a stranger would."""
    found: dict[str, list[dict[str, Any]]] = {files.stream_id: [] for files in streams_in(directory)}
    for ledger in checked(directory):
        assert not ledger.unsigned
        for entry in ledger.entries:
            if "stream" in entry:
                found[entry["stream"]].append(entry)
    return found


def assert_each_is_whole(directory: Path, last: set[str]) -> Counter[tuple[str, ...]]:
    """Each stream's chain is whole, and its last entry is about its last line."""
    streams = read_streams(directory)
    told = lives(directory)
    assert set(streams) == set(told)
    for files in streams_in(directory):
        final = told[files.stream_id][-1]
        assert final["kind"] in last
        assert final["size"] == len(streams[files.stream_id])
        assert_is_head(final, files)
    return Counter(tuple(entry["kind"] for entry in entries) for entries in told.values())


def test_hundreds_of_processes_of_one_event_are_each_opened_and_ended(tmp_path: Path) -> None:
    run(
        """
        for _ in range(20):
            children = []
            for _ in range(10):
                child = os.fork()
                if not child:
                    log()
                    audit.close()
                    os._exit(0)
                children.append(child)
            end_all(children)
        """,
        tmp_path,
    )

    kinds = assert_each_is_whole(tmp_path, {"end", "adopt"})
    # Where 10 processes are too many for a slow disk, one may give up its turn: the next owner tells of its end.
    an_adopter(tmp_path).take_over()
    kinds = assert_each_is_whole(tmp_path, {"end", "adopt"})
    assert sum(kinds.values()) == 200
    assert list(tmp_path.glob("*-*.lock")) == []


def test_workers_that_are_preloaded_begin_at_once_and_half_of_them_are_killed(tmp_path: Path) -> None:
    run(
        """
        log()  # the process that loads has a stream of its own
        begin, begun = os.pipe()
        children = []
        for number in range(32):
            child = os.fork()
            if not child:
                os.close(begun)
                os.read(begin, 1)
                log(20)
                if number % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                audit.close()
                os._exit(0)
            children.append(child)
        os.close(begun)
        end_all(children)
        audit.close()
        """,
        tmp_path,
    )
    an_adopter(tmp_path).take_over()

    kinds = assert_each_is_whole(tmp_path, {"end", "adopt"})
    assert sum(kinds.values()) == 33
    ends = Counter(entries[-1]["kind"] for entries in lives(tmp_path).values())
    assert ends["adopt"] >= 16


@pytest.mark.parametrize("way", ["return", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_however_a_process_ends_that_may_say_goodbye_its_end_is_told(tmp_path: Path, way: str) -> None:
    run(
        f"""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        log(5)
        {way if way != "return" else ""}
        """,
        tmp_path,
    )

    assert assert_each_is_whole(tmp_path, {"end"}) == Counter({("open", "end"): 1})
    assert list(tmp_path.glob("*-*.lock")) == []


def test_what_a_process_wrote_after_its_last_head_is_signed_when_it_is_taken_over(tmp_path: Path) -> None:
    run(
        """
        log()
        ledger = directory / "ledger.00000001.jsonl"
        while not (ledger.exists() and ledger.stat().st_size):  # a turn is one write
            time.sleep(0.01)
        log(50)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    before = {kind for kind in last_checked(tmp_path).kinds if kind in ("end", "adopt")}

    run("log()", tmp_path)  # the next process of the service

    assert before == set()
    killed, ended = lives(tmp_path).values()
    assert killed[-1]["kind"] == "adopt"
    assert killed[-1]["size"] == 52
    assert ended[-1]["kind"] == "end"
    assert_each_is_whole(tmp_path, {"end", "adopt"})


def test_two_processes_share_no_key_over_a_fork(tmp_path: Path) -> None:
    run(
        """
        log()
        audit.close()
        child = os.fork()
        if not child:
            log()
            audit.close()
            os._exit(0)
        end_all([child])
        log()
        """,
        tmp_path,
    )

    assert_each_is_whole(tmp_path, {"end"})
    assert len(streams_in(tmp_path)) == 3
    assert len(checked(tmp_path)) == 1, "the ledger was never begun anew"


def test_a_command_of_the_user_signs_the_ledger_of_a_service(tmp_path: Path) -> None:
    public, command = signer(tmp_path)
    directory = tmp_path / "journal"

    run(
        f"""
        audit = otel_audit.configure(
            export="none", identity_key={str(public)!r}, sign_command={command!r}, close_timeout_s=60
        )
        log()
        while not any(b'"kind":"signature"' in path.read_bytes() for path in directory.glob("ledger.0*.jsonl")):
            time.sleep(0.01)
        """,
        directory,
    )

    assert_each_is_whole(directory, {"end"})
    [signed] = last_checked(directory).told("signature")
    assert signed["line"].startswith("\u2014 otel-audit/shop/")
