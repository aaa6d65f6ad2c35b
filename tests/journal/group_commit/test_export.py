"""What is exported is durable, or named in the header of the next segment."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.stream_export import Idle, Moved, StreamExport
from otel_audit.errors import AuditUnavailable
from otel_audit.journal.journal import Journal
from otel_audit.journal.shipment import take
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.journal.group_commit.waiting import Start, hold, wait_for_written
from tests.journal.keeping import Keeping
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import append, the_stream
from tests.servers.polling import poll


def test_nothing_behind_the_last_sync_is_exported(
    tmp_path: Path, journal: Journal, disk: SlowDisk, in_threads: Start
) -> None:
    stream = journal.stream
    assert stream is not None
    hold(disk)
    waiting = in_threads(journal, "not durable")
    disk.wait_until_entered()
    wait_for_written(tmp_path, 2)
    exporter = Keeping()
    shipment = take(stream.files, durable=lambda: stream.durable)
    assert shipment is not None
    export = StreamExport(shipment, Destination(exporter))

    while export.step() != Idle():
        pass
    assert exporter.ids == ["first"]

    disk.gate.set()
    waiting.result(30)
    assert isinstance(export.step(), Moved)
    assert exporter.ids == ["first", "not durable"]
    export.close()
    shipment.release()


def test_what_could_not_be_synced_is_exported_behind_the_header_of_the_next_segment(
    tmp_path: Path, disk: SlowDisk
) -> None:
    exporter = Keeping()
    settings = Settings.load({}, {"directory": str(tmp_path), "export": "none", "durability": "fsync"})
    trail = Trail(settings, exporters=[exporter])
    append(trail.journal, "before")
    disk.fails = True
    with pytest.raises(AuditUnavailable):
        append(trail.journal, "unsynced")
    disk.fails = False

    # No event comes any more: the segment is left all the same, so that no line waits for ever.
    poll(lambda: list(exporter.ids), until=lambda ids: "unsynced" in ids, what="the line that could not be synced")

    assert exporter.ids == ["before", "unsynced"]
    trail.close()


def test_a_flush_delivers_all_that_was_logged_before_it(tmp_path: Path) -> None:
    exporter = Keeping()
    settings = Settings.load({}, {"directory": str(tmp_path), "export": "none", "durability": "fsync"})
    trail = Trail(settings, exporters=[exporter])
    for number in range(50):
        append(trail.journal, number)

    report = trail.flush(30)

    assert report.complete
    assert len(exporter.ids) == 50
    append(trail.journal, "last")
    trail.close(30)
    assert exporter.ids[-1] == "last"


def test_another_process_syncs_what_it_exports(tmp_path: Path, journal: Journal, disk: SlowDisk) -> None:
    """`otel-audit ship` cannot know how far the writer has synced, so it does so itself."""
    exporter = Keeping()
    shipment = take(the_stream(tmp_path))
    assert shipment is not None
    export = StreamExport(shipment, Destination(exporter))
    disk.fails = True
    with pytest.raises(OSError, match="Input/output"):
        export.step()
    assert exporter.ids == []
    export.hold("the disk fails")
    export.retry_now()
    disk.fails = False
    disk.calls.clear()

    poll(export.step, until=lambda step: isinstance(step, Moved), what="a batch")

    assert exporter.ids == ["first"]
    assert disk.calls == [the_stream(tmp_path).segment(1).name]
    export.close()
    shipment.release()
