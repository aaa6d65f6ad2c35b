"""The batch processor at work: real threads, a real journal, a real server that comes and goes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from otel_audit.delivery.batch import Batch, Exporter
from otel_audit.delivery.jsonl import JsonlExporter
from otel_audit.delivery.outcomes import Accepted, ExportOutcome
from otel_audit.delivery.processor import Adoption, BatchProcessor
from otel_audit.delivery.worker import BatchLimits
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal
from otel_audit.journal.locks import FileLock
from otel_audit.journal.open_stream import OpenStream
from otel_audit.journal.recovery import Shipment, take
from otel_audit.journal.stream import Limits
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.journal.writing import a_journal, append, description
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer

SHOP = Adoption(lambda header: header["resource"]["service.name"] == "shop")
NOBODY = Adoption(lambda header: False)
DEFAULTS = BatchLimits()

Describe = Callable[[], Mapping[str, Any]]


class Delivered:
    """A journal and the processor that delivers it."""

    def __init__(self, directory: Path, exporters: Sequence[Exporter], adoption: Adoption, limits: BatchLimits) -> None:
        self.processor = BatchProcessor(directory, exporters, adoption=adoption, limits=limits)
        self.journal = a_journal(
            directory, on_open=lambda stream: self.processor.ship(stream.files), on_fork=self.processor.forked
        )

    def write(self, *names: object) -> None:
        for name in names:
            append(self.journal, name)

    @property
    def seqs(self) -> dict[str, int]:
        stream = self.journal.stream
        return {} if stream is None else {stream.files.stream_id: stream.head.seq}

    @property
    def files(self) -> StreamFiles:
        assert self.journal.stream is not None
        return self.journal.stream.files


class Deliver(Protocol):
    """Makes a journal that is delivered, and closes both at the end of the test."""

    def __call__(
        self, *exporters: Exporter, adoption: Adoption = NOBODY, limits: BatchLimits = DEFAULTS
    ) -> Delivered: ...


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[AuditedServer]:
    with AuditedServer() as running:
        yield running


@pytest.fixture
def deliver(tmp_path: Path) -> Iterator[Deliver]:
    with ExitStack() as opened:

        def make(*exporters: Exporter, adoption: Adoption = NOBODY, limits: BatchLimits = DEFAULTS) -> Delivered:
            delivered = Delivered(tmp_path / "audit", exporters, adoption, limits)
            opened.callback(lambda: delivered.processor.close(timeout_s=2))
            opened.callback(delivered.journal.close)
            return delivered

        yield make


def left_behind(
    directory: Path, names: Sequence[object], describe: Describe = description, limits: Limits | None = None
) -> StreamFiles:
    """The stream of a process that is gone."""
    journal = Journal(directory, describe=describe, limits=limits)
    for name in names:
        append(journal, name)
    assert journal.stream is not None
    files = journal.stream.files
    journal.close()
    return files


def is_ended(files: StreamFiles) -> bool:
    return read_cursor(files.cursor)[1]


def text(numbers: Sequence[int]) -> list[str]:
    return [str(number) for number in numbers]


def test_what_is_logged_arrives_by_itself_in_order(server: AuditedServer, deliver: Deliver) -> None:
    delivered = deliver(exporter_to(server))

    delivered.write(*range(50))

    poll(lambda: len(server.accepted), until=lambda count: count == 51, what="51 records")
    assert server.accepted == ["header", *text(range(50))]
    poll(delivered.processor.drained, what="the answer to the last batch to be kept")


def test_the_caller_never_waits_for_the_network(deliver: Deliver) -> None:
    may_answer = threading.Event()

    def judge(names: Sequence[str]) -> None:
        assert may_answer.wait(60)

    with AuditedServer(judge) as server:
        delivered = deliver(exporter_to(server, timeout_s=50), limits=BatchLimits(count=16))

        delivered.write(*range(500))  # would never return if it waited for an answer

        assert server.accepted == []
        may_answer.set()
        report = delivered.processor.flush(delivered.seqs, timeout_s=30)
        assert report.complete
        assert server.accepted == ["header", *text(range(500))]


def test_after_an_outage_everything_arrives_in_order_and_once(server: AuditedServer, deliver: Deliver) -> None:
    server.judge = lambda names: Answer(503)
    delivered = deliver(exporter_to(server), limits=BatchLimits(count=100, backoff_cap_s=1))
    delivered.write(*range(500))
    poll(lambda: delivered.processor.blocked(), what="a blocked exporter")

    server.judge = lambda names: None

    poll(lambda: len(server.accepted), until=lambda count: count == 501, what="501 records")
    assert server.accepted == ["header", *text(range(500))]
    poll(lambda: not delivered.processor.blocked(), what="the exporter to be blocked no more")


def test_a_backlog_and_live_events_take_turns(tmp_path: Path, server: AuditedServer, deliver: Deliver) -> None:
    backlog = [f"old-{number}" for number in range(2000)]
    left_behind(tmp_path / "audit", backlog)
    server.judge = lambda names: Answer(delay_s=0.01, status=200)
    delivered = deliver(exporter_to(server), adoption=SHOP, limits=BatchLimits(count=20))
    delivered.processor.adopt()
    poll(lambda: len(server.requests), until=lambda count: count > 3, what="the backlog to be under way")

    live = [f"new-{number}" for number in range(40)]
    delivered.write(*live)

    poll(delivered.processor.drained, what="everything to be delivered")
    arrived = [name for batch in server.batches for name in batch if name != "header"]
    assert [name for name in arrived if name.startswith("old")] == backlog
    assert [name for name in arrived if name.startswith("new")] == live
    assert arrived.index("new-39") < arrived.index("old-1999")


def test_the_stream_of_a_dead_process_is_delivered_to_its_end_and_let_go(
    tmp_path: Path, server: AuditedServer, deliver: Deliver
) -> None:
    files = left_behind(tmp_path / "audit", ["a", "b"])
    other = left_behind(tmp_path / "audit", ["c"], lambda: {**description(), "resource": {"service.name": "other"}})
    delivered = deliver(exporter_to(server), adoption=SHOP)
    delivered.processor.start()
    poll(lambda: server.accepted, until=lambda names: len(names) == 3, what="three records")

    poll(lambda: delivered.processor.adopt() or is_ended(files), what="the end of the stream to be kept")

    assert server.accepted == ["header", "a", "b"]
    assert not files.ship_lock.exists()
    assert not files.writer_lock.exists()
    assert not other.cursor.exists()


def test_a_live_stream_is_left_to_its_own_process(tmp_path: Path, server: AuditedServer, deliver: Deliver) -> None:
    other = a_journal(tmp_path / "audit")
    append(other, "of another process")
    delivered = deliver(exporter_to(server), adoption=SHOP)

    assert delivered.processor.adopt() == 0

    other.close()
    assert delivered.processor.adopt() == 1


def test_a_stream_that_cannot_be_read_does_not_keep_the_others(
    tmp_path: Path, server: AuditedServer, deliver: Deliver, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "audit"
    broken = left_behind(directory, ["lost"])
    left_behind(directory, ["a"])
    broken.ship_lock.unlink(missing_ok=True)
    broken.ship_lock.symlink_to(tmp_path / "nowhere")  # a link is never followed
    delivered = deliver(exporter_to(server), adoption=SHOP)

    delivered.processor.start()

    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")
    assert server.accepted == ["header", "a"]
    assert broken.stream_id in capfd.readouterr().err


def test_a_segment_that_cannot_be_read_does_not_keep_the_other_streams(
    tmp_path: Path, server: AuditedServer, deliver: Deliver, capfd: pytest.CaptureFixture[str]
) -> None:
    files = left_behind(tmp_path / "audit", ["late"])
    away = files.segment(1).rename(tmp_path / "away")
    files.segment(1).symlink_to(away)
    delivered = deliver(
        exporter_to(server), adoption=Adoption(lambda header: True), limits=BatchLimits(backoff_cap_s=1)
    )
    delivered.processor.start()

    delivered.write("a")

    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")
    assert "symbolic link" in poll(lambda: delivered.processor.blocked().get("otlp", ""), what="the reason")
    files.segment(1).unlink()
    away.rename(files.segment(1))
    poll(lambda: server.accepted, until=lambda names: "late" in names, what="the late one")
    assert "events stay in the journal" in capfd.readouterr().err


def test_a_file_that_is_removed_while_it_is_exported_is_exported_to_its_end(
    server: AuditedServer, deliver: Deliver
) -> None:
    delivered = deliver(exporter_to(server))
    delivered.write("a")
    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")

    delivered.files.segment(1).unlink()
    poll(lambda: delivered.journal.tend() or delivered.files.segment(1).exists(), what="the file to be put back")  # type: ignore[func-returns-value]  # called for what it does
    delivered.write("b")

    poll(lambda: server.accepted, until=lambda names: "b" in names, what="what came later")
    assert server.accepted.count("a") == 1


def test_a_descriptor_that_somebody_else_closed_is_opened_anew(server: AuditedServer, deliver: Deliver) -> None:
    delivered = deliver(exporter_to(server))
    delivered.write("a")
    poll(lambda: server.accepted, until=lambda names: names == ["header", "a"], what="the first line")

    for descriptor in descriptors_for_reading(delivered.files.segment(1)):
        os.close(descriptor)
    delivered.write("b")

    poll(lambda: server.accepted, until=lambda names: names == ["header", "a", "b"], what="the second line")
    assert delivered.processor.flush(delivered.seqs, timeout_s=20).complete


def descriptors_for_reading(path: Path) -> list[int]:
    links = {int(entry.name): os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    return [
        descriptor
        for descriptor, target in links.items()
        if target == str(path) and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    ]


def test_a_time_that_the_server_asks_for_is_obeyed_whoever_is_in_a_hurry(
    server: AuditedServer, deliver: Deliver
) -> None:
    server.will_answer(Answer(503, headers=(("Retry-After", "2"),)))
    delivered = deliver(exporter_to(server))
    delivered.write("a")
    poll(lambda: delivered.processor.blocked(), what="the refusal")
    refused_at = time.monotonic()

    while len(server.requests) == 1:
        report = delivered.processor.flush(delivered.seqs, timeout_s=0.05)
        assert time.monotonic() < refused_at + 20

    assert time.monotonic() - refused_at > 1.5  # from when this test saw it
    assert not report.complete or server.accepted
    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")


def test_a_flush_tries_a_destination_that_failed_at_once(server: AuditedServer, deliver: Deliver) -> None:
    server.will_answer(*[Answer(503)] * 8)
    delivered = deliver(exporter_to(server), limits=BatchLimits(backoff_cap_s=3600))
    delivered.write("a")
    poll(lambda: delivered.processor.blocked(), what="the refusal")

    reports = [delivered.processor.flush(delivered.seqs, timeout_s=0.3) for _ in range(12)]

    assert reports[-1].complete
    assert server.accepted == ["header", "a"]


def test_a_flush_says_what_is_missing_and_why_within_its_time(deliver: Deliver) -> None:
    with OtlpServer() as gone:
        pass
    delivered = deliver(exporter_to(gone))
    delivered.write("a", "b")
    began = time.monotonic()

    report = delivered.processor.flush(delivered.seqs, timeout_s=0.5)

    assert time.monotonic() - began < 5
    assert (report.complete, report.pending) == (False, 3)  # the header is a line too
    assert "connection refused" in report.blocked["otlp"]


def test_a_flush_against_a_silent_server_ends_in_time(server: AuditedServer, deliver: Deliver) -> None:
    server.judge = lambda names: Answer(delay_s=60)
    delivered = deliver(exporter_to(server, timeout_s=30))
    delivered.write("a")
    began = time.monotonic()

    report = delivered.processor.flush(delivered.seqs, timeout_s=0.5)
    all_delivered = delivered.processor.close(timeout_s=0.5)

    assert time.monotonic() - began < 10
    assert not report.complete
    assert not all_delivered


def test_a_close_ends_in_time_and_leaves_the_rest_to_the_next_owner(
    tmp_path: Path, server: AuditedServer, deliver: Deliver
) -> None:
    server.judge = lambda names: Answer(503)
    delivered = deliver(exporter_to(server))
    delivered.write("a", "b")
    delivered.journal.close()
    began = time.monotonic()

    assert not delivered.processor.close(timeout_s=30)

    assert time.monotonic() - began < 10  # a destination that fails is not waited for
    server.judge = lambda names: None
    deliver(exporter_to(server), adoption=SHOP).processor.start()
    poll(lambda: server.accepted, until=lambda names: len(names) == 3, what="three records")
    assert server.accepted == ["header", "a", "b"]


def test_a_close_delivers_what_is_there(server: AuditedServer, deliver: Deliver) -> None:
    delivered = deliver(exporter_to(server, delay_s=600), limits=BatchLimits(count=10))
    delivered.write(*range(95))
    files = delivered.files
    delivered.journal.close()

    assert delivered.processor.close(timeout_s=30)

    assert server.accepted == ["header", *text(range(95))]
    assert is_ended(files)
    assert not files.ship_lock.exists()


def test_a_close_delivers_every_segment_of_a_backlog(tmp_path: Path, server: AuditedServer) -> None:
    # A delay that is never over: a worker that rests at the end of a segment does not come back.
    left_behind(tmp_path, range(40), limits=Limits(segment_bytes=1000))
    assert len(list(tmp_path.glob("*.jsonl"))) > 5
    processor = BatchProcessor(tmp_path, [exporter_to(server, delay_s=600)], adoption=SHOP)

    processor.adopt()
    delivered = processor.close(timeout_s=30)

    assert delivered
    assert [name for name in server.accepted if name != "header"] == text(range(40))


def test_a_close_delivers_what_a_live_writer_began_since_the_last_look(tmp_path: Path, server: AuditedServer) -> None:
    everything = Adoption(lambda header: True, live=lambda header: True)
    processor = BatchProcessor(tmp_path, [exporter_to(server)], adoption=everything)
    known, new = a_journal(tmp_path), a_journal(tmp_path)
    append(known, "a")
    processor.start()
    poll(lambda: server.accepted, until=lambda names: names == ["header", "a"], what="the first look")

    append(new, "b")

    assert processor.close(timeout_s=20)
    assert server.accepted == ["header", "a", "header", "b"]
    known.close()
    new.close()


def test_a_close_does_not_end_streams_that_it_never_came_to(tmp_path: Path, server: AuditedServer) -> None:
    def leaves_delivery() -> Mapping[str, Any]:
        return {**description(), "export": ["ship"]}

    # At the first that is refused the others are not tried: nothing of this exporter is in their cursors.
    streams = [left_behind(tmp_path, [name], leaves_delivery) for name in "abc"]
    with OtlpServer() as gone:
        pass
    processor = BatchProcessor(tmp_path, [exporter_to(gone)], adoption=SHOP)
    processor.adopt()

    assert not processor.close(timeout_s=20)

    assert not any(map(is_ended, streams))
    following = BatchProcessor(tmp_path, [exporter_to(server)], adoption=SHOP)
    following.adopt()
    assert following.close(timeout_s=20)
    assert sorted(name for name in server.accepted if name != "header") == ["a", "b", "c"]
    assert all(map(is_ended, streams))


def test_a_close_without_time_lets_go_of_streams_at_once_and_the_next_owner_ends_them(
    tmp_path: Path, server: AuditedServer
) -> None:
    streams = [left_behind(tmp_path, [number]) for number in range(20)]
    processor = BatchProcessor(tmp_path, [exporter_to(server)], adoption=SHOP)
    assert processor.adopt() == 20
    poll(processor.drained, what="everything to be delivered")

    assert not processor.close(timeout_s=0)

    assert not any(FileLock.is_held(files.ship_lock) for files in streams)
    following = BatchProcessor(tmp_path, [exporter_to(server)], adoption=SHOP)
    following.adopt()
    assert following.close(timeout_s=20)
    assert all(map(is_ended, streams))
    assert sorted(server.accepted) == sorted([*["header"] * 20, *text(range(20))])


def test_what_comes_after_the_close_is_shipped_by_the_next_owner(server: AuditedServer, deliver: Deliver) -> None:
    delivered = deliver(exporter_to(server))
    delivered.write("a")
    delivered.journal.close()
    delivered.processor.close(timeout_s=30)

    delivered.write("after")
    began = time.monotonic()
    report = delivered.processor.flush(delivered.seqs, timeout_s=60)
    assert time.monotonic() - began < 30  # there is nobody to wait for
    delivered.journal.close()

    assert (report.complete, report.pending) == (False, 2)
    assert server.accepted == ["header", "a"]
    deliver(exporter_to(server), adoption=SHOP).processor.start()
    poll(lambda: server.accepted, until=lambda names: len(names) == 4, what="four records")
    assert server.accepted[2:] == ["header", "after"]


def test_a_dead_collector_does_not_stop_the_copy_in_a_file(tmp_path: Path, deliver: Deliver) -> None:
    with OtlpServer() as gone:
        pass
    copy = tmp_path / "copy.jsonl"
    delivered = deliver(exporter_to(gone), JsonlExporter(copy, delay_s=0.05))

    delivered.write(*range(30))

    def exported(name: str) -> int:
        return delivered.processor.progress()[delivered.files.stream_id][name].exported

    poll(lambda: exported("jsonl"), until=lambda count: count == 30, what="30 lines in the copy")
    assert copy.read_bytes().count(b"\n") == 30
    assert exported("otlp") == 0
    poll(lambda: set(delivered.processor.blocked()), until={"otlp"}.__eq__, what="otlp to be blocked")


def test_a_stream_that_one_exporter_has_not_finished_is_not_over_for_another(
    tmp_path: Path, server: AuditedServer, deliver: Deliver
) -> None:
    files = left_behind(tmp_path / "audit", ["a"], lambda: {**description(), "export": ["otlp", "jsonl"]})
    only_otlp = deliver(exporter_to(server), adoption=SHOP)
    only_otlp.processor.start()
    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")
    assert only_otlp.processor.close(timeout_s=10)
    assert not is_ended(files)

    copy = tmp_path / "copy.jsonl"
    both = deliver(exporter_to(server), JsonlExporter(copy, delay_s=0.05), adoption=SHOP)
    both.processor.start()

    poll(lambda: copy.exists() and copy.read_bytes().count(b"\n"), what="the copy")
    assert both.processor.close(timeout_s=10)
    assert is_ended(files)
    assert server.accepted == ["header", "a"]


class Fragile:
    """An exporter with a bug: it raises on its first batches."""

    name = "fragile"
    delay_s = 0.0

    def __init__(self, bugs: int) -> None:
        self.bugs = bugs
        self.seen = 0

    def export(self, batch: Batch) -> ExportOutcome:
        if self.bugs:
            self.bugs -= 1
            raise KeyError("a bug")
        self.seen += len(batch.lines)
        return Accepted()

    def close(self) -> None:
        pass


def test_an_exporter_that_raises_is_tried_again_and_loses_nothing(deliver: Deliver) -> None:
    exporter = Fragile(bugs=2)
    delivered = deliver(exporter)

    delivered.write("a", "b")

    assert poll(delivered.processor.blocked, what="a reason")["fragile"] == "KeyError in exporter fragile"
    poll(lambda: exporter.seen, until=lambda seen: seen == 3, what="three lines")


def test_a_stream_that_another_process_ships_is_taken_when_that_one_stops(
    tmp_path: Path, server: AuditedServer, deliver: Deliver
) -> None:
    delivered = deliver(exporter_to(server))
    shipments: list[Shipment | None] = []

    def opened(stream: OpenStream) -> None:
        shipments.append(take(stream.files))  # another process is quicker
        delivered.processor.ship(stream.files)

    delivered.journal = a_journal(tmp_path / "audit", on_open=opened)
    delivered.write("a")
    assert not delivered.processor.flush(delivered.seqs, timeout_s=0.3).complete

    (shipment,) = shipments
    assert shipment is not None
    shipment.release()
    delivered.processor.adopt()

    assert delivered.processor.flush(delivered.seqs, timeout_s=10).complete
    assert server.accepted == ["header", "a"]
    delivered.journal.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # that is what it is about
def test_a_forked_child_delivers_its_own_stream_and_leaves_its_parents_alone(
    server: AuditedServer, deliver: Deliver
) -> None:
    delivered = deliver(exporter_to(server))
    delivered.write("parent-1")
    assert delivered.processor.flush(delivered.seqs, timeout_s=20).complete

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            delivered.write("child")
            code = 0 if delivered.processor.flush(delivered.seqs, timeout_s=20).complete else 2
        finally:
            os._exit(code)
    delivered.write("parent-2")
    assert delivered.processor.flush(delivered.seqs, timeout_s=20).complete
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert sorted(server.accepted) == ["child", "header", "header", "parent-1", "parent-2"]


def test_an_exporter_without_a_delay_does_not_keep_a_core_busy(deliver: Deliver) -> None:
    exporter = Fragile(bugs=0)
    delivered = deliver(exporter)
    delivered.write("a")
    poll(lambda: exporter.seen, until=lambda seen: seen == 2, what="two lines")
    wall, used = time.monotonic(), time.process_time()

    poll(lambda: time.monotonic() - wall, until=lambda passed: passed > 1, what="a second to pass")

    assert time.process_time() - used < 0.5 * (time.monotonic() - wall)
