"""Any thread and any task may log, also after a close: each event is recorded, with what was true for its caller."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.event import AuditEvent
from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger
from otel_audit.sinks import AuditSink, JsonlEvent
from tests.chain_check import application_events
from tests.recording import a_trail, recorder
from tests.servers.polling import poll


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path) as logger:
        yield logger


def test_an_event_after_close_is_recorded_in_a_new_stream(tmp_path: Path) -> None:
    audit = AuditLogger(a_trail(tmp_path))
    first = audit.log_authn(outcome="success")
    audit.close()
    second = audit.log_authn(outcome="failure")
    audit.close()
    audit.close()

    assert first is not None
    assert second is not None
    assert second.durable
    assert second.stream_id != first.stream_id
    assert {event["event_id"] for event in application_events(tmp_path)} == {first.event_id, second.event_id}


def test_flush_of_a_journal_that_is_the_destination_is_done_at_once(audit: AuditLogger) -> None:
    audit.log_authn(outcome="success")

    report = audit.flush(timeout_s=0)

    assert report.complete
    stats = audit.stats()
    assert (stats.emitted, stats.exported, stats.pending) == (1, 1, 0)


def test_a_sink_is_called_by_one_thread_at_a_time() -> None:
    class Narrow(AuditSink):
        def __init__(self) -> None:
            self.inside = 0
            self.most_inside = 0
            self.count = 0

        def emit(self, event: JsonlEvent) -> None:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            os.sched_yield()
            self.count += 1
            self.inside -= 1

    sink = Narrow()
    audit = AuditLogger(sink)
    threads = [
        threading.Thread(target=lambda: [audit.log_authn(outcome="success") for _ in range(200)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (sink.count, sink.most_inside) == (1600, 1)


def test_the_timestamp_is_that_of_the_call_whichever_thread_asks(tmp_path: Path) -> None:
    seconds = threading.local()

    def clock() -> int:
        return int(seconds.now) * 10**9

    with recorder(tmp_path, clock=clock) as audit:

        def record(start: int) -> None:
            for number in range(300):
                seconds.now = start + number
                audit.log_authn(outcome="success")

        threads = [threading.Thread(target=record, args=(start,)) for start in (0, 86_400, 1_790_000_000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for event in application_events(tmp_path):
        assert int(datetime.fromisoformat(event["timestamp"]).timestamp()) * 10**9 == event["time_ns"]


def test_alog_keeps_the_span_of_its_task(tmp_path: Path) -> None:
    tracer = TracerProvider().get_tracer("t")

    async def one(audit: AuditLogger) -> tuple[str, Receipt | None]:
        with tracer.start_as_current_span("work") as span:
            return f"{span.get_span_context().span_id:016x}", await audit.alog(AuditEvent(event_type="x"))

    async def many(audit: AuditLogger) -> list[tuple[str, Receipt | None]]:
        return await asyncio.gather(*(one(audit) for _ in range(50)))

    with recorder(tmp_path) as audit:
        recorded = asyncio.run(many(audit))

    by_id = {event["event_id"]: event for event in application_events(tmp_path)}
    for span_id, receipt in recorded:
        assert receipt is not None
        assert by_id[str(receipt.event_id)]["span_id"] == span_id


class Gate(AuditSink):
    """Holds each event until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.lines: list[str] = []

    def emit(self, event: JsonlEvent) -> None:
        self.entered.set()
        assert self.opened.wait(60)
        self.lines.append(event.to_jsonl())


def test_alog_leaves_the_loop_free_and_a_cancelled_one_is_still_recorded() -> None:
    gate = Gate()
    audit = AuditLogger(gate)

    async def cancelled_while_the_disk_is_slow() -> None:
        task = asyncio.create_task(audit.alog(AuditEvent(event_type="x")))
        deadline = time.monotonic() + 30
        while not gate.entered.is_set():  # the loop runs on while the sink waits
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.lines == []
        gate.opened.set()

    asyncio.run(cancelled_while_the_disk_is_slow())

    lines = poll(lambda: list(gate.lines), what="the event of a task and a loop that are over")
    assert [json.loads(line)["event_type"] for line in lines] == ["x"]


def test_an_alog_that_was_cancelled_at_once_is_recorded(tmp_path: Path) -> None:
    async def cancelled(audit: AuditLogger) -> None:
        task = asyncio.create_task(audit.alog(AuditEvent(event_type="x")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with recorder(tmp_path) as audit:
        asyncio.run(cancelled(audit))
        poll(lambda: audit.stats().emitted, what="the event of a task and a loop that are over")

    assert len(application_events(tmp_path)) == 1
