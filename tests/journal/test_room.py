"""What is set aside on a disk that fills up, and a limit that is below what the disk has."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_audit.errors import AuditUnavailable, JournalFull
from otel_audit.event import AuditEvent
from otel_audit.journal.files import journal_bytes, streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.room import RESERVE_BYTES, Limited, Room, Space
from otel_audit.journal.stream import Limits
from otel_audit.logger import AuditLogger
from otel_audit.settings import OnLoss
from tests.chain_check import application_events, read_streams
from tests.journal.disks import Unmountable, tmpfs
from tests.journal.service import a_service
from tests.journal.writing import a_journal, append, event, finish, leave_no_room, said, start_script, the_stream
from tests.recording import a_trail
from tests.requiring import CLOSED, a_policy
from tests.servers.polling import poll

pytestmark = pytest.mark.processes  # mounts small disks
MIB = 1024 * 1024
OTHERS = "00000000-0000-7000-8000-000000000000.cursor"  # a file of another process


@pytest.fixture
def disk(tmp_path: Path, small_disk: Path) -> Iterator[Path]:
    """A file system of 4 MiB in memory: enough for a reserve. Skipped with `small_disk`."""
    try:
        with tmpfs(tmp_path / "larger", "size=4m") as mounted:
            yield mounted
    except Unmountable as error:
        pytest.fail(f"a tmpfs could be mounted, and now cannot: {error}")


def refused(journal: Journal, count: int) -> None:
    for number in range(count):
        with pytest.raises(JournalFull):
            append(journal, f"lost-{number}", detail="x" * 300)


def fill_up(journal: Journal, disk: Path) -> None:
    """The disk is full of other things, and an event was refused for that."""
    leave_no_room(disk)
    for number in range(100):  # the last block of the segment takes some
        try:
            append(journal, f"fill-{number}", detail="x" * 300)
        except JournalFull:
            return
    raise AssertionError("the disk was never full")


def until_refused(journal: Journal, *, is_vital: bool) -> None:
    for number in range(100_000):
        try:
            journal.append("", event(number, detail="x" * 300), now_ns := time.time_ns(), now_ns, is_vital)
        except JournalFull:
            return
    raise AssertionError("nothing was refused")


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def gaps_in(directory: Path) -> list[dict[str, Any]]:
    return [event["gap"] for events in read_streams(directory).values() for event in events if "gap" in event]


def test_the_trail_says_that_events_are_lost_while_the_disk_is_still_full(disk: Path) -> None:
    journal = a_journal(disk)
    append(journal, "before")

    fill_up(journal, disk)

    (gap,) = gaps_in(disk)
    assert (gap["lines"], list(gap["by_reason"])) == (1, ["disk full"])
    journal.close()


def test_what_is_set_aside_is_not_taken_by_events(disk: Path) -> None:
    journal = a_journal(disk)
    append(journal, "before")
    fill_up(journal, disk)

    refused(journal, 1000)

    assert free_bytes(disk) > RESERVE_BYTES // 2
    assert len(gaps_in(disk)) == 1, "told again before a minute was over"
    (disk / "ballast").unlink()
    poll(lambda: _taken(journal, "after"), what="an event on the disk again")
    journal.close()
    gaps = gaps_in(disk)
    assert sum(gap["lines"] for gap in gaps) == journal.counts.dropped
    assert application_events(disk)[-1]["event_id"] == "after"


def _taken(journal: Journal, name: str) -> bool:
    try:
        append(journal, name)
    except JournalFull:
        return False
    return True


def test_what_was_lost_until_the_end_is_told_on_a_disk_that_stays_full(disk: Path) -> None:
    journal = a_journal(disk)
    append(journal, "before")
    fill_up(journal, disk)
    refused(journal, 20)

    journal.close()

    assert [gap["lines"] for gap in gaps_in(disk)] == [1, 20]


def test_a_segment_that_is_due_begins_on_a_full_disk(disk: Path) -> None:
    journal = a_journal(disk, limits=Limits(segment_age_s=1))
    append(journal, "before")
    fill_up(journal, disk)

    poll(lambda: the_stream(disk).segment(2).exists(), what="the next segment")

    journal.close()
    assert len(read_streams(disk)) == 1


def test_the_reserve_is_taken_again_when_there_is_room(disk: Path) -> None:
    journal = a_journal(disk)
    append(journal, "before")
    for times in (1, 2):
        fill_up(journal, disk)
        assert free_bytes(disk) > RESERVE_BYTES // 2
        (disk / "ballast").unlink()
        poll(lambda: _taken(journal, f"after-{times}"), what="an event on the disk again")  # noqa: B023
        used = 4 * MIB - free_bytes(disk)
        assert used >= RESERVE_BYTES, "it was not taken again"
    journal.close()


def test_nothing_is_left_of_the_reserve_when_its_process_is_killed(disk: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from tests.journal.writing import a_journal, append

        journal = a_journal(Path(sys.argv[1]))
        append(journal, "a")
        print("written", flush=True)
        sys.stdin.read()
    """
    process = start_script(script, disk)
    assert said(process) == "written"
    with_reserve = free_bytes(disk)
    assert with_reserve < 4 * MIB - RESERVE_BYTES

    process.send_signal(signal.SIGKILL)
    finish(process)

    assert free_bytes(disk) >= with_reserve + RESERVE_BYTES
    assert [path.name for path in disk.iterdir() if "reserve" in path.name] == []


def test_a_forked_child_leaves_the_reserve_to_its_parent(disk: Path) -> None:
    journal = a_journal(disk)
    append(journal, "before")
    child = os.fork()
    if child == 0:
        append(journal, "child")
        journal.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

    fill_up(journal, disk)

    assert [gap["lines"] for gap in gaps_in(disk)] == [1]
    journal.close()


def test_a_reserve_whose_descriptor_another_process_inherited_is_free_all_the_same(disk: Path) -> None:
    """A fork by C code runs no hooks."""
    journal = a_journal(disk)
    append(journal, "before")
    descriptors = {int(name): os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    reserves = [number for number, path in descriptors.items() if path.startswith(f"{disk}/") and ".reserve" in path]
    assert len(reserves) == 1
    idle = start_script("import sys; sys.stdin.read()", pass_fds=tuple(reserves))

    fill_up(journal, disk)

    assert free_bytes(disk) > RESERVE_BYTES // 2
    finish(idle)
    journal.close()


@pytest.mark.parametrize("rule", list(OnLoss))
def test_a_directory_at_its_limit_takes_no_event_and_gives_none_away(
    tmp_path: Path, rule: OnLoss, capfd: pytest.CaptureFixture[str]
) -> None:
    with a_service(tmp_path, rule, directory_bytes="1 MiB", segment_bytes=128 * 1024) as service:
        service.fill()
        used = journal_bytes(tmp_path)
        assert 0.95 * MIB < used < 1.05 * MIB
        for number in range(50):
            assert not service.log(f"more-{number}", padding=300)
        (gap,) = gaps_in(tmp_path)
        assert list(gap["by_reason"]) == ["directory limit"]

        service.assert_accounted_for()

    assert ("OTEL_AUDIT_DIRECTORY_BYTES allows" in capfd.readouterr().err) == (rule is OnLoss.OPEN)


def test_events_are_taken_again_when_the_directory_holds_less(tmp_path: Path) -> None:
    old = tmp_path / OTHERS
    with a_service(tmp_path, OnLoss.OPEN, directory_bytes=2 * MIB) as service:
        old.write_bytes(b"\n" * MIB)  # of another process
        service.fill()

        old.unlink()
        service.recover()
        service.assert_accounted_for()


def test_what_another_process_writes_counts(tmp_path: Path) -> None:
    with a_service(tmp_path, OnLoss.OPEN, directory_bytes=MIB) as service:
        assert service.log("first")
        (tmp_path / OTHERS).write_bytes(b"\0" * MIB)

        poll(lambda: not service.log("next"), what="an event to be refused")

        (tmp_path / OTHERS).unlink()
        service.recover()
        service.assert_accounted_for()


def test_what_is_no_file_of_a_journal_keeps_no_event_out(tmp_path: Path) -> None:
    for name in ("export.jsonl", "export.jsonl.1", f"{OTHERS}.1", "backup.tar"):
        (tmp_path / name).write_bytes(b"\0" * MIB)
    journal = a_journal(tmp_path, limits=Limits(directory_bytes=MIB))

    for number in range(5):
        append(journal, number)

    journal.close()


def test_a_directory_that_is_over_its_limit_from_the_start_says_what_it_refused(tmp_path: Path) -> None:
    (tmp_path / OTHERS).write_bytes(b"\n" * 2 * MIB)
    journal = a_journal(tmp_path, limits=Limits(directory_bytes=MIB))

    refused(journal, 5)
    journal.close()

    (files,) = streams_in(tmp_path)
    kinds = [json.loads(line)["event_type"] for line in files.segment(1).read_bytes().splitlines()]
    assert kinds == ["audit.segment", "audit.gap", "audit.gap"]
    assert sum(gap["lines"] for gap in gaps_in(tmp_path)) == 5


def test_the_directory_is_not_listed_for_every_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listings: list[object] = []
    scandir, listdir = os.scandir, os.listdir

    def counted_scandir(path: Any) -> Any:
        listings.append(path)
        return scandir(path)

    def counted_listdir(path: Any) -> Any:
        listings.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "scandir", counted_scandir)
    monkeypatch.setattr(os, "listdir", counted_listdir)
    journal = a_journal(tmp_path, limits=Limits(directory_bytes=100 * MIB))

    for number in range(3000):
        append(journal, number)

    assert 1 <= listings.count(tmp_path) < 20
    journal.close()


GIB = 1024**3


def test_the_floor_is_a_tenth_of_the_disk_and_never_more_than_a_gibibyte(disk: Path, tmp_path: Path) -> None:
    assert Space.of(disk, None).floor_bytes == 4 * MIB // 10
    assert Space.of(tmp_path, None).floor_bytes <= GIB
    assert Space.of(disk, 7) == Space(free_bytes(disk), 7)


@pytest.mark.parametrize(
    ("free", "is_low", "is_spent"), [(100, False, False), (99, True, False), (10, True, False), (9, True, True)]
)
def test_below_the_floor_it_is_low_and_below_a_tenth_of_it_spent(free: int, is_low: bool, is_spent: bool) -> None:
    space = Space(free, 100)

    assert (space.is_low, space.is_spent) == (is_low, is_spent)
    assert not Space(0, 0).is_low


def test_below_the_floor_only_what_failed_or_must_not_be_lost_is_written_and_the_rest_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "audit"
    trail = a_trail(directory, free_bytes=free_bytes(tmp_path) + GIB)
    audit = AuditLogger(trail, policy=a_policy(tmp_path, CLOSED))

    written = [
        audit.log(AuditEvent(event_type="http.request", outcome="success", request_id="lost-1")),
        audit.log(AuditEvent(event_type="http.request", outcome="failure", request_id="failed")),
        audit.log_authn(outcome="denied", request_id="denied"),
        audit.log_mcp_call(tool_name="read", request_id="lost-2"),
        audit.log(AuditEvent(event_type="table.drop", outcome="success", request_id="must not be lost")),
    ]
    with audit.operation("table.copy", request_id="an operation"):  # its begin and its end
        pass
    asyncio.run(audit.alog(AuditEvent(event_type="http.request", outcome="error", request_id="async")))
    trail.emit(AuditEvent(event_type="feast", outcome="error", request_id="of a sink"))
    with pytest.raises(JournalFull, match="OTEL_AUDIT_FREE_BYTES"):
        trail.emit(AuditEvent(event_type="feast", outcome="success", request_id="lost-3"))

    assert [receipt is not None and receipt.durable for receipt in written] == [False, True, True, False, True]
    poll(lambda: trail.numbers().is_low, what="the numbers to say it")
    said = poll(
        lambda: capfd.readouterr().err, until=lambda text: "bytes free, less than the floor" in text, what="a notice"
    )
    assert str(directory) in said
    stats = audit.stats()
    assert (stats.emitted, stats.dropped) == (10, 3)
    audit.close()
    kept = [event["request_id"] for event in application_events(directory)]
    assert kept == ["failed", "denied", "must not be lost", *["an operation"] * 2, "async", "of a sink"]
    assert [gap["by_reason"].keys() for gap in gaps_in(directory)] == [{"disk nearly full"}] * len(gaps_in(directory))
    assert sum(gap["lines"] for gap in gaps_in(directory)) == 3


def test_below_a_tenth_of_the_floor_no_event_is_written_and_none_acknowledged(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(free_bytes=20 * free_bytes(tmp_path)))

    with pytest.raises(AuditUnavailable):
        journal.append("a", b'{"event_type":"test"}', 1, 1, is_vital=True)

    journal.close()
    assert [gap["by_reason"].keys() for gap in gaps_in(tmp_path)] == [{"disk nearly full"}]
    assert application_events(tmp_path) == []


def test_a_flood_faster_than_the_look_at_the_disk_leaves_the_floor_to_what_failed(disk: Path) -> None:
    journal = a_journal(disk, limits=Limits(free_bytes=None))
    floor = Space.of(disk, None).floor_bytes

    until_refused(journal, is_vital=False)  # in far less than a second
    assert 0.9 * floor < free_bytes(disk) < 1.1 * floor
    until_refused(journal, is_vital=True)
    assert 0.05 * floor < free_bytes(disk) < 0.15 * floor
    journal.close()
    assert {reason for gap in gaps_in(disk) for reason in gap["by_reason"]} == {"disk nearly full"}


def test_when_there_is_free_space_again_every_event_is_written_again(disk: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * (free_bytes(disk) - 350 * 1024))
    journal = a_journal(disk, limits=Limits(free_bytes=None))
    refused(journal, 3)
    assert journal.append("vital", b'{"event_type":"test","event_id":"vital"}', 1, 1, is_vital=True).durable

    ballast.unlink()
    poll(lambda: not journal.space.is_low, what="the look once a second")

    append(journal, "again")
    journal.close()
    assert [event["event_id"] for event in application_events(disk)] == ["vital", "again"]
    assert sum(gap["lines"] for gap in gaps_in(disk)) == 3


@pytest.mark.parametrize("is_low", [False, True])
def test_the_disk_is_not_asked_for_its_free_space_by_who_logs(
    tmp_path: Path, is_low: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    statvfs = os.statvfs

    def counted(path: Any) -> os.statvfs_result:
        asked.append(threading.current_thread().name)
        return statvfs(path)

    monkeypatch.setattr(os, "statvfs", counted)
    journal = a_journal(tmp_path, limits=Limits(free_bytes=free_bytes(tmp_path) + GIB if is_low else None))
    for _ in range(2):  # the stream begins, and the first loss is told
        journal.append("first", b'{"event_type":"test"}', 1, time.time_ns(), is_vital=True)
    asked.clear()

    for number in range(1000):
        if is_low:
            refused(journal, 1)
        else:
            append(journal, number)

    assert [name for name in asked if name == threading.current_thread().name] == []
    poll(lambda: asked, what="the look once a second")
    journal.close()


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def fill(directory: Path, size: int) -> None:
    (directory / OTHERS).write_bytes(b"\0" * size)


def test_room_is_asked_for_from_three_quarters_on_and_once_a_second_while_that_does_not_help(tmp_path: Path) -> None:
    clock, asked = Clock(), list[float]()

    def ask() -> bool:
        asked.append(clock.now_s)
        return True

    room = Room(tmp_path, MIB, ask_for_room=ask, clock=clock)
    room.added(MIB // 2)
    assert asked == []
    fill(tmp_path, MIB - 1000)
    for _ in range(30):
        clock.now_s += 0.1
        room.added(MIB // 2)
        room.answered()

    assert len(asked) == 3

    fill(tmp_path, 0)
    room.answered()
    for _ in range(2):  # it helps: the next one is asked at once
        room.added(MIB)
        room.answered()
    assert len(asked) == 5


def test_an_event_that_finds_the_limit_reached_waits_until_what_may_go_is_gone(tmp_path: Path) -> None:
    def remove() -> None:
        fill(tmp_path, 0)
        room.answered()

    def ask() -> bool:
        threading.Timer(0.01, remove).start()
        return True

    room = Room(tmp_path, MIB, ask_for_room=ask)
    for _ in range(5):
        fill(tmp_path, MIB)
        room.added(MIB)

        room.check(is_vital=False)


def test_where_waiting_did_not_help_no_event_waits_for_five_seconds(tmp_path: Path) -> None:
    clock, asked = Clock(), list[float]()

    def ask() -> bool:
        asked.append(clock.now_s)
        room.answered()
        return True

    room = Room(tmp_path, MIB, ask_for_room=ask, clock=clock)
    fill(tmp_path, MIB)
    room.measure()
    for _ in range(100):
        clock.now_s += 0.1
        with pytest.raises(Limited, match="OTEL_AUDIT_DIRECTORY_BYTES allows"):
            room.check(is_vital=True)

    assert len(asked) == 2


def test_where_nobody_removes_anything_an_event_is_refused_at_once(tmp_path: Path) -> None:
    room = Room(tmp_path, MIB)
    fill(tmp_path, MIB)
    room.measure()

    with pytest.raises(Limited):
        room.check(is_vital=True)
