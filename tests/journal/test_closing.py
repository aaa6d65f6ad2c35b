"""The end of a stream, called for at any moment."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from otel_audit.journal.files import streams_in
from otel_audit.journal.locks import FileLock
from otel_audit.journal.stream import StreamWriter
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.chain_check import application_events, read_streams
from tests.journal.disks import frozen
from tests.journal.keeping import Keeping
from tests.journal.writing import a_journal, append, the_stream, the_writer

CLOSES = 200


def test_a_stream_that_is_opened_while_another_thread_announces_the_one_before_is_announced_too(tmp_path: Path) -> None:
    announced: list[StreamWriter] = []

    def close_and_append() -> None:
        journal.close()
        append(journal, "b")

    def announce(stream: StreamWriter) -> None:
        announced.append(stream)
        if len(announced) == 1:
            other = threading.Thread(target=close_and_append)
            other.start()
            other.join()

    journal = a_journal(tmp_path, on_open=announce)
    append(journal, "a")

    assert [stream.files.stream_id for stream in announced] == [files.stream_id for files in streams_in(tmp_path)]
    assert len(announced) == 2
    journal.close()


def test_a_signal_handler_that_closes_inside_an_append_neither_waits_for_it_nor_breaks_it(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    closed = 0

    def close(number: int, frame: FrameType | None) -> None:
        nonlocal closed
        journal.close()
        closed += 1

    former = signal.signal(signal.SIGALRM, close)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0023)
    names: list[str] = []
    try:
        while closed < CLOSES:
            receipt = append(journal, len(names))
            assert receipt.durable
            names.append(str(len(names)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    journal.close()

    assert sorted(event["event_id"] for event in application_events(tmp_path)) == sorted(names)


@pytest.mark.processes
def test_a_disk_that_became_read_only_stops_no_close(small_disk: Path) -> None:
    exporter = Keeping()
    trail = Trail(Settings.load({}, {"directory": str(small_disk), "export": "none"}), exporters=[exporter])
    append(trail.journal, "a")
    assert trail.flush(10).complete
    append(trail.journal, "last")

    with frozen(small_disk):
        trail.close(10)

    files = the_stream(small_disk)
    assert exporter.ids == ["a", "last"]
    assert not FileLock.is_held(files.writer_lock)
    assert not FileLock.is_held(files.ship_lock)


def test_a_line_of_the_journal_itself_is_in_the_chain_and_counts_as_no_event(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")

    the_writer(journal).write_system("note", {"size": 7}, time.time_ns())

    append(journal, "b")
    journal.close()
    (events,) = read_streams(tmp_path).values()
    assert [each["event_type"] for each in events] == ["audit.segment", "test", "audit.note", "test"]
    assert events[2]["note"] == {"size": 7}
    assert journal.counts.emitted == 2


def test_while_the_end_of_a_stream_is_told_its_lock_is_held_and_nobody_waits_to_log(tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []

    def tell(stream: StreamWriter) -> bool:
        append(journal, "meanwhile")  # into a stream of its own
        told.append((stream.head.seq, FileLock.is_held(stream.files.writer_lock)))
        return True

    journal = a_journal(tmp_path, on_close=tell)
    journal.close()
    assert told == [], "no stream was open"
    append(journal, "a")
    journal.reopen()  # another process may go on with that stream
    assert told == []
    append(journal, "b")
    journal.close()

    assert told == [(2, True)]
    left, closed, opened = read_streams(tmp_path).values()
    assert [[each["event_id"] for each in events[1:]] for events in (left, closed, opened)] == [
        ["a"],
        ["b"],
        ["meanwhile"],
    ]
    locks = [FileLock.is_held(files.writer_lock) for files in streams_in(tmp_path)]
    assert locks == [False, False, True]
    assert not streams_in(tmp_path)[1].writer_lock.exists()
    told.clear()
    journal.close()


@pytest.mark.parametrize("end", ["the ledger is busy", "the ledger is away"])
def test_a_stream_is_closed_also_where_its_end_cannot_be_told_and_somebody_else_may_tell_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    def fails(stream: StreamWriter) -> bool:
        if end == "the ledger is busy":
            return False
        raise OSError(end)

    journal = a_journal(tmp_path, on_close=fails)
    append(journal, "a")
    journal.close()

    assert (end in capsys.readouterr().err) == (end == "the ledger is away")
    lock = the_stream(tmp_path).writer_lock
    assert (lock.exists(), FileLock.is_held(lock)) == (True, False)
