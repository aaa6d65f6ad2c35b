"""`OTEL_AUDIT_DURABILITY=memory`: from the logger to a real server, and what becomes of what it does not take."""

from __future__ import annotations

import json
import threading
import time

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.errors import JournalFull
from otel_audit.journal.journal import Receipt
from otel_audit.settings import OnLoss
from otel_audit.trail import Stats
from tests.delivery.audited_server import AuditedServer
from tests.memory_mode.trail import (
    DOWN,
    REFUSED,
    adds_up,
    arrived,
    ids,
    kept,
    log,
    recording,
    settings_for,
    told,
    told_in,
)
from tests.servers import poll
from tests.servers.otlp_server import accepted


def test_what_is_logged_arrives_in_one_chain_and_no_file_is_needed(server: AuditedServer) -> None:
    with recording(settings_for(server)) as audit:
        receipts = log(audit, *range(300))

        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(300, 300, 0, 0, 0)

    ((stream, events),) = arrived(server).items()
    assert ids(events) == [str(number) for number in range(300)]
    assert events[0]["segment"]["durability"] == "memory"
    assert {(receipt.stream_id, receipt.durable) for receipt in receipts} == {(stream, False)}
    assert [receipt.seq for receipt in receipts] == list(range(2, 302))


def test_events_wait_for_a_server_that_is_down_and_none_is_lost(server: AuditedServer) -> None:
    is_up = threading.Event()
    server.judge = lambda names: None if is_up.is_set() else DOWN
    with recording(settings_for(server)) as audit:
        log(audit, *range(1000))
        poll(lambda: audit.stats().blocked, what="the first answer")
        report = audit.flush(timeout_s=0.1)
        assert not report.complete
        assert report.pending == 1001  # with the header
        assert "503" in report.blocked["otlp"]
        assert audit.stats().pending == 1000

        is_up.set()
        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(1000, 1000, 0, 0, 0)

    (events,) = arrived(server).values()
    assert ids(events) == [str(number) for number in range(1000)]


def test_a_full_queue_refuses_new_events_counts_them_and_says_so_in_the_trail(
    server: AuditedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    is_up = threading.Event()
    server.judge = lambda names: None if is_up.is_set() else DOWN
    with recording(settings_for(server, queue_size=50)) as audit:
        receipts = log(audit, *range(80))

        assert kept(receipts) == [str(number) for number in range(50)]
        assert (audit.stats().pending, audit.stats().dropped) == (50, 30)
        assert capsys.readouterr().err.count("events are lost: memory: expected room") == 1  # a minute

        is_up.set()
        assert audit.flush(timeout_s=20).complete
        log(audit, "after")
        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(81, 51, 0, 0, 30)

    (events,) = arrived(server).values()
    assert ids(events) == [*kept(receipts), "after"]
    assert told(events) == {"queue full": 30}


def test_with_closed_a_full_queue_is_told_to_the_caller(server: AuditedServer) -> None:
    server.judge = lambda names: DOWN
    with recording(settings_for(server, queue_size=5, on_loss=OnLoss.CLOSED)) as audit:
        log(audit, *range(5))

        with pytest.raises(JournalFull, match="OTEL_AUDIT_QUEUE_SIZE"):
            log(audit, "one too many")

        assert audit.stats().dropped == 1


def test_ten_threads_and_a_server_that_comes_and_goes_lose_only_what_was_refused(server: AuditedServer) -> None:
    flips = iter(range(1 << 20))
    server.judge = lambda names: DOWN if next(flips) % 3 == 1 else None
    receipts: list[Receipt] = []
    wrong: list[Stats] = []
    stop = threading.Event()
    with recording(settings_for(server, queue_size=100, batch_count=40)) as audit:

        def write(name: int) -> None:
            for number in range(200):
                receipts.extend(log(audit, f"{name}-{number}"))
                time.sleep(0.0002)  # so that the server has some of them while others are written

        def watch() -> None:
            while not stop.is_set():
                wrong.extend(stats for stats in [audit.stats()] if not adds_up(stats))

        watcher = threading.Thread(target=watch)
        watcher.start()
        threads = [threading.Thread(target=write, args=(name,)) for name in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        poll(lambda: audit.flush(timeout_s=5).complete, what="all to be delivered")
        poll(lambda: told_in(arrived(server)), until=lambda count: count == audit.stats().dropped, what="every gap")
        stop.set()
        watcher.join()

        stats = audit.stats()
    assert wrong == []
    assert stats.emitted == 2000
    assert stats.exported == len(kept(receipts))
    assert stats.dropped == 2000 - len(kept(receipts))
    (events,) = arrived(server).values()
    assert sorted(ids(events)) == sorted(kept(receipts))


def test_a_record_that_is_refused_is_dropped_said_and_told_in_the_trail(
    server: AuditedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.judge = lambda names: REFUSED if "poison" in names else None
    said_of_it = ""
    with recording(settings_for(server)) as audit:
        log(audit, "a", "poison", "b")
        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(3, 2, 0, 0, 1)

        def on_stderr() -> str:
            nonlocal said_of_it
            said_of_it += capsys.readouterr().err
            return said_of_it

        poll(
            on_stderr,
            until=lambda text: "events refused by their destination, and lost: 1 so far" in text,
            what="a notice",
        )
        poll(lambda: gaps(server), until=bool, what="a gap line")
    assert gaps(server) == [{"refused by destination": 1}]


def gaps(server: AuditedServer) -> list[dict[str, int]]:
    """What each accepted gap line tells; a refused line leaves a hole in the chain of what arrived."""
    requests = zip(list(server.requests), list(server.answers), strict=False)
    bodies = [request.body for request, answer in requests if answer == accepted()]
    records = [
        json.loads(record.body.string_value)
        for body in bodies
        for logs in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in logs.scope_logs
        for record in scope.log_records
    ]
    return [told([record]) for record in records if "gap" in record]
