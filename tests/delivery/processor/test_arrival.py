"""The batch processor at work: real threads, a real journal, a real server that comes and goes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from otel_audit.delivery.jsonl import JsonlExporter
from otel_audit.delivery.outcomes import Accepted, Batch, ExportOutcome
from otel_audit.delivery.worker import BatchLimits
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.processor.delivered import SHOP, Deliver, is_drained, left_behind, text
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer


def test_what_is_logged_arrives_by_itself_in_order(server: AuditedServer, deliver: Deliver) -> None:
    delivered = deliver(exporter_to(server))

    delivered.write(*range(50))

    poll(lambda: len(server.accepted), until=lambda count: count == 51, what="51 records")
    assert server.accepted == ["header", *text(range(50))]
    poll(lambda: is_drained(delivered.files.directory), what="the answer to the last batch to be kept")


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

    poll(lambda: is_drained(delivered.files.directory), what="everything to be delivered")
    arrived = [name for batch in server.batches for name in batch if name != "header"]
    assert [name for name in arrived if name.startswith("old")] == backlog
    assert [name for name in arrived if name.startswith("new")] == live
    assert arrived.index("new-39") < arrived.index("old-1999")


def test_a_dead_collector_does_not_stop_the_copy_in_a_file(tmp_path: Path, deliver: Deliver) -> None:
    with OtlpServer() as gone:
        pass
    copy = tmp_path / "copy.jsonl"
    delivered = deliver(exporter_to(gone), JsonlExporter(copy, delay_s=0.05))

    delivered.write(*range(30))

    def exported(name: str) -> int:
        return delivered.processor.progress()[delivered.files.stream_id][name].counts.exported

    poll(lambda: exported("jsonl"), until=lambda count: count == 30, what="30 lines in the copy")
    assert copy.read_bytes().count(b"\n") == 30
    assert exported("otlp") == 0
    poll(lambda: set(delivered.processor.blocked()), until={"otlp"}.__eq__, what="otlp to be blocked")


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


@pytest.mark.processes
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
