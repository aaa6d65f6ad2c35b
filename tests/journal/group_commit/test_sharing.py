"""With `fsync` one sync serves many callers, and none of them is told more than is true."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.journal.journal import Journal
from otel_audit.journal.stream import Limits
from otel_audit.settings import Durability
from tests.chain_check import application_events
from tests.journal.group_commit.waiting import Start, hold, wait_for_written
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append, the_stream
from tests.servers.polling import poll


def test_callers_that_wait_at_the_same_time_share_one_sync(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_threads: Start
) -> None:
    hold(disk)
    first = in_threads(journal, "a")
    disk.wait_until_entered()
    rest = [in_threads(journal, number) for number in range(40)]
    wait_for_written(tmp_path, 42)
    disk.calls.clear()

    disk.gate.set()

    assert all(each.result(30).durable for each in [first, *rest])
    assert len(disk.calls) == 2, "one for the first of them, one for all that came meanwhile"


def test_no_caller_returns_before_a_sync_that_began_after_its_line_was_written(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_threads: Start
) -> None:
    hold(disk)
    early = in_threads(journal, "early")
    disk.wait_until_entered()
    late = in_threads(journal, "late")
    wait_for_written(tmp_path, 3)
    assert not early.done()
    disk.gate.set()
    early.result(30)
    disk.wait_until_entered()  # the sync that covers the other one

    late.result(30)

    assert application_events(tmp_path)[-1]["event_id"] == "late"


def test_what_was_not_synced_yet_is_synced_before_the_next_segment_begins(
    tmp_path: Path, disk: SlowDisk, in_threads: Start
) -> None:
    journal = a_journal(tmp_path, durability=Durability.FSYNC, limits=Limits(segment_bytes=4096))
    append(journal, "first")
    hold(disk)
    first = in_threads(journal, "a")
    disk.wait_until_entered()
    rest = [in_threads(journal, number) for number in range(60)]
    poll(lambda: the_stream(tmp_path).segment(1).stat().st_size, until=lambda size: size >= 4096, what="a full segment")
    disk.calls.clear()
    disk.gate.set()
    assert all(each.result(30).durable for each in [first, *rest])
    journal.close()

    names = [the_stream(tmp_path).segment(number).name for number in the_stream(tmp_path).segments()]
    assert len(names) > 3
    for before, after in pairwise(names):
        last = len(disk.calls) - 1 - disk.calls[::-1].index(before)
        assert last < disk.calls.index(after), f"{after} was synced while {before} was not"


def test_a_disk_that_never_answers_does_not_hold_a_caller_for_ever(
    tmp_path: Path, journal: Journal, disk: SlowDisk
) -> None:
    usual_s = journal.commit_timeout_s
    hold(disk)

    journal.commit_timeout_s = 0.3
    with pytest.raises(AuditUnavailable, match="too long"):
        append(journal, "slow")

    journal.commit_timeout_s = usual_s  # a real disk may take longer than that
    disk.gate.set()
    assert append(journal, "after").durable
    journal.close()
    assert len(application_events(tmp_path)) == 3
