"""Whose streams are delivered: those of dead processes, and none that another process delivers."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.delivery.jsonl import JsonlExporter
from otel_audit.delivery.processor import BatchProcessor
from otel_audit.journal.shipment import Shipment, take
from otel_audit.journal.stream import StreamWriter
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.processor.delivered import SHOP, Deliver, is_ended, left_behind
from tests.journal.writing import a_journal, append, description
from tests.servers import poll


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


def test_a_notice_says_how_many_events_wait_for_a_word_that_another_host_is_gone(
    memory_disk: Path, server: AuditedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind(memory_disk, ["a", "b"], lambda: {**description(), "host_id": "f" * 32})
    left_behind(memory_disk, ["c"])
    processor = BatchProcessor(memory_disk, [exporter_to(server)], adoption=SHOP)

    processor.start()

    said = poll(lambda: capsys.readouterr().err, what="the notice")
    assert f"{memory_disk}: 2 events of 1 stream from another host are waiting" in said
    assert f"otel-audit ship --adopt-foreign {memory_disk}" in said
    assert processor.close(timeout_s=20)
    assert server.accepted == ["header", "c"]


def test_a_live_stream_is_left_to_its_own_process(tmp_path: Path, server: AuditedServer, deliver: Deliver) -> None:
    other = a_journal(tmp_path / "audit")
    append(other, "of another process")
    delivered = deliver(exporter_to(server), adoption=SHOP)

    assert delivered.processor.adopt() == 0

    other.close()
    assert delivered.processor.adopt() == 1


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


def test_a_stream_that_another_process_ships_is_taken_when_that_one_stops(
    tmp_path: Path, server: AuditedServer, deliver: Deliver
) -> None:
    delivered = deliver(exporter_to(server))
    shipments: list[Shipment | None] = []

    def opened(stream: StreamWriter) -> None:
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
