"""What `os` and `fsync` promise, and what happens when the disk does not keep it."""

from __future__ import annotations

import errno
import gc
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable
from otel_audit.journal.files import StreamFiles, copy_bytes
from otel_audit.journal.journal import Journal, Receipt
from otel_audit.journal.stream import Limits
from otel_audit.settings import Durability
from tests.chain_check import application_events, read_streams
from tests.journal.moments import before
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append, description, open_files, the_stream
from tests.servers.polling import poll


class Syncs:
    """Stands for `os.fdatasync` of a disk that can be told to fail; remembers the files that were synced."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fails = False
        self.synced: list[str] = []
        self._fdatasync = os.fdatasync
        patch.setattr(os, "fdatasync", self.fdatasync)

    def fdatasync(self, descriptor: int) -> None:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        self._fdatasync(descriptor)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


def damage_named_by(files: StreamFiles, number: int) -> dict[str, Any]:
    header = json.loads(files.segment(number).read_bytes().partition(b"\n")[0])
    damage = header["segment"]["damage"]
    assert isinstance(damage, dict)
    return damage


def open_segments(directory: Path) -> list[str]:
    return [name for name in open_files(directory) if name.endswith(".jsonl")]


def test_with_fsync_each_event_is_synced_before_it_is_acknowledged(tmp_path: Path, syncs: Syncs) -> None:
    journal = a_journal(tmp_path, durability=Durability.FSYNC)

    for name in range(10):
        syncs.synced.clear()
        append(journal, name)
        assert syncs.synced[-1] == the_stream(tmp_path).segment(1).name
    journal.close()


def test_an_event_that_could_not_be_synced_is_not_acknowledged_and_seals_its_segment(
    tmp_path: Path, syncs: Syncs
) -> None:
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "before")
    files = the_stream(tmp_path)

    syncs.fails = True
    with pytest.raises(AuditUnavailable, match="a loss of power may take it") as raised:
        append(journal, "unsynced")
    assert not isinstance(raised.value, JournalFull | JournalUnwritable), "it says that nothing was written"
    size = files.segment(1).stat().st_size
    syncs.fails = False
    syncs.synced.clear()
    append(journal, "after")
    journal.tend()

    assert damage_named_by(files, 2)["reason"] == "fdatasync failed"
    assert damage_named_by(files, 2)["length"] == 0
    assert files.segment(1).stat().st_size == size, "the sealed segment was written"
    # The line stays in the chain: a reader may have seen it, and no other line may have its number.
    ids = [each["event_id"] for each in application_events(tmp_path)]
    assert ids == ["before", "unsynced", "after"]
    assert (journal.counts.emitted, journal.counts.dropped) == (3, 0)
    journal.close()


def test_with_fsync_a_removed_file_is_put_back_before_the_next_event_is_acknowledged(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "before")

    the_stream(tmp_path).segment(1).unlink()
    append(journal, "after")

    (events,) = read_streams(tmp_path).values()
    assert [each["event_type"] for each in events] == ["audit.segment", "test", "test", "audit.gap"]
    journal.close()


def test_with_fsync_nothing_is_acknowledged_while_a_removed_file_is_not_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(source: int, target: int, length: int) -> None:
        time.sleep(0.5)  # longer than a waiter goes without a look of its own
        copy_bytes(source, target, length)

    monkeypatch.setattr("otel_audit.journal.segment.copy_bytes", slowly)
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "before")
    segment = the_stream(tmp_path).segment(1)

    segment.unlink()
    append(journal, "after")

    assert segment.exists()
    (events,) = read_streams(tmp_path).values()
    assert [each["event_type"] for each in events] == ["audit.segment", "test", "test", "audit.gap"]
    journal.close()


def test_full_segments_are_synced_and_closed_in_the_background(tmp_path: Path, syncs: Syncs) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=2000))
    for name in range(100):
        append(journal, name)
    files = the_stream(tmp_path)
    numbers = files.segments()
    assert len(numbers) > 10

    poll(
        lambda: open_segments(tmp_path),
        until=lambda names: names == [files.segment(numbers[-1]).name],
        what="only the segment that is written to be open",
    )

    poll(
        lambda: set(syncs.synced),
        until=lambda synced: synced >= {files.segment(number).name for number in numbers},
        what="every segment to be synced",
    )
    journal.close()
    assert open_segments(tmp_path) == []


def test_the_name_of_each_segment_is_synced_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=2000))
    append(journal, "a", detail="x" * 2000)
    poll(
        lambda: list(disk.calls),
        until=lambda calls: tmp_path.name in calls,
        what="a sync of the directory",
    )
    disk.calls.clear()

    append(journal, "b")

    calls = poll(lambda: list(disk.calls), until=lambda calls: tmp_path.name in calls, what="the next one")
    assert the_stream(tmp_path).segment(2).name in calls
    journal.close()


def test_an_error_of_the_write_back_is_said_and_ends_the_segment(
    tmp_path: Path, syncs: Syncs, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = a_journal(tmp_path)
    append(journal, "before")
    files = the_stream(tmp_path)

    syncs.fails = True
    notice = f"{tmp_path}: write-back failed"  # not that of a journal which another test left to the collector
    poll(lambda: capfd.readouterr().err, until=lambda err: notice in err, what="a notice")
    syncs.fails = False

    def log_until_rotated() -> bool:
        append(journal, "after")
        return files.segment(2).exists()

    poll(log_until_rotated, what="a new segment")
    assert damage_named_by(files, 2)["reason"] == "write-back failed"
    journal.close()
    assert application_events(tmp_path)[0]["event_id"] == "before"


def test_an_error_of_the_last_write_back_of_a_stream_is_said(
    tmp_path: Path, syncs: Syncs, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing will be written behind it, and nobody else would ever know."""
    journal = a_journal(tmp_path)
    append(journal, "a")

    syncs.fails = True
    journal.close()

    assert f"{tmp_path}: write-back failed: [Errno 5]" in capfd.readouterr().err
    assert open_files(tmp_path) == []


def test_a_journal_that_nobody_closed_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    assert len(open_files(tmp_path)) >= 2, "the segment and its lock"

    del journal

    def left() -> list[str]:
        gc.collect()
        return open_files(tmp_path)

    poll(left, until=lambda names: not names, what="every file to be closed")


def test_an_old_segment_is_ended_unless_nothing_was_written_to_it(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_age_s=0.5))
    append(journal, "a")
    files = the_stream(tmp_path)

    poll(lambda: files.segment(2).exists(), what="a new segment")
    header_only = files.segment(2).stat().st_size
    poll(lambda: journal._end._tended_ns, until=_differs(journal), what="another look at an idle journal")

    assert files.segments() == [1, 2]
    assert files.segment(2).stat().st_size == header_only
    journal.close()


def _differs(journal: Journal) -> Any:
    first = journal._end._tended_ns
    return lambda tended_ns: tended_ns - first > 1_500_000_000  # more than the age


def test_a_clock_that_was_set_back_for_years_does_not_end_the_looks(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    years_ns = 10 * 365 * 86_400 * 10**9
    journal.append("future", b'{"event_type":"test","event_id":"future"}', years_ns * 10, years_ns * 10)
    the_stream(tmp_path).segment(1).unlink()

    journal.append("now", b'{"event_type":"test","event_id":"now"}', years_ns, years_ns)

    assert [each["event_id"] for each in application_events(tmp_path)] == ["future", "now"]
    journal.close()


def test_events_logged_from_inside_an_append_are_bounded_and_the_rest_is_counted(tmp_path: Path) -> None:
    inner: list[Receipt] = []

    def logs_while_it_describes() -> Mapping[str, Any]:
        inner.extend(append(journal, f"inner-{number}") for number in range(1500 - len(inner)))
        return description()

    journal = Journal(tmp_path, describe=logs_while_it_describes)
    append(journal, "outer")
    journal.close()

    assert len(inner) == 1500
    assert {(each.seq, each.durable) for each in inner} == {(None, False)}
    ids = [each["event_id"] for each in application_events(tmp_path)]
    assert sorted(ids) == sorted(["outer", *(f"inner-{number}" for number in range(1000))])
    (events,) = read_streams(tmp_path).values()
    (gap,) = [each["gap"] for each in events if each["event_type"] == "audit.gap"]
    assert gap["lines"] == 500
    assert gap["by_reason"]["re-entry"]["count"] == 500
    assert (journal.counts.emitted, journal.counts.dropped) == (1501, 500)


def test_a_process_short_of_descriptors_syncs_the_name_of_its_file_later_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[str] = []

    def run_short(path: object, *_: object) -> None:
        if str(path) == str(tmp_path):
            tries.append(str(path))
            if len(tries) == 1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    journal = a_journal(tmp_path)
    with before("open", run_short):
        append(journal, "a")
        poll(lambda: len(tries) > 1, what="the next sync")
    append(journal, "b")
    journal.tend()
    journal.close()

    assert capsys.readouterr().err == ""
    assert the_stream(tmp_path).segments() == [1]
