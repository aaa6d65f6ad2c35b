"""With `fsync` one sync serves many callers, and none of them is told more than is true."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import FrameType

import pytest

from otel_audit.delivery.stream_export import Destination, Idle, Moved, StreamExport
from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal, Receipt
from otel_audit.journal.open_segment import OpenSegment
from otel_audit.journal.open_stream import OpenStream
from otel_audit.journal.recovery import take
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.settings import Durability, Settings
from otel_audit.trail import Trail
from tests.chain_check import application_events, read_streams
from tests.journal.keeping import Keeping
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append, open_files, the_stream
from tests.servers.polling import poll


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


@pytest.fixture
def journal(tmp_path: Path, disk: SlowDisk) -> Iterator[Journal]:
    """A journal whose first event is durable."""
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "first")
    yield journal
    disk.gate.set()
    journal.close()


@pytest.fixture
def in_threads() -> Iterator[Callable[..., Future[Receipt]]]:
    with ThreadPoolExecutor(64) as pool:

        def start(journal: Journal, name: object) -> Future[Receipt]:
            return pool.submit(append, journal, name)

        yield start


Start = Callable[..., Future[Receipt]]


def written(directory: Path) -> int:
    """How many events of the application are in the files, durable or not."""
    return sum(path.read_bytes().count(b'{"event_type":') for path in directory.glob("*.jsonl"))


def wait_for_written(directory: Path, count: int) -> None:
    poll(lambda: written(directory), until=lambda found: found == count, what=f"{count} events in the file")


def hold(disk: SlowDisk) -> None:
    """The next sync of a segment reaches the gate and stays there."""
    while disk.entered.acquire(blocking=False):
        pass
    disk.gate.clear()


def damage_of(files: StreamFiles, number: int) -> dict[str, object]:
    header = json.loads(files.segment(number).read_bytes().partition(b"\n")[0])
    damage = header["segment"]["damage"]
    assert isinstance(damage, dict)
    return damage


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
    assert journal.written.dropped == 0


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
    body = b'{"event_type":"test","event_id":"%d","time_ns":1,"observed_ns":1'
    lost = [stream.write(body % number, 1) for number in range(8)]
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        lost.extend(stream.write(body % number, 1) for number in range(100))
    disk.fails = False
    assert files.segments() == [1]

    after = stream.write(body % 200, 1)
    stream.sync_at_once()

    assert all(stream.sync_error(seq) is not None for seq in lost)
    assert stream.is_settled(after)
    assert stream.sync_error(after) is None
    assert damage_of(files, 2)["reason"] == "fdatasync failed"
    one = files.segment(1).stat().st_ino
    assert [fails for inode, fails in disk.tried if inode == one] == [False, True]  # its header, and the failed one
    stream.close()


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


def test_a_disk_that_never_answers_does_not_hold_a_caller_for_ever(tmp_path: Path, disk: SlowDisk) -> None:
    journal = a_journal(tmp_path, durability=Durability.FSYNC, commit_timeout_s=0.3)
    append(journal, "first")
    hold(disk)

    with pytest.raises(AuditUnavailable, match="too long"):
        append(journal, "slow")

    disk.gate.set()
    assert append(journal, "after").durable
    journal.close()
    assert len(application_events(tmp_path)) == 3


def test_nothing_behind_the_last_sync_is_exported(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_threads: Start
) -> None:
    stream = journal.stream
    assert stream is not None
    hold(disk)
    waiting = in_threads(journal, "not durable")
    disk.wait_until_entered()
    wait_for_written(tmp_path, 2)
    exporter = Keeping()
    shipment = take(stream.files, durable=lambda: stream.durable)
    assert shipment is not None
    export = StreamExport(shipment, Destination(exporter))

    while export.step() != Idle():
        pass
    assert exporter.ids == ["first"]

    disk.gate.set()
    waiting.result(30)
    assert isinstance(export.step(), Moved)
    assert exporter.ids == ["first", "not durable"]
    export.close()
    shipment.release()


def test_what_could_not_be_synced_is_exported_behind_the_header_of_the_next_segment(
    tmp_path: Path, disk: SlowDisk
) -> None:
    exporter = Keeping()
    settings = Settings.load({}, {"directory": str(tmp_path), "export": "none", "durability": "fsync"})
    trail = Trail(settings, exporters=[exporter])
    append(trail.journal, "before")
    disk.fails = True
    with pytest.raises(AuditUnavailable):
        append(trail.journal, "unsynced")
    disk.fails = False

    # No event comes any more: the segment is left all the same, so that no line waits for ever.
    poll(lambda: list(exporter.ids), until=lambda ids: "unsynced" in ids, what="the line that could not be synced")

    assert exporter.ids == ["before", "unsynced"]
    trail.close()


def test_a_flush_delivers_all_that_was_logged_before_it(tmp_path: Path) -> None:
    exporter = Keeping()
    settings = Settings.load({}, {"directory": str(tmp_path), "export": "none", "durability": "fsync"})
    trail = Trail(settings, exporters=[exporter])
    for number in range(50):
        append(trail.journal, number)

    report = trail.flush(30)

    assert report.complete
    assert len(exporter.ids) == 50
    append(trail.journal, "last")
    trail.close(30)
    assert exporter.ids[-1] == "last"


def test_another_process_syncs_what_it_exports(tmp_path: Path, journal: Journal, disk: SlowDisk) -> None:
    """`otel-audit ship` cannot know how far the writer has synced, so it does so itself."""
    exporter = Keeping()
    shipment = take(the_stream(tmp_path))
    assert shipment is not None
    export = StreamExport(shipment, Destination(exporter))
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        export.step()
    assert exporter.ids == []
    export.hold("the disk fails")
    export.retry_now()
    disk.fails = False
    disk.calls.clear()

    poll(export.step, until=lambda step: isinstance(step, Moved), what="a batch")

    assert exporter.ids == ["first"]
    assert disk.calls == [the_stream(tmp_path).segment(1).name]
    export.close()
    shipment.release()


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Has something done by a signal handler in a tenth of a second."""
    before = signal.getsignal(signal.SIGALRM)

    def arm(do: Callable[[], object]) -> None:
        def handle(signum: int, frame: FrameType | None) -> None:
            do()

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


Arm = Callable[[Callable[[], object]], None]


def test_a_signal_handler_may_log_while_its_thread_waits_for_the_disk(
    tmp_path: Path, journal: Journal, disk: SlowDisk, on_alarm: Arm
) -> None:
    inner: list[Receipt] = []
    hold(disk)

    def handle() -> None:
        threading.Timer(0.1, disk.gate.set).start()
        inner.append(append(journal, "inner"))

    on_alarm(handle)
    outer = append(journal, "outer")

    assert outer.durable
    assert [each.durable for each in inner] == [True]
    assert [each["event_id"] for each in application_events(tmp_path)] == ["first", "outer", "inner"]


def test_a_caller_that_is_interrupted_while_it_waits_leaves_everything_in_order(
    tmp_path: Path, journal: Journal, disk: SlowDisk, on_alarm: Arm
) -> None:
    hold(disk)

    def interrupt() -> None:
        raise KeyboardInterrupt

    on_alarm(interrupt)
    with pytest.raises(KeyboardInterrupt):
        append(journal, "interrupted")
    disk.gate.set()

    assert append(journal, "after").durable
    assert [each["event_id"] for each in application_events(tmp_path)] == ["first", "interrupted", "after"]


def test_a_fork_from_a_signal_handler_inside_the_wait_leaves_the_child_free(
    tmp_path: Path, journal: Journal, disk: SlowDisk, on_alarm: Arm
) -> None:
    hold(disk)
    children: list[int] = []
    on_alarm(lambda: children.append(os.fork()))

    threading.Timer(0.5, disk.gate.set).start()
    try:
        receipt: Receipt | None = append(journal, "outer")
    except AuditUnavailable:
        receipt = None
    if children == [0]:  # the child: the line is its parent's, and it cannot know what becomes of it
        disk.gate.set()
        os._exit(0 if receipt is None and append(journal, "child").durable else 1)

    assert receipt is not None
    assert receipt.durable
    deadline = time.monotonic() + 30
    while not (ended := os.waitpid(children[0], os.WNOHANG))[0]:
        assert time.monotonic() < deadline, "the child waits for a thread that it has not"
        time.sleep(0.05)
    assert ended[1] == 0
    assert sorted(each["event_id"] for each in application_events(tmp_path)) == ["child", "first", "outer"]
    assert len(read_streams(tmp_path)) == 2


def test_a_child_that_is_forked_during_a_sync_keeps_no_file_of_its_parent_open(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_threads: Start
) -> None:
    """Or the room of a segment that retention removes would not be free for as long as the child lives."""
    hold(disk)
    waiting = in_threads(journal, "waiting")
    disk.wait_until_entered()

    child = os.fork()
    if child == 0:
        os._exit(len([name for name in open_files(tmp_path) if name.endswith(".jsonl")]))

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    disk.gate.set()
    assert waiting.result(30).durable


def test_what_is_logged_in_the_thread_that_syncs_waits_for_nobody(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a `__del__` may that the collector of garbage runs there, at any step."""
    inner: list[Receipt] = []
    dup = os.dup

    def dup_that_logs(descriptor: int) -> int:
        if not inner:
            inner.append(append(journal, "inner"))
        return dup(descriptor)

    monkeypatch.setattr(os, "dup", dup_that_logs)
    outer = append(journal, "outer")

    assert outer.durable
    assert [each.durable for each in inner] == [False]
    poll(lambda: written(tmp_path), until=lambda count: count == 3, timeout_s=10, what="the inner event in the file")
    assert {each["event_id"] for each in application_events(tmp_path)} == {"first", "outer", "inner"}


def commit_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "otel-audit-commit"]


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "forgotten"])
def test_the_thread_ends_with_its_journal(tmp_path: Path, closes: bool) -> None:
    poll(commit_threads, until=lambda names: not names, what="the threads of other tests to end")
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "a")
    assert len(commit_threads()) == 1

    if closes:
        journal.close()
    del journal

    def left() -> list[str]:
        gc.collect()
        return commit_threads()

    poll(left, until=lambda names: not names, timeout_s=10, what="the thread to end")


def test_an_event_is_durable_although_its_journal_is_closed_before_its_caller_waits(tmp_path: Path) -> None:
    """By another thread, between the write and the wait: as in a service that ends while requests still log."""

    def close_from_another_thread(stream: OpenStream) -> None:
        thread = threading.Thread(target=ending.close)
        thread.start()
        thread.join()

    ending = a_journal(tmp_path, durability=Durability.FSYNC, on_open=close_from_another_thread)

    assert append(ending, "a").durable

    assert [each["event_id"] for each in application_events(tmp_path)] == ["a"]


def test_without_a_thread_every_line_is_synced_by_its_caller(
    tmp_path: Path, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter, or where there are too many threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    journal = a_journal(tmp_path, durability=Durability.FSYNC)
    append(journal, "a")
    disk.calls.clear()

    assert append(journal, "b").durable

    assert disk.calls == [the_stream(tmp_path).segment(1).name]
    disk.fails = True
    with pytest.raises(AuditUnavailable):
        append(journal, "c")
    disk.fails = False
    assert append(journal, "d").durable
    journal.close()
    assert disk.tried_again() == set()
    assert len(application_events(tmp_path)) == 4
