"""A begin waits for its disk, whatever becomes of the task that asked for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent
from otel_audit.logger import AuditLogger
from tests.journal.slow_disk import SlowDisk
from tests.recording import a_trail, recorder
from tests.requiring import CLOSED, a_policy, both, events, run


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path / "journal", policy=a_policy(tmp_path, CLOSED)) as logger:
        yield logger


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


@both
def test_a_begin_that_cannot_be_synced_refuses_the_block(tmp_path: Path, disk: SlowDisk, is_async: bool) -> None:
    with AuditLogger(a_trail(tmp_path / "journal", durability="fsync")) as audit:
        audit.log_authn(outcome="success")
        disk.fails = True

        with pytest.raises(AuditUnavailable, match="a loss of power may take it"):
            run(audit.require("x"), lambda: pytest.fail("it ran"), is_async=is_async)

        disk.fails = False


def test_an_async_begin_waits_for_the_sync_and_leaves_the_loop_free(
    tmp_path: Path, disk: SlowDisk, capfd: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    async def required(audit: AuditLogger) -> None:
        async with audit.require("x"):
            order.append("ran")

    async def main(audit: AuditLogger) -> None:
        disk.gate.clear()
        task = asyncio.create_task(required(audit))
        deadline = asyncio.get_running_loop().time() + 30
        while b'"outcome":"unknown"' not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl")):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.005)
        for _ in range(20):  # the loop runs on while the disk has not answered
            await asyncio.sleep(0.005)
        order.append("synced")
        disk.gate.set()
        await task

    with AuditLogger(a_trail(tmp_path / "journal", durability="fsync")) as audit:
        audit.log_authn(outcome="success")
        asyncio.run(main(audit))

    assert order == ["synced", "ran"]
    assert "event loop" not in capfd.readouterr().err


def test_a_task_that_is_cancelled_before_its_begin_is_durable_does_not_run(tmp_path: Path, disk: SlowDisk) -> None:
    async def required(audit: AuditLogger) -> None:
        async with audit.require("x"):
            pytest.fail("it ran")

    async def main(audit: AuditLogger) -> None:
        disk.gate.clear()
        task = asyncio.create_task(required(audit))
        deadline = asyncio.get_running_loop().time() + 30
        while b'"outcome":"unknown"' not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl")):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        disk.gate.set()

    with AuditLogger(a_trail(tmp_path / "journal", durability="fsync")) as audit:
        audit.log_authn(outcome="success")
        asyncio.run(main(audit))


def test_an_end_is_recorded_though_its_task_is_cancelled_while_it_waits(tmp_path: Path, disk: SlowDisk) -> None:
    async def required(audit: AuditLogger) -> None:
        async with audit.require("x"):
            disk.gate.clear()

    async def main(audit: AuditLogger) -> None:
        task = asyncio.create_task(required(audit))
        deadline = asyncio.get_running_loop().time() + 30
        while b'"outcome":"success","duration_ms"' not in b"".join(p.read_bytes() for p in tmp_path.rglob("*.jsonl")):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        disk.gate.set()

    with AuditLogger(a_trail(tmp_path / "journal", durability="fsync")) as audit:
        asyncio.run(main(audit))

    assert [event["outcome"] for event in events(tmp_path)] == ["unknown", "success"]


def test_a_cancelled_block_ends_as_cancelled(audit: AuditLogger, tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(None) as time_limit, audit.require("x"):
            time_limit.reschedule(0.0)  # not before: a slow begin would use it up, and the block never ran
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(main())

    assert [event["outcome"] for event in events(tmp_path)] == ["unknown", "cancelled"]


def test_a_coroutine_that_is_thrown_away_inside_the_block_ends_as_cancelled(audit: AuditLogger, tmp_path: Path) -> None:
    async def required() -> None:
        async with audit.require("x"):
            await asyncio.Event().wait()

    coroutine: Coroutine[Any, Any, None] = required()

    async def main() -> None:
        # Driven by hand up to its block, as a task is that its loop no longer runs.
        begun = threading.Event()
        waiting: Any = coroutine.send(None)
        waiting.add_done_callback(lambda _: begun.set())
        while not begun.is_set():
            await asyncio.sleep(0.005)
        coroutine.send(None)
        coroutine.close()

    asyncio.run(main())

    assert [event["outcome"] for event in events(tmp_path)] == ["unknown", "cancelled"]


def test_after_the_threads_of_a_loop_have_ended_an_event_is_recorded_all_the_same(
    audit: AuditLogger, tmp_path: Path
) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().shutdown_default_executor()
        await audit.alog(AuditEvent(event_type="late"))
        async with audit.require("x"):
            pass

    asyncio.run(main())

    assert [event["event_type"] for event in events(tmp_path)] == ["late", "x", "x"]
