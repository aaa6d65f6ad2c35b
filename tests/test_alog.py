"""`alog` keeps the event loop free, however slow the disk is; a plain `log` on a loop is warned of."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent
from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger
from otel_audit.settings import OnLoss
from tests.chain_check import application_events
from tests.journal.slow_disk import SlowDisk
from tests.recording import a_trail

BEATS = 40


def an_event(name: str) -> AuditEvent:
    return AuditEvent(event_type="test", request_id=name)


async def beside(work: Coroutine[Any, Any, Any], is_held: Callable[[], bool], let_go: Callable[[], None]) -> list[bool]:
    """Run the work beside a heart that must beat while the disk is held; it is let go by the last beat."""
    task = asyncio.create_task(work)
    held: list[bool] = []
    while not is_held():
        await asyncio.sleep(0.005)
    for _ in range(BEATS):
        held.append(is_held() and not task.done())
        await asyncio.sleep(0.005)
    let_go()
    await task
    return held


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


class HeldWrites:
    """Stands for `os.write` of a disk that takes no event until it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.held = False
        self._write = os.write
        patch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if bytes(data[:14]) == b'{"event_type":' and not self.gate.is_set():
            self.held = True
            assert self.gate.wait(30)
            self.held = False
        return self._write(descriptor, data)


def test_the_loop_goes_on_while_a_slow_disk_takes_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AuditLogger(a_trail(tmp_path)) as audit:
        audit.log(an_event("first"))
        writes = HeldWrites(monkeypatch)

        held = asyncio.run(beside(audit.alog(an_event("slow")), lambda: writes.held, writes.gate.set))

    assert held == [True] * BEATS
    assert [each["request_id"] for each in application_events(tmp_path)] == ["first", "slow"]


def test_the_loop_goes_on_while_a_slow_disk_syncs_and_many_share_the_sync(tmp_path: Path, disk: SlowDisk) -> None:
    """More of them than the loop's executor has threads: none of those is held either."""
    many = 100
    receipts: list[Receipt | None] = []

    async def log_many(audit: AuditLogger) -> None:
        receipts.extend(await asyncio.gather(*(audit.alog(an_event(f"{number}")) for number in range(many))))

    def all_written() -> bool:
        return sum(path.read_bytes().count(b'{"event_type":') for path in tmp_path.glob("*-*.jsonl")) == many + 1

    with AuditLogger(a_trail(tmp_path, durability="fsync")) as audit:
        audit.log(an_event("first"))
        disk.gate.clear()

        held = asyncio.run(beside(log_many(audit), all_written, disk.gate.set))

        assert held == [True] * BEATS
        assert all(receipt is not None and receipt.durable for receipt in receipts)
    assert len(application_events(tmp_path)) == many + 1


def test_alog_tells_that_a_sync_failed_by_the_loss_rule(tmp_path: Path, disk: SlowDisk) -> None:
    with AuditLogger(a_trail(tmp_path, durability="fsync"), on_loss=OnLoss.CLOSED) as audit:
        audit.log(an_event("first"))
        disk.fails = True

        with pytest.raises(AuditUnavailable, match="a loss of power may take it"):
            asyncio.run(audit.alog(an_event("unsynced")))

        disk.fails = False
        after = asyncio.run(audit.alog(an_event("after")))
        assert after is not None
        assert after.durable
    assert len(application_events(tmp_path)) == 3


def test_a_sync_that_failed_is_no_durable_receipt_where_the_application_goes_on(tmp_path: Path, disk: SlowDisk) -> None:
    with AuditLogger(a_trail(tmp_path, durability="fsync")) as audit:
        audit.log(an_event("first"))
        disk.fails = True

        receipts = [audit.log(an_event("unsynced")), asyncio.run(audit.alog(an_event("nor this")))]

        assert [receipt is not None and receipt.durable for receipt in receipts] == [False, False]
        disk.fails = False


def test_an_alog_that_is_cancelled_while_it_waits_for_the_sync_is_recorded(tmp_path: Path, disk: SlowDisk) -> None:
    async def log_and_cancel(audit: AuditLogger) -> None:
        task = asyncio.create_task(audit.alog(an_event("cancelled")))
        while b"cancelled" not in b"".join(path.read_bytes() for path in tmp_path.glob("*-*.jsonl")):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with AuditLogger(a_trail(tmp_path, durability="fsync")) as audit:
        audit.log(an_event("first"))
        disk.gate.clear()
        asyncio.run(log_and_cancel(audit))
        disk.gate.set()  # its sync ends after its loop is gone
        after = audit.log(an_event("after"))
        assert after is not None
        assert after.durable

    assert [each["request_id"] for each in application_events(tmp_path)] == ["first", "cancelled", "after"]


def test_a_log_that_makes_a_loop_wait_for_the_disk_is_warned_of_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def log(audit: AuditLogger) -> None:
        audit.log(an_event("a"))
        audit.log_authn(outcome="success")

    with AuditLogger(a_trail(tmp_path / "fsync", durability="fsync")) as audit:
        audit.log(an_event("no loop here"))
        asyncio.run(audit.alog(an_event("nor in its thread")))
        assert "event loop" not in capfd.readouterr().err
        asyncio.run(log(audit))
        asyncio.run(log(audit))

    assert capfd.readouterr().err.count("await alog()") == 1
    with AuditLogger(a_trail(tmp_path / "os")) as audit:
        asyncio.run(log(audit))
    assert "event loop" not in capfd.readouterr().err


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_an_application_that_has_filled_the_threads_of_its_loop_does_not_hold_up_its_events(
    durability: str, tmp_path: Path
) -> None:
    async def log_beside_busy_threads(logger: AuditLogger) -> Receipt | None:
        let_go = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
        busy = loop.run_in_executor(None, let_go.wait)
        try:
            return await asyncio.wait_for(logger.alog(an_event("beside")), timeout=30)
        finally:
            let_go.set()
            await busy

    with AuditLogger(a_trail(tmp_path, durability=durability)) as logger:
        receipt = asyncio.run(log_beside_busy_threads(logger))

    assert receipt is not None
    assert receipt.durable


@pytest.mark.processes
def test_a_forked_child_writes_on_a_thread_of_its_own(tmp_path: Path) -> None:
    with AuditLogger(a_trail(tmp_path)) as logger:
        asyncio.run(logger.alog(an_event("of the parent")))
        child = os.fork()
        if child == 0:
            receipt = asyncio.run(asyncio.wait_for(logger.alog(an_event("of the child")), timeout=30))
            os._exit(0 if receipt is not None and receipt.durable else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert {event["request_id"] for event in application_events(tmp_path)} == {"of the parent", "of the child"}


def test_a_close_waits_for_what_a_cancelled_task_has_begun(tmp_path: Path) -> None:
    held, gate = threading.Event(), threading.Event()

    def clock() -> int:
        held.set()
        assert gate.wait(30)
        return time.time_ns()

    async def begin_and_be_cancelled() -> None:
        task = asyncio.create_task(logger.alog(an_event("begun")))
        while not held.is_set():
            await asyncio.sleep(0.005)
        task.cancel()

    logger = AuditLogger(a_trail(tmp_path), clock=clock)
    asyncio.run(begin_and_be_cancelled())
    threading.Timer(0.2, gate.set).start()

    logger.close()

    assert [event["request_id"] for event in application_events(tmp_path)] == ["begun"]
    assert list(tmp_path.glob("*-*.lock")) == []  # its stream is over
