"""A process that is killed, another one at once, a fork, a full disk: what the ledger tells is what happened."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.delivery.processor import Adoption
from otel_audit.delivery.sweep import restart
from otel_audit.journal.ages import STATE_NAME
from otel_audit.journal.census import census
from otel_audit.journal.files import segments_in
from otel_audit.journal.ledger.former import Ledger, entries
from otel_audit.journal.locks import FileLock
from otel_audit.journal.removal import finish_removal
from otel_audit.stores.directory import Latest
from tests.chain_check import read_streams
from tests.cli.journals import Inbox, deliver
from tests.examples import examples
from tests.journal.retaining import Clocks, a_retention, a_stream, delivered, kept, live_stream, log
from tests.journal.writing import finish, leave_no_room, said, start_script

# Removes what it may by bytes, and is killed at the call of `os.unlink` of that number for a file with that ending.
A_REMOVER = """
    import os, signal, sys
    from pathlib import Path
    from tests.journal.retaining import Clocks, a_retention

    directory, ending, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    unlink = os.unlink

    def killed(path, *arguments, **options):
        global calls
        if str(path).endswith(ending):
            calls -= 1
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        unlink(path, *arguments, **options)

    os.unlink = killed
    a_retention(directory, Clocks(), days=0, max_bytes=1).look()
    print("not killed", flush=True)
"""

A_RACER = """
    import sys
    from pathlib import Path
    from tests.journal.retaining import Clocks, a_retention

    directory = Path(sys.argv[1])
    retention = a_retention(directory, Clocks(), days=0, max_bytes=1)
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(retention.look().segments for _ in range(5)), flush=True)
"""

# Forks while the ledger is locked, is killed, and leaves a child that goes on living.
A_FORKER = """
    import os, signal, sys
    from pathlib import Path
    from otel_audit.journal.ledger.former import Ledger
    from tests.journal.retaining import Clocks, a_retention

    directory = Path(sys.argv[1])
    retention = a_retention(directory, Clocks(), days=0, max_bytes=1)
    append = Ledger.append

    def forking(self, *arguments):
        if os.fork() == 0:
            retention.forked()
            print(os.getpid(), flush=True)
            sys.stdin.read()
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    Ledger.append = forking
    retention.look()
"""


def killed_remover(directory: Path, ending: str, calls: int) -> None:
    remover = start_script(A_REMOVER, directory, ending, calls)
    finish(remover)
    assert remover.returncode == -signal.SIGKILL


@pytest.mark.processes
@pytest.mark.parametrize("export", ["otlp", "none"])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_remover_that_is_killed_between_the_entry_and_the_unlink_is_finished_by_the_next(
    tmp_path: Path, calls: int, export: str
) -> None:
    files = a_stream(tmp_path, export=(export,))
    if export == "otlp":
        deliver(files, Inbox("otlp"))
    totals = census(tmp_path).totals

    killed_remover(tmp_path, ".jsonl", calls)

    assert len(list(entries(tmp_path))) == calls
    assert segments_in(tmp_path) == {files.stream_id: list(range(calls, 4))}
    assert census(tmp_path).totals == totals
    a_retention(tmp_path, Clocks(), days=400).look()
    assert segments_in(tmp_path).get(files.stream_id, []) == list(range(calls + 1, 4))
    assert census(tmp_path).totals == totals
    a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()
    assert not list(tmp_path.glob(f"{files.stream_id}*"))
    assert [entry.content["segment"] for entry in entries(tmp_path)] == [1, 2, 3]
    assert census(tmp_path).totals == totals


@pytest.mark.processes
def test_a_remover_that_is_killed_before_the_cursor_of_a_whole_stream_is_gone_is_finished(tmp_path: Path) -> None:
    files = delivered(tmp_path)
    totals = census(tmp_path).totals
    killed_remover(tmp_path, ".cursor", 1)
    assert files.cursor.exists()
    assert census(tmp_path).totals == totals

    a_retention(tmp_path, Clocks()).look()

    assert not list(tmp_path.glob(f"{files.stream_id}*"))
    assert census(tmp_path).totals == totals


@pytest.mark.processes
def test_what_was_told_to_be_removed_is_not_sent_again(tmp_path: Path) -> None:
    files = delivered(tmp_path)
    totals = census(tmp_path).totals
    killed_remover(tmp_path, ".jsonl", 1)

    restart(tmp_path, "otlp", Adoption(lambda header: True))

    assert segments_in(tmp_path) == {files.stream_id: [2, 3]}
    assert census(tmp_path).totals.emitted == totals.emitted
    deliver(files, Inbox("otlp"))
    assert census(tmp_path).totals == totals


def test_a_file_that_cannot_be_unlinked_is_counted_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = delivered(tmp_path)
    totals = census(tmp_path).totals
    unlink = os.unlink
    failed = []

    def refused(path: Path, *arguments: object, **options: object) -> None:
        if str(path).endswith(".jsonl"):
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refused)
        a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()
    assert failed
    assert len(list(entries(tmp_path))) == 1
    assert census(tmp_path).totals == totals

    a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()

    assert not list(tmp_path.glob(f"{files.stream_id}*"))
    assert len(list(entries(tmp_path))) == 3
    assert census(tmp_path).totals == totals


@pytest.mark.processes
def test_two_processes_at_once_remove_each_segment_once(tmp_path: Path) -> None:
    for _ in range(8):
        delivered(tmp_path)
    totals = census(tmp_path).totals
    racers = [start_script(A_RACER, tmp_path) for _ in range(3)]
    assert [said(racer) for racer in racers] == ["ready"] * 3
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()

    counts = [int(said(racer)) for racer in racers]
    for racer in racers:
        finish(racer)
    a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()  # what each left to another one in the race

    told = [(entry.content["stream_id"], entry.content["segment"]) for entry in entries(tmp_path)]
    assert len(told) == len(set(told)) == 24
    assert sum(counts) <= 24
    assert [entry.number for entry in entries(tmp_path)] == list(range(1, 25))
    assert segments_in(tmp_path) == {}
    assert not list(tmp_path.glob("*.lock"))
    assert census(tmp_path).totals == totals


def test_a_stream_that_another_process_removes_in_the_moment_of_its_lock_leaves_no_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = delivered(tmp_path)
    acquire = FileLock.acquire
    others = [a_retention(tmp_path, Clocks(), days=0, max_bytes=1)]

    def acquired_later(path: Path, *, mode: int = 0o600) -> FileLock | None:
        if path == files.ship_lock and others:
            others.pop().look()
        return acquire(path, mode=mode)

    files.ship_lock.touch()  # of the other process, which is at work
    monkeypatch.setattr(FileLock, "acquire", acquired_later)
    a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()

    assert not others
    assert segments_in(tmp_path) == {}
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.processes
def test_a_child_that_outlives_its_killed_parent_keeps_no_lock_of_the_ledger_or_a_stream(tmp_path: Path) -> None:
    files = delivered(tmp_path)
    forker = start_script(A_FORKER, tmp_path)
    said(forker)
    assert forker.wait(120) == -signal.SIGKILL

    ledger = Ledger.locked(tmp_path)
    assert ledger is not None
    ledger.release()
    assert not FileLock.is_held(files.ship_lock)
    assert a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look().segments == 3
    finish(forker)


@pytest.mark.processes
def test_a_disk_that_is_full_is_made_room_on(small_disk: Path) -> None:
    journal, files = live_stream(small_disk, segments=3)
    deliver(files, Inbox("otlp"))
    retention = a_retention(small_disk, Clocks(), days=30)
    retention.look()
    leave_no_room(small_disk)
    before = os.statvfs(small_disk).f_bavail

    assert a_retention(small_disk, Clocks(), days=0, max_bytes=1).look().segments == 2

    assert before == 0
    assert os.statvfs(small_disk).f_bavail > 0
    assert len(list(entries(small_disk))) == 2
    assert log(journal, 1) == files
    journal.close()


@pytest.mark.processes
def test_what_is_delivered_only_after_the_disk_was_full_makes_room_too(small_disk: Path) -> None:
    journal, files = live_stream(small_disk, segments=3)
    cursor = files.cursor
    deliver(files, Inbox("otlp", away="collector is down"))
    assert cursor.exists()
    retention = a_retention(small_disk, Clocks(), days=0, max_bytes=1)
    retention.look()  # nothing is ready, and there is room: it is kept for this
    leave_no_room(small_disk)
    deliver(files, Inbox("otlp"))

    assert retention.look().segments == 2
    journal.close()


def test_a_reader_at_a_segment_that_is_removed_reads_it_to_its_end(tmp_path: Path) -> None:
    journal, files = live_stream(tmp_path, segments=2)
    with files.segment(1).open("rb") as reader:
        deliver(files, Inbox("otlp"))
        a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()
        assert not files.segment(1).exists()
        assert len(reader.read().split(b"\n")) > 5
    assert Latest(tmp_path).last(5)
    journal.close()


def test_a_ledger_with_a_name_outside_the_directory_makes_nobody_remove_it(tmp_path: Path) -> None:
    directory, outside = tmp_path / "audit", tmp_path / "x.00000001.jsonl"
    directory.mkdir()
    outside.write_text("mine\n")
    with Ledger.locked(directory) or pytest.fail("the lock is taken") as ledger:
        ledger.append("retain", {"stream_id": "../x", "segment": 1, "whole": True}, 1)

    finish_removal(directory)
    a_retention(directory, Clocks()).look()

    assert outside.exists()


@examples(15)
@given(junk=st.binary(max_size=60))
def test_a_state_of_any_content_removes_nothing_early(junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("audit")
    delivered(directory, segments=1)
    (directory / STATE_NAME).write_bytes(junk)
    clocks = Clocks()
    clocks.jump_days(1000)

    a_retention(directory, clocks).look()

    assert len(read_streams(directory)) == 1
    clocks.pass_days(31)
    a_retention(directory, clocks).look()
    assert kept(directory) == {}


@pytest.mark.parametrize("export", ["none", "otlp"])
@pytest.mark.parametrize("which", [0, -1], ids=["the first", "the last"])
def test_a_segment_that_somebody_restored_stays_and_is_counted_once(tmp_path: Path, export: str, which: int) -> None:
    journal, files = live_stream(tmp_path, segments=4, export=[export])
    if export == "otlp":
        deliver(files, Inbox("otlp"))
    before = census(tmp_path).totals
    backup = {number: files.segment(number).read_bytes() for number in files.segments()}
    a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look()
    removed = sorted(set(backup) - set(files.segments()))
    assert len(removed) >= 2

    restored = removed[which]
    files.segment(restored).write_bytes(backup[restored])
    for limits in ({"days": 4000}, {"days": 0, "max_bytes": 1}):
        a_retention(tmp_path, Clocks(), **limits).look()

    assert files.segment(restored).read_bytes() == backup[restored]
    assert census(tmp_path).totals == before
    journal.close()
