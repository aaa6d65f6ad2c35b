"""What must not happen unrecorded is recorded before it happens, and refused where that fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.errors import AuditUnavailable, JournalFull
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal
from otel_audit.logger import AuditLogger
from otel_audit.operation import Operation
from otel_audit.policy import Policy, read_policy
from otel_audit.settings import OnLoss
from otel_audit.sinks import AuditSink, JsonlEvent
from tests.chain_check import application_events
from tests.journal.slow_disk import SlowDisk
from tests.recording import a_trail, event_of, recorder

CLOSED = "rules: [{type: table.*, on_loss: closed}]"


class Overdrawn(Exception):
    """A failure of the application."""


def a_policy(directory: Path, text: str) -> Policy:
    path = directory / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path / "journal", policy=a_policy(tmp_path, CLOSED)) as logger:
        yield logger


def events(tmp_path: Path) -> list[dict[str, Any]]:
    return application_events(tmp_path / "journal")


def run(running: Operation, inside: Callable[[], object] = lambda: None, *, is_async: bool) -> None:
    """The block, in a plain `with` or in an `async with` on a loop of its own."""

    async def main() -> None:
        async with running:
            inside()

    if is_async:
        asyncio.run(main())
        return
    with running:
        inside()


def fail() -> None:
    raise Overdrawn("account 42 of ann")


both = pytest.mark.parametrize("is_async", [False, True], ids=["with", "async with"])


# --- a begin and an end ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_what_is_required_is_on_disk_before_it_runs_and_ends_with_an_event_that_names_the_first(
    tmp_path: Path, is_async: bool, durability: str
) -> None:
    seen: list[list[dict[str, Any]]] = []
    with AuditLogger(a_trail(tmp_path / "journal", durability=durability)) as audit:
        running = audit.require("table.drop", principal=AuditPrincipal(username="ann"), attributes={"rows": 3})
        run(running, lambda: seen.append(events(tmp_path)), is_async=is_async)
        stats = audit.stats()

    ((begin,),) = seen
    first, last = events(tmp_path)
    assert first == begin
    assert (begin["event_type"], begin["outcome"], begin["principal"]["username"]) == ("table.drop", "unknown", "ann")
    assert "parent_id" not in begin
    assert "duration_ms" not in begin
    assert (last["outcome"], last["parent_id"]) == ("success", begin["event_id"])
    assert last["event_id"] != begin["event_id"]
    assert last["request_id"] == begin["request_id"]
    assert last["attributes"] == begin["attributes"] == {"rows": 3}
    assert last["duration_ms"] >= 0
    assert running.begun is not None
    assert running.begun.durable
    assert running.begun.event_id == begin["event_id"]
    assert running.receipt is not None
    assert running.receipt.event_id == last["event_id"]
    assert (stats.emitted, stats.dropped, stats.filtered) == (2, 0, 0)


@both
def test_an_operation_of_a_closed_rule_begins_with_an_event_and_one_of_an_open_rule_does_not(
    audit: AuditLogger, tmp_path: Path, is_async: bool
) -> None:
    run(audit.operation("table.drop"), is_async=is_async)
    run(audit.operation("report.export"), is_async=is_async)

    assert [(event["event_type"], event["outcome"]) for event in events(tmp_path)] == [
        ("table.drop", "unknown"),
        ("table.drop", "success"),
        ("report.export", "success"),
    ]


@both
def test_with_the_setting_closed_each_operation_begins_with_an_event(tmp_path: Path, is_async: bool) -> None:
    with recorder(tmp_path / "journal", on_loss=OnLoss.CLOSED) as audit:
        run(audit.operation("x"), is_async=is_async)

    assert [event["outcome"] for event in events(tmp_path)] == ["unknown", "success"]


@both
def test_an_error_of_the_block_is_what_the_caller_gets_and_the_end_says_it(
    audit: AuditLogger, tmp_path: Path, is_async: bool
) -> None:
    with pytest.raises(Overdrawn):
        run(audit.require("x"), fail, is_async=is_async)

    assert [(event["outcome"], event.get("error_type")) for event in events(tmp_path)] == [
        ("unknown", None),
        ("error", "Overdrawn"),
    ]


@both
def test_a_decorated_function_can_be_required(audit: AuditLogger, tmp_path: Path, is_async: bool) -> None:
    @audit.audited("x", required=True, detail="d")
    def plain(number: int) -> int:
        return number

    @audit.audited("x", required=True, detail="d")
    async def asynchronous(number: int) -> int:
        return number

    results = [asyncio.run(asynchronous(n)) if is_async else plain(n) for n in range(2)]

    assert results == [0, 1]
    assert [(event["outcome"], event["detail"]) for event in events(tmp_path)] == [
        ("unknown", "d"),
        ("success", "d"),
    ] * 2


def test_the_begin_and_the_end_have_the_span_that_is_active_there(audit: AuditLogger, tmp_path: Path) -> None:
    tracer = TracerProvider().get_tracer("t")

    async def main() -> str:
        with tracer.start_as_current_span("work") as span:
            async with audit.require("x"):
                pass
        return f"{span.get_span_context().span_id:016x}"

    span_id = asyncio.run(main())

    assert [event["span_id"] for event in events(tmp_path)] == [span_id] * 2


def test_what_the_caller_gave_as_parent_is_the_parent_of_the_begin(audit: AuditLogger, tmp_path: Path) -> None:
    with audit.require("outer") as outer:
        inner = audit.require("inner")
        inner.event.parent_id = outer.begun.event_id if outer.begun else None
        with inner:
            pass

    by_type = {(event["event_type"], event["outcome"]): event for event in events(tmp_path)}
    inner_begin = by_type["inner", "unknown"]
    assert inner_begin["parent_id"] == by_type["outer", "unknown"]["event_id"]
    assert by_type["inner", "success"]["parent_id"] == inner_begin["event_id"]


# --- what the policy leaves out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "details"),
    [
        ("rules: [{keep: false}]", ["", ""]),
        ("rules: [{level: metadata}]", ["", ""]),
        ("rules: [{outcome: success, keep: false}]", ["", ""]),
        ("rules: [{outcome: error, level: metadata}]", ["", "d"]),
        ("rules: []", ["d", "d"]),
    ],
)
def test_what_is_required_is_recorded_whatever_the_policy_says_but_no_more_of_it_than_that_allows(
    tmp_path: Path, text: str, details: list[str]
) -> None:
    with recorder(tmp_path / "journal", policy=a_policy(tmp_path, text)) as audit:
        with audit.require("x", detail="d", action=AuditAction(arguments_digest="ab")):
            pass
        assert audit.stats().filtered == 0

    assert [event["detail"] for event in events(tmp_path)] == details
    assert ["arguments_digest" in event["action"] for event in events(tmp_path)] == [bool(text) for text in details]


def test_an_operation_that_may_come_to_a_closed_rule_has_begun_and_therefore_ends_in_the_trail(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, "rules: [{outcome: success, keep: false}, {on_loss: closed}]")
    with recorder(tmp_path / "journal", policy=policy) as audit, audit.operation("x", detail="d"):
        pass

    assert [(event["outcome"], event["detail"]) for event in events(tmp_path)] == [("unknown", ""), ("success", "")]


def test_an_operation_that_is_not_kept_whatever_comes_of_it_leaves_nothing(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, "rules: [{type: x, keep: false}]")
    with recorder(tmp_path / "journal", policy=policy, on_loss=OnLoss.CLOSED) as audit:
        with audit.operation("x") as running:
            pass
        stats = audit.stats()

    assert running.begun is running.receipt is None
    assert (stats.emitted, stats.filtered) == (0, 1)


def test_successful_reads_that_are_not_recorded_are_where_they_are_required(tmp_path: Path) -> None:
    read = AuditAction(mcp_tool="get_online_features")
    with recorder(tmp_path / "journal", log_successful_reads=False) as audit:
        with audit.operation("mcp.tools.call", action=read):
            pass
        assert audit.stats().filtered == 1
        with audit.require("mcp.tools.call", action=read):
            pass

    assert [event["outcome"] for event in events(tmp_path)] == ["unknown", "success"]


# --- a real disk that is full ------------------------------------------------------------------------------------


class Service:
    """A logger whose journal is on a small disk, which can be full."""

    def __init__(self, disk: Path, policy: Policy, **settings: object) -> None:
        self._ballast = disk.parent / "disk" / "ballast"
        self.audit = AuditLogger(a_trail(disk, **settings), policy=policy)
        self.audit.log_authn(outcome="success")

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as ballast:
            for size in (4096, 1):
                try:
                    while ballast.write(b"\0" * size):
                        pass
                except OSError:
                    continue
        with pytest.raises(AuditUnavailable):
            self._log_many()

    def _log_many(self) -> None:
        for _ in range(1000):  # the last page of the segment may have room
            self.audit.log(AuditEvent(event_type="table.fill", detail="x" * 500))

    def empty(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def service(small_disk: Path, tmp_path: Path) -> Iterator[Service]:
    made = Service(small_disk, a_policy(tmp_path, CLOSED))
    yield made
    made.audit.close()


def ended(directory: Path, kind: str) -> list[str]:
    return [event["outcome"] for event in application_events(directory) if event["event_type"] == kind]


@both
@pytest.mark.parametrize("kind", ["require", "operation"])
def test_on_a_full_disk_the_block_does_not_run(service: Service, small_disk: Path, kind: str, is_async: bool) -> None:
    begin = {"require": service.audit.require, "operation": service.audit.operation}[kind]
    service.fill()
    before = service.audit.stats()

    with pytest.raises(JournalFull):
        run(begin("table.drop"), lambda: pytest.fail("it ran"), is_async=is_async)

    after = service.audit.stats()
    assert (after.emitted, after.dropped) == (before.emitted + 1, before.dropped + 1)
    service.empty()
    run(begin("table.drop"), is_async=is_async)
    assert ended(small_disk, "table.drop") == ["unknown", "success"]


@both
@pytest.mark.parametrize("error", [None, Overdrawn()], ids=repr)
def test_an_end_that_cannot_be_recorded_is_counted_and_said_and_the_caller_gets_what_the_block_gave(
    service: Service, small_disk: Path, capfd: pytest.CaptureFixture[str], error: Exception | None, is_async: bool
) -> None:
    before = service.audit.stats().dropped

    def inside() -> None:
        service.fill()
        if error is not None:
            raise error

    running = service.audit.require("table.drop")
    raised: BaseException | None = None
    try:
        run(running, inside, is_async=is_async)
    except Overdrawn as caught:
        raised = caught

    assert raised is error
    assert running.begun is not None
    assert running.begun.durable
    assert running.receipt is not None
    assert not running.receipt.durable
    assert service.audit.stats().dropped > before + 1  # that of the filling and this one
    assert "events are lost: " in capfd.readouterr().err
    assert ended(small_disk, "table.drop") == ["unknown"]


def test_a_plain_log_of_a_closed_rule_tells_its_caller_and_one_of_an_open_rule_does_not(service: Service) -> None:
    service.fill()

    with pytest.raises(JournalFull):
        service.audit.log(AuditEvent(event_type="table.drop"))
    with pytest.raises(JournalFull):
        asyncio.run(service.audit.alog(AuditEvent(event_type="table.drop")))
    receipt = service.audit.log(AuditEvent(event_type="report.export"))
    of_helper = service.audit.log_authz(outcome="deny")

    assert receipt is not None
    assert of_helper is not None
    assert not receipt.durable
    assert not of_helper.durable


def test_a_helper_follows_the_loss_rule_of_its_event(small_disk: Path, tmp_path: Path) -> None:
    service = Service(
        small_disk,
        a_policy(tmp_path, "rules: [{outcome: denied, on_loss: closed}, {type: table.fill, on_loss: closed}]"),
    )
    service.fill()

    with pytest.raises(JournalFull):
        service.audit.log_authz(outcome="deny")
    receipt = service.audit.log_authz(outcome="allow")

    assert receipt is not None
    assert not receipt.durable
    service.audit.close()


def test_an_operation_that_only_its_end_makes_closed_tells_of_its_loss_if_the_block_raised_nothing(
    service: Service,
) -> None:
    def rename(running: Operation, then: Callable[[], object]) -> None:
        running.event.event_type = "table.drop"
        then()

    running = service.audit.operation("report.export")
    with pytest.raises(JournalFull), running:
        rename(running, service.fill)
    running = service.audit.operation("report.export")
    with pytest.raises(Overdrawn), running:
        rename(running, fail)


# --- the disk syncs, waits, and fails ----------------------------------------------------------------------------


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
        async with asyncio.timeout(0.05), audit.require("x"):
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


# --- other sinks, and calls from inside a call -------------------------------------------------------------------


class Closable(AuditSink):
    """A destination that takes events while it is open."""

    def __init__(self) -> None:
        self.is_open = True
        self.taken: list[str] = []

    def emit(self, event: JsonlEvent) -> None:
        if not self.is_open:
            raise OSError("closed")
        self.taken.append(event.to_jsonl())


@both
def test_in_memory_an_event_is_as_durable_as_that_setting_promises(tmp_path: Path, is_async: bool) -> None:
    trail = a_trail(tmp_path, durability="memory", export="jsonl", jsonl_path=tmp_path / "out.jsonl")
    with AuditLogger(trail) as audit:
        running = audit.require("x")
        run(running, is_async=is_async)
        assert audit.flush(timeout_s=30).complete

    assert running.begun is not None
    assert not running.begun.durable
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines if line["event_type"] == "x"] == ["unknown", "success"]


@both
def test_a_sink_that_takes_no_begin_refuses_the_block_and_one_that_takes_no_end_does_not(is_async: bool) -> None:
    sink = Closable()
    audit = AuditLogger(sink)

    run(audit.require("x"), lambda: setattr(sink, "is_open", False), is_async=is_async)
    with pytest.raises(AuditUnavailable, match="Closable: expected to take an event"):
        run(audit.require("x"), lambda: pytest.fail("it ran"), is_async=is_async)

    assert len(sink.taken) == 1
    assert (audit.stats().emitted, audit.stats().dropped) == (3, 2)


def test_a_begin_from_inside_an_append_of_its_thread_is_refused_since_it_cannot_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []
    write = os.write

    def write_and_be_interrupted(descriptor: int, data: bytes) -> int:
        if b'"interrupted"' in bytes(data):
            signal.raise_signal(signal.SIGUSR1)
        return write(descriptor, data)

    with recorder(tmp_path) as audit:

        def handler(*_: object) -> None:
            try:
                with audit.require("x"):
                    pytest.fail("it ran")
            except AuditUnavailable as error:
                raised.append(error)

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            monkeypatch.setattr(os, "write", write_and_be_interrupted)
            receipt = audit.log(AuditEvent(event_type="interrupted"))
        finally:
            signal.signal(signal.SIGUSR1, before)

        assert event_of(tmp_path, receipt)["event_type"] == "interrupted"
    (error,) = raised
    assert "expected to record that it begins" in str(error)
