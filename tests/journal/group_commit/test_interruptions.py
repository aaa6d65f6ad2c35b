"""Who is interrupted or forked while it waits leaves the others, and the files, in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.journal.background import Commit
from otel_audit.journal.journal import Journal, Receipt
from tests.chain_check import application_events, read_streams
from tests.journal.group_commit.waiting import Start, hold, wait_for_written, written
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import append, open_files
from tests.servers.polling import poll

Arm = Callable[[Callable[[], object]], None]


@pytest.fixture
def in_the_wait(disk: SlowDisk) -> Iterator[Arm]:
    """Has something done by a signal handler of this thread, once it waits for a sync that is held."""
    before = signal.getsignal(signal.SIGUSR1)
    waiting = threading.main_thread().ident
    assert waiting is not None
    senders: list[threading.Thread] = []

    def send() -> None:
        disk.wait_until_entered()
        poll(lambda: is_in(waiting, Commit.wait.__code__), what="a thread that waits for its sync")
        signal.pthread_kill(waiting, signal.SIGUSR1)

    def arm(do: Callable[[], object]) -> None:
        def handle(signum: int, frame: FrameType | None) -> None:
            do()

        signal.signal(signal.SIGUSR1, handle)
        senders.append(threading.Thread(target=send))
        senders[-1].start()

    yield arm
    for sender in senders:
        sender.join()
    signal.signal(signal.SIGUSR1, before)


def is_in(thread_id: int, code: CodeType) -> bool:
    """The thread is inside this function now."""
    frame = sys._current_frames().get(thread_id)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def test_a_signal_handler_may_log_while_its_thread_waits_for_the_disk(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_the_wait: Arm
) -> None:
    inner: list[Receipt] = []
    hold(disk)

    def let_go() -> None:
        wait_for_written(tmp_path, 3)
        disk.gate.set()

    def handle() -> None:
        threading.Thread(target=let_go).start()
        inner.append(append(journal, "inner"))

    in_the_wait(handle)
    outer = append(journal, "outer")

    assert outer.durable
    assert [each.durable for each in inner] == [True]
    assert [each["event_id"] for each in application_events(tmp_path)] == ["first", "outer", "inner"]


def test_a_caller_that_is_interrupted_while_it_waits_leaves_everything_in_order(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_the_wait: Arm
) -> None:
    hold(disk)

    def interrupt() -> None:
        raise KeyboardInterrupt

    in_the_wait(interrupt)
    with pytest.raises(KeyboardInterrupt):
        append(journal, "interrupted")
    disk.gate.set()

    assert append(journal, "after").durable
    assert [each["event_id"] for each in application_events(tmp_path)] == ["first", "interrupted", "after"]


@pytest.mark.processes
def test_a_fork_from_a_signal_handler_inside_the_wait_leaves_the_child_free(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_the_wait: Arm
) -> None:
    hold(disk)
    children: list[int] = []

    def fork() -> None:
        children.append(os.fork())
        # Not the one that was forked with the thread that waits at it, which may have had its lock.
        disk.gate = disk.gate if children[0] else threading.Event()
        disk.gate.set()

    in_the_wait(fork)
    try:
        receipt: Receipt | None = append(journal, "outer")
    except AuditUnavailable:
        receipt = None
    if children == [0]:  # the child: the line is its parent's, and it cannot know what becomes of it
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


@pytest.mark.processes
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
    poll(lambda: written(tmp_path), until=lambda count: count == 3, what="the inner event in the file")
    assert {each["event_id"] for each in application_events(tmp_path)} == {"first", "outer", "inner"}
