"""The streams that a process holds, and what it does when somebody removes the files by which it holds them."""

from __future__ import annotations

from pathlib import Path

from otel_audit.delivery.holdings import Holdings
from otel_audit.journal.counts import Counts
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.line import Position
from otel_audit.journal.locks import FileLock
from otel_audit.journal.shipment import Shipment, take
from otel_audit.notices import Notices
from tests.journal.writing import a_journal, append, the_stream


def _holding(directory: Path) -> tuple[Holdings, Shipment]:
    files = the_stream(directory)
    shipment = take(files)
    assert shipment is not None
    holdings = Holdings(directory, ["otlp"], file_mode=0o600, notices=Notices())
    holdings.expect(lambda: shipment)
    assert holdings.take_waiting() == [shipment]
    shipment.cursor.advance(
        "otlp", Progress(Position(1, files.segment(1).stat().st_size, 2), Counts(exported=1, system=1))
    )
    return holdings, shipment


def test_a_cursor_and_a_lock_that_somebody_removed_are_made_again_while_nothing_is_delivered(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, 1)
    holdings, shipment = _holding(tmp_path)
    files, kept = shipment.files, read_cursor(shipment.files.cursor)
    files.cursor.unlink()
    files.ship_lock.unlink()

    holdings.let_go()

    assert read_cursor(files.cursor) == kept
    assert FileLock.is_held(files.ship_lock)
    assert not shipment.released
    shipment.release()
    assert not FileLock.is_held(files.ship_lock)
    journal.close()


def test_a_stream_that_another_process_took_when_its_lock_was_removed_is_left_to_it(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, 1)
    holdings, shipment = _holding(tmp_path)
    shipment.files.ship_lock.unlink()
    other = take(shipment.files)
    assert other is not None

    holdings.let_go()

    assert shipment.released
    assert holdings.shipments == {}
    assert FileLock.is_held(other.files.ship_lock)
    assert other.keeps_its_lock()
    other.release()
    journal.close()
