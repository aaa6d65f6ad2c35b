"""Who waits for a sync that fails is told, and what it may have lost is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal
from otel_audit.journal.segment import OpenSegment
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.settings import Durability, OnLoss
from tests.chain_check import application_events
from tests.journal.group_commit.waiting import Start, hold, wait_for_written
from tests.journal.keeping import Keeping
from tests.journal.service import a_service
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append, the_stream


def damage_of(files: StreamFiles, number: int) -> dict[str, object]:
    header = json.loads(files.segment(number).read_bytes().partition(b"\n")[0])
    damage = header["segment"]["damage"]
    assert isinstance(damage, dict)
    return damage


def test_every_caller_whose_line_the_failed_sync_may_have_lost_is_told(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_threads: Start
) -> None:
    hold(disk)
    disk.fails = True
    waiting = [in_threads(journal, "a")]
    disk.wait_until_entered()
    waiting += [in_threads(journal, number) for number in range(10)]
    wait_for_written(tmp_path, 12)

    disk.gate.set()

    for each in waiting:
        with pytest.raises(AuditUnavailable, match="a loss of power may take it") as raised:
            each.result(30)
        assert not isinstance(raised.value, JournalFull | JournalUnwritable), "it says that nothing was written"
    disk.fails = False
    assert append(journal, "after").durable
    journal.close()
    files = the_stream(tmp_path)
    assert damage_of(files, 2) == {**damage_of(files, 2), "reason": "fdatasync failed", "length": 0}
    assert disk.tried_again() == set()
    assert len(application_events(tmp_path)) == 13, "the lines stay in the chain"
    assert journal.counts.dropped == 0


def test_a_segment_whose_sync_failed_is_never_synced_again_also_while_no_next_one_can_begin(
    tmp_path: Path, disk: SlowDisk
) -> None:
    journal = a_journal(tmp_path, durability=Durability.FSYNC, limits=Limits(segment_bytes=2000))
    append(journal, "a", detail="x" * 500)
    files = the_stream(tmp_path)
    disk.fails = True
    with pytest.raises(AuditUnavailable):
        append(journal, "b", detail="x" * 2000)
    with pytest.raises(JournalUnwritable):  # nor can the next segment be begun
        append(journal, "c")
    disk.fails = False

    append(journal, "d")
    journal.close()

    assert damage_of(files, 2)["reason"] == "fdatasync failed"
    failed = files.segment(1).stat().st_ino
    assert [fails for inode, fails in disk.tried if inode == failed].count(True) == 1
    assert [fails for inode, fails in disk.tried if inode == failed][-1] is True
    assert [each["event_id"] for each in application_events(tmp_path)] == ["a", "b", "d"]


def test_lines_that_are_synced_only_when_their_segment_is_full_are_told_apart_when_that_fails(
    tmp_path: Path, disk: SlowDisk
) -> None:
    files = StreamFiles(tmp_path, "0190d7a8-1111-7000-8000-000000000000")
    limits = Limits(segment_bytes=4000)
    stream = StreamWriter(files, {}, limits=limits, durability=Durability.FSYNC, retire=OpenSegment.close)
    event = b'{"event_type":"test","event_id":"%d"}'
    lost = [stream.write(event % number, 1, 1) for number in range(8)]
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        lost.extend(stream.write(event % number, 1, 1) for number in range(100))
    disk.fails = False
    assert files.segments() == [1]

    after = stream.write(event % 200, 1, 1)
    stream.sync_at_once()

    assert all(stream.sync_error(seq) is not None for seq in lost)
    assert stream.is_settled(after)
    assert stream.sync_error(after) is None
    assert damage_of(files, 2)["reason"] == "fdatasync failed"
    one = files.segment(1).stat().st_ino
    assert [fails for inode, fails in disk.tried if inode == one] == [False, True]  # its header, and the failed one
    stream.finish()
    stream.let_go()


def test_a_segment_is_synced_before_the_next_one_begins_and_the_directory_after(tmp_path: Path, disk: SlowDisk) -> None:
    journal = a_journal(tmp_path, durability=Durability.FSYNC, limits=Limits(segment_bytes=2000))
    append(journal, "a", detail="x" * 2000)
    disk.calls.clear()

    append(journal, "b")

    one, two = (the_stream(tmp_path).segment(number).name for number in (1, 2))
    # The first one was synced for its own event; were it not, it would stand here.
    assert disk.calls[-3:] == [two, tmp_path.name, two]
    assert one not in disk.calls[-2:]
    journal.close()


def test_of_an_event_that_is_in_the_journal_it_is_not_said_that_it_is_lost(
    tmp_path: Path, disk: SlowDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    exporter = Keeping()
    with a_service(tmp_path, OnLoss.OPEN, exporters=[exporter], durability="fsync") as service:
        assert service.log("first")
        disk.fails = True
        assert not service.log("not synced")
        disk.fails = False
        service.audit.flush(timeout_s=10)

        assert [json.loads(line)["request_id"] for line in exporter.lines if b'"system"' not in line[:9]] == [
            "first",
            "not synced",
        ]
        stats = service.audit.stats()
    assert (stats.emitted, stats.exported, stats.dropped) == (2, 2, 0)
    said = capfd.readouterr().err
    assert "events may not survive a loss of power: " in said
    assert "lost" not in said
