"""A disk that is full refuses new events, keeps the old ones, and takes events again when there is room."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from otel_audit.errors import JournalFull
from otel_audit.journal.counts import Counts
from otel_audit.journal.cursor import Cursor, Position, Progress, read_cursor
from otel_audit.journal.journal import Journal, Receipt
from otel_audit.journal.stream import Limits
from otel_audit.settings import OnLoss
from tests.chain_check import application_events, read_streams
from tests.journal.service import a_service
from tests.journal.writing import (
    a_journal,
    append,
    assert_chained,
    ids_of,
    leave_no_room,
    lines_of,
    open_files,
    the_stream,
)

SIZE_KIB = 256  # of `small_disk`


def fill(journal: Journal) -> list[Receipt]:
    """Log until the disk takes no more; the receipts of what it took."""
    receipts = []
    for number in range(100_000):
        try:
            receipts.append(append(journal, number, detail="x" * 300))
        except JournalFull:
            return receipts
    raise AssertionError("the disk was never full")


@pytest.mark.processes
def test_what_was_acknowledged_is_whole_on_a_disk_that_filled_up(small_disk: Path) -> None:
    journal = a_journal(small_disk)

    receipts = fill(journal)

    assert len(receipts) > 100
    assert [each["event_id"] for each in application_events(small_disk)] == [each.event_id for each in receipts]
    assert journal.counts.emitted == len(receipts) + 1
    assert journal.counts.dropped == 1


@pytest.mark.processes
def test_the_first_line_after_a_full_disk_says_how_many_events_were_lost(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (SIZE_KIB // 2 * 1024))
    journal = a_journal(small_disk)
    before = fill(journal)
    for number in range(4):
        with pytest.raises(JournalFull, match="free space"):
            append(journal, f"lost-{number}", detail="x" * 300)

    ballast.unlink()
    after = append(journal, "after")
    journal.close()

    (events,) = read_streams(small_disk).values()
    gap, last = events[-2:]
    assert gap["event_type"] == "audit.gap"
    assert gap["gap"]["lines"] == 5
    assert list(gap["gap"]["by_reason"]) == ["disk full"]
    assert last["event_id"] == "after"
    assert after.durable
    kept = [each["event_id"] for each in application_events(small_disk)]
    assert kept == [*(each.event_id for each in before), "after"]


@pytest.mark.processes
def test_a_cursor_is_stored_on_a_disk_that_filled_up_after_it_was_made(small_disk: Path) -> None:
    cursor = Cursor(small_disk / "stream.cursor")
    leave_no_room(small_disk)

    for offset in range(1, 20):
        cursor.advance("otlp", Progress(Position(1, offset, offset), Counts(exported=offset)))
    cursor.close()

    progress, ended = read_cursor(small_disk / "stream.cursor")
    assert progress["otlp"].position == Position(1, 19, 19)
    assert not ended


@pytest.mark.processes
def test_a_cursor_that_cannot_be_made_leaves_no_descriptor_behind(small_disk: Path) -> None:
    """It is tried again every few seconds, for each stream that waits."""
    leave_no_room(small_disk)

    for _ in range(5):
        with pytest.raises(OSError, match="No space"):
            Cursor(small_disk / "stream.cursor")

    assert open_files(small_disk) == []


@pytest.mark.processes
def test_a_stream_that_cannot_be_opened_leaves_no_files_behind(small_disk: Path) -> None:
    leave_no_room(small_disk)
    journal = a_journal(small_disk)

    for number in range(10):
        with pytest.raises(JournalFull):
            append(journal, number)

    assert not list(small_disk.glob("*.jsonl"))
    assert not list(small_disk.glob("*.lock"))
    (small_disk / "ballast").unlink()
    append(journal, "after")
    (events,) = read_streams(small_disk).values()
    assert [each["event_type"] for each in events] == ["audit.segment", "audit.gap", "test"]
    assert events[1]["gap"]["lines"] == 10


@pytest.mark.processes
def test_a_segment_that_cannot_be_started_is_started_when_there_is_room(small_disk: Path) -> None:
    journal = a_journal(small_disk, limits=Limits(segment_bytes=4096))
    for number in range(12):
        append(journal, number, detail="x" * 300)
    leave_no_room(small_disk)
    refused = 0
    for number in range(20):
        with contextlib.suppress(JournalFull):
            append(journal, f"more-{number}", detail="x" * 300)
            continue
        refused += 1

    (small_disk / "ballast").unlink()
    append(journal, "after")
    journal.close()

    ids = [each["event_id"] for each in application_events(small_disk)]
    assert refused > 5
    assert len(ids) == 12 + 20 - refused + 1
    assert ids_of(lines_of(the_stream(small_disk))) == ids


class FailingDisk:
    """Stands for `os.write` and `os.ftruncate` of a disk that takes half of an event and then no more."""

    def __init__(self, patch: pytest.MonkeyPatch, *, keeps_the_piece: bool = False) -> None:
        self.fails = True
        self._rest = b""
        self._write, self._ftruncate = os.write, os.ftruncate
        self._keeps_the_piece = keeps_the_piece
        patch.setattr(os, "write", self.write)
        patch.setattr(os, "ftruncate", self.ftruncate)

    def write(self, descriptor: int, data: bytes) -> int:
        if self.fails and bytes(data[:14]) == b'{"event_type":':
            self._rest = bytes(data[len(data) // 2 :])
            return self._write(descriptor, data[: len(data) // 2])
        if self.fails and data == self._rest:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, data)

    def ftruncate(self, descriptor: int, length: int) -> None:
        if self.fails and self._keeps_the_piece:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._ftruncate(descriptor, length)


def test_a_short_write_is_undone_before_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = a_journal(tmp_path)
    append(journal, "before")
    disk = FailingDisk(monkeypatch)

    with pytest.raises(JournalFull):
        append(journal, "torn")

    assert [each["event_id"] for each in application_events(tmp_path)] == ["before"]
    disk.fails = False
    append(journal, "after")
    (events,) = read_streams(tmp_path).values()
    assert [each["event_type"] for each in events] == ["audit.segment", "test", "audit.gap", "test"]


def test_what_cannot_be_undone_is_sealed_and_named_by_the_next_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = a_journal(tmp_path)
    append(journal, "before")
    files = the_stream(tmp_path)
    whole = files.segment(1).read_bytes()
    disk = FailingDisk(monkeypatch, keeps_the_piece=True)

    with pytest.raises(JournalFull):
        append(journal, "torn")
    disk.fails = False
    append(journal, "after")

    content = files.segment(1).read_bytes()
    piece = content.removeprefix(whole)
    assert len(piece) > 100
    header = json.loads(files.segment(2).read_bytes().partition(b"\n")[0])
    assert header["segment"]["damage"] == {
        "segment": 1,
        "offset": len(whole),
        "length": len(piece),
        "sha256": sha256(piece).hexdigest(),
        "reason": "a failed write could not be undone",
    }
    lines = lines_of(files)
    assert_chained(lines)
    assert ids_of(lines) == ["before", "after"]


def test_a_service_that_begins_in_a_full_directory_delivers_and_removes_what_is_in_the_way(tmp_path: Path) -> None:
    """Its threads began with the first event that was written, and none could be."""
    with a_service(tmp_path, OnLoss.OPEN, directory_bytes=1 << 20) as service:
        service.fill()

    with a_service(tmp_path, OnLoss.OPEN, directory_bytes=1 << 20, retention_bytes=1 << 19) as service:
        assert not service.log("no room")
        service.recover()
