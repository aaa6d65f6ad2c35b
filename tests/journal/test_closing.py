"""The end of a stream, called for at any moment."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import pytest

from otel_audit.journal.locks import FileLock
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.chain_check import application_events
from tests.journal.disks import frozen
from tests.journal.keeping import Keeping
from tests.journal.writing import a_journal, append, the_stream

CLOSES = 200


def test_a_signal_handler_that_closes_inside_an_append_neither_waits_for_it_nor_breaks_it(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    closed = 0

    def close(number: int, frame: FrameType | None) -> None:
        nonlocal closed
        journal.close()
        closed += 1

    former = signal.signal(signal.SIGALRM, close)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0023)
    names: list[str] = []
    try:
        while closed < CLOSES:
            receipt = append(journal, len(names))
            assert receipt.durable
            names.append(str(len(names)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    journal.close()

    assert sorted(event["event_id"] for event in application_events(tmp_path)) == sorted(names)


@pytest.mark.processes
def test_a_disk_that_became_read_only_stops_no_close(small_disk: Path) -> None:
    exporter = Keeping()
    trail = Trail(Settings.load({}, {"directory": str(small_disk), "export": "none"}), exporters=[exporter])
    append(trail.journal, "a")
    assert trail.flush(10).complete
    append(trail.journal, "last")

    with frozen(small_disk):
        trail.close(10)

    files = the_stream(small_disk)
    assert exporter.ids == ["a", "last"]
    assert not FileLock.is_held(files.writer_lock)
    assert not FileLock.is_held(files.ship_lock)
