"""A close delivers what it can within its time, and leaves the rest to the next owner."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from otel_audit.delivery.processor import Adoption, BatchProcessor
from otel_audit.delivery.worker import BatchLimits
from otel_audit.journal.locks import FileLock
from otel_audit.journal.stream import Limits
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.processor.delivered import SHOP, Deliver, is_drained, is_ended, left_behind, text
from tests.journal.writing import a_journal, append, description
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer


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
    assert len(list(tmp_path.glob("*-*.jsonl"))) > 5
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
    poll(lambda: is_drained(tmp_path), what="everything to be delivered")

    assert not processor.close(timeout_s=0)

    # If the keeper is in the middle of a look, `close` leaves the streams to it, which lets go when that is over.
    poll(lambda: not any(FileLock.is_held(files.ship_lock) for files in streams), what="the streams to be let go")
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
