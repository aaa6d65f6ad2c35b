"""`OTEL_AUDIT_DURABILITY=memory`: from the logger to a real server, and what becomes of what it does not take."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from otel_audit.configuration import configure
from otel_audit.delivery.jsonl import JsonlExporter
from otel_audit.errors import ConfigError, JournalFull
from otel_audit.event import AuditEvent
from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger
from otel_audit.settings import OnLoss, Settings
from otel_audit.trail import Stats, Trail
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.journal.writing import finish, said, start_script
from tests.servers import Collector, poll
from tests.servers.otlp_server import Answer, OtlpServer, accepted
from tests.test_metrics import Reader

DOWN = Answer(503)
REFUSED = Answer(400, b"bad record")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[AuditedServer]:
    with AuditedServer() as running:
        yield running


def settings_for(server: OtlpServer, **overrides: object) -> Settings:
    """No directory can be made where these settings say that it is."""
    given = {
        "durability": "memory",
        "directory": f"{__file__}/audit",
        "endpoint": server.endpoint,
        "protocol": "http/protobuf",
        "batch_delay_s": 0.05,
        "backoff_cap_s": 1,
        **overrides,
    }
    return Settings.load({}, given)


@contextmanager
def recording(settings: Settings, **options: Any) -> Iterator[AuditLogger]:
    """A logger in memory, closed at the end."""
    trail = Trail(settings, **options)
    logger = AuditLogger(trail, on_loss=settings.on_loss, notices=trail.notices)
    try:
        yield logger
    finally:
        logger.close(timeout_s=2)


def log(audit: AuditLogger, *names: object) -> list[Receipt]:
    receipts = [audit.log(AuditEvent(event_type="test", event_id=str(name))) for name in names]
    return [receipt for receipt in receipts if receipt is not None]


def kept(receipts: Sequence[Receipt]) -> list[str]:
    """The ids of those that have a place in a stream."""
    return [str(receipt.event_id) for receipt in receipts if receipt.seq is not None]


def arrived(server: AuditedServer) -> dict[str, list[dict[str, Any]]]:
    """The accepted events of each stream in order, each once, after a check of their chain from its first line on."""
    streams: dict[str, dict[int, bytes]] = {}
    for request, answer in zip(list(server.requests), list(server.answers), strict=False):
        if answer != accepted():
            continue
        for logs in ExportLogsServiceRequest.FromString(request.body).resource_logs:
            for record in (each for scope in logs.scope_logs for each in scope.log_records):
                line = record.body.string_value.encode()
                event = json.loads(line)
                assert streams.setdefault(event["stream_id"], {}).setdefault(event["seq"], line) == line
    return {stream: _chained([lines[seq] for seq in sorted(lines)]) for stream, lines in streams.items()}


def _chained(lines: list[bytes]) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in lines]
    assert events[0]["seq"] == 1
    for before, after in pairwise(zip(lines, events, strict=True)):
        assert after[1]["prev_hash"] == sha256(before[0]).hexdigest()
        assert after[1]["seq"] == before[1]["seq"] + 1
    return events


def ids(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["event_id"] for event in events if "system" not in event]


def told(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many losses the gap lines tell, by reason."""
    counts: dict[str, int] = {}
    for event in events:
        for reason, loss in event.get("gap", {}).get("by_reason", {}).items():
            counts[reason] = counts.get(reason, 0) + loss["count"]
    return counts


def told_in(streams: dict[str, list[dict[str, Any]]]) -> int:
    return sum(sum(told(events).values()) for events in streams.values())


def adds_up(stats: Stats) -> bool:
    parts = (stats.exported, stats.pending, stats.quarantined, stats.dropped)
    return stats.emitted == sum(parts) and min(parts) >= 0


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


def test_close_delivers_what_waits(server: AuditedServer) -> None:
    with recording(settings_for(server, batch_delay_s=60)) as audit:
        log(audit, *range(20))

    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(20)]
    assert audit.stats() == Stats(20, 20, 0, 0, 0)


def test_close_with_a_dead_server_ends_in_time_and_says_how_many_events_are_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with OtlpServer() as gone:
        pass
    with recording(settings_for(gone)) as audit:
        log(audit, *range(30))
        poll(lambda: audit.stats().blocked, what="the first try")
        started = time.monotonic()
        audit.close(timeout_s=1)

        assert time.monotonic() - started < 5
        notice = capsys.readouterr().err
        assert "events lost: 30, not known to be delivered" in notice
        assert "connection refused" in notice.lower()
        stats = audit.stats()
        assert (stats.emitted, stats.exported, stats.pending, stats.dropped) == (30, 0, 0, 30)
        assert audit.flush(timeout_s=1).pending == 0


def test_a_server_that_never_answers_holds_up_close_no_longer_than_its_time(server: AuditedServer) -> None:
    server.judge = lambda names: Answer(delay_s=30)
    with recording(settings_for(server)) as audit:
        log(audit, *range(30))
        poll(lambda: server.requests, what="the request")
        started = time.monotonic()
        audit.close(timeout_s=0.5)

        assert time.monotonic() - started < 5
        assert audit.stats().dropped == 30


def test_an_event_after_the_end_is_refused_and_counted(server: AuditedServer) -> None:
    with recording(settings_for(server)) as audit:
        log(audit, "a")
        audit.close()

        (receipt,) = log(audit, "late")

        assert receipt.seq is None
        assert audit.stats() == Stats(2, 1, 0, 0, 1)


def test_with_a_copy_in_a_file_a_line_waits_for_both(server: AuditedServer, tmp_path: Path) -> None:
    is_up = threading.Event()
    server.judge = lambda names: None if is_up.is_set() else DOWN
    copy = tmp_path / "copy.jsonl"
    exporters = [exporter_to(server), JsonlExporter(copy, delay_s=0.05)]
    with recording(settings_for(server, queue_size=20), exporters=exporters) as audit:
        receipts = log(audit, *range(20))
        poll(lambda: copy.exists() and copy.read_bytes().count(b"\n"), until=lambda count: count == 20, what="the copy")
        assert kept(log(audit, "refused")) == []
        assert audit.stats().exported == 0

        is_up.set()
        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(21, 20, 0, 0, 1)
    assert set(kept(receipts)) <= set(ids(next(iter(arrived(server).values()))))


def test_the_console_shows_events_that_are_in_memory_only(
    server: AuditedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with recording(settings_for(server, export="console")) as audit:
        audit.log_authn(outcome="failure", detail="shown on the console")

    assert "shown on the console" in capsys.readouterr().err
    assert audit.stats() == Stats(1, 1, 0, 0, 0)


def test_any_exporter_of_the_sdk_has_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_AUDIT_DURABILITY", "memory")
    monkeypatch.setenv("OTEL_AUDIT_DIR", f"{__file__}/audit")
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    with configure(exporters=[exporter]) as audit:
        log(audit, "a", "b")
        assert audit.flush(timeout_s=20).complete

        records = exporter.get_finished_logs()
    assert [record.log_record.event_name for record in records] == ["audit.segment", "test", "test"]


def test_memory_without_an_exporter_is_refused_at_the_start(server: AuditedServer) -> None:
    with pytest.raises(ConfigError, match="expected an exporter beside memory"):
        Trail(settings_for(server), exporters=[])


def test_the_metrics_have_the_same_numbers_and_a_reason_for_each_loss(server: AuditedServer) -> None:
    server.judge = lambda names: REFUSED if "poison" in names else None
    reader = Reader()
    with recording(settings_for(server, queue_size=5), metrics=reader.metrics) as audit:
        log(audit, "poison", *range(4))
        assert audit.flush(timeout_s=20).complete
        server.judge = lambda names: DOWN
        log(audit, *range(6))
        seen = reader.values()
        stats = audit.stats()

    dropped = seen["audit.records.dropped"]
    assert dropped["refused by destination"] == 1
    assert dropped["queue full"] == stats.dropped - 1 >= 1
    assert dropped["not delivered"] == 0
    assert seen["audit.records.emitted"][""] == stats.emitted == 11
    assert seen["audit.records.exported"]["otlp"] == stats.exported
    assert seen["audit.queue.depth"]["otlp"] == stats.pending
    assert seen["audit.records.quarantined"]["otlp"] == 0


def test_a_real_collector_has_every_event_of_a_service_in_memory(collector: Collector) -> None:
    settings = Settings.load(
        {}, {"durability": "memory", "endpoint": collector.http_endpoint, "protocol": "http/protobuf"}
    )
    with recording(settings) as audit:
        names = kept(log(audit, *range(1000)))
        assert audit.flush(timeout_s=20).complete

        records = collector.wait_for_archive(1001)
    lines = [record.body.encode() for record in records]
    assert ids(_chained(sorted(lines, key=lambda line: int(json.loads(line)["seq"])))) == names


FORKED = """
    import os, sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    audit = configure(durability="memory", directory="/proc/nowhere", endpoint=sys.argv[1], protocol="http/protobuf")
    for name in range(20):
        audit.log(AuditEvent(event_type="test", event_id=f"parent-{name}"))
    child = os.fork()
    who = "parent" if child else "child"
    for name in range(20, 40):
        audit.log(AuditEvent(event_type="test", event_id=f"{who}-{name}"))
    if not child:
        audit.close()
        os._exit(0 if audit.stats().exported == audit.stats().emitted == 20 else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    audit.close()
    print(audit.stats().exported, audit.stats().emitted, flush=True)
"""


def test_a_forked_child_has_a_stream_of_its_own_and_leaves_its_parents_lines_alone(server: AuditedServer) -> None:
    process = start_script(FORKED, server.endpoint)
    assert said(process) == "0"
    assert said(process) == "40 40"
    finish(process)

    streams = sorted(ids(events) for events in arrived(server).values())
    assert streams == [
        [f"child-{name}" for name in range(20, 40)],
        [f"parent-{name}" for name in range(40)],
    ]


TOUCHES_NOTHING = """
    import os, sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    touched = []

    def hook(name, arguments):
        if name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.listdir", "os.scandir"):
            touched.append((name, arguments))
        if name == "open" and (sys.argv[2] in str(arguments[0]) or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
            touched.append((name, arguments))

    settings = dict(durability="memory", directory=sys.argv[2], endpoint=sys.argv[1], protocol="http/protobuf")
    configure(**settings).close()  # what is imported on the way
    sys.addaudithook(hook)
    audit = configure(**settings)
    for name in range(100):
        audit.log(AuditEvent(event_type="test", event_id=str(name)))
    audit.flush()
    print(audit.stats().exported, flush=True)
    audit.close()
    audit.stats(), audit.flush()
    print(touched, flush=True)
"""


def test_no_file_and_no_directory_is_touched(server: AuditedServer, tmp_path: Path) -> None:
    process = start_script(TOUCHES_NOTHING, server.endpoint, tmp_path / "audit")
    assert said(process) == "100"
    assert said(process) == "[]"
    finish(process)

    assert list(tmp_path.iterdir()) == []


ENDS = """
    import sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    audit = configure(durability="memory", endpoint=sys.argv[1], protocol="http/protobuf", batch_delay_s=60)
    for name in range(100):
        audit.log(AuditEvent(event_type="test", event_id=str(name)))
"""


def test_a_process_that_ends_normally_delivers_first(server: AuditedServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENDS), server.endpoint],
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(100)]


FLAT = """
    import os, sys, time
    from otel_audit.configuration import configure
    from otel_audit.delivery.outcomes import Accepted
    from otel_audit.event import AuditEvent
    from otel_audit.logger import AuditLogger
    from otel_audit.settings import Settings
    from otel_audit.trail import Trail

    class Counts:
        name, delay_s, lines = "counts", 0.01, 0

        def export(self, batch):
            self.lines += len(batch.lines)
            return Accepted()

        def close(self):
            pass

    exporter = Counts()
    settings = Settings.load({}, {"durability": "memory", "export": "console"})
    audit = AuditLogger(Trail(settings, exporters=[exporter]))

    def resident_kib():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    def log(count):
        for _ in range(count):
            while audit.log_authn(outcome="success", detail="x" * 300).seq is None:
                time.sleep(0.001)

    log(10_000)
    before = resident_kib()
    log(100_000)
    grown = resident_kib() - before
    audit.close()
    stats = audit.stats()
    print(grown, stats.exported, stats.emitted - stats.dropped, flush=True)
"""


def test_memory_stays_flat_over_a_hundred_thousand_events() -> None:
    process = start_script(FLAT)
    grown_kib, exported, recorded = map(int, said(process).split())
    finish(process)

    assert exported == recorded == 110_000
    assert grown_kib < 10 * 1024
